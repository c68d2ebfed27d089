"""The floor: one row inserted and committed for each step, asyncpg, one connection for each unit of concurrency.

No product is below this: a step is durable only when its row's WAL record has been flushed. The statement is
prepared and sent alone, outside a transaction block, so that insert and commit are one round trip.
"""

import asyncio

import asyncpg
from measure import Load, Sample, measure_async, parse_load, report

TABLE = "CREATE TABLE step_result (run uuid DEFAULT gen_random_uuid(), step int, result jsonb, PRIMARY KEY (run, step))"
INSERT = "INSERT INTO step_result (step, result) VALUES ($1, $2::text::jsonb)"


async def measure(load: Load) -> Sample:
    connections = [await asyncpg.connect(load.url) for _ in range(load.concurrency)]
    await connections[0].execute(TABLE)
    inserts = [await connection.prepare(INSERT) for connection in connections]

    async def run(worker: int) -> None:
        for step in range(load.steps):
            await inserts[worker].fetch(step, '{"value": 1}')

    sample = await measure_async(load, run)
    for connection in connections:
        await connection.close()
    return sample


if __name__ == "__main__":
    asked = parse_load("INSERT + COMMIT of one row for each step")
    report("raw", f"asyncpg {asyncpg.__version__}", asked, asyncio.run(measure(asked)))
