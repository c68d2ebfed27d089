"""A bare DBOS workflow of no-op steps: `@DBOS.workflow` calling `@DBOS.step`, DBOS's own durability, nothing else.

Two modes, synchronous and asynchronous functions; which is faster changed with concurrency and load, so the harness
runs both and reports the faster. Left at DBOS's defaults: connection pre-ping, background threads, serializer,
LISTEN/NOTIFY. The pool is as large as the concurrency needs. Nothing phones home: no Conductor key, OTLP off, and
DBOS Cloud's variables are taken out of the environment.
"""

import asyncio
import importlib.metadata
import os

from dbos import DBOS, DBOSConfig
from measure import Load, Sample, measure_async, measure_threads, parse_load, report

# DBOS's default pool; its background threads use it too, so concurrency comes on top.
DEFAULT_POOL = 20


@DBOS.step()
def step(number: int) -> dict[str, int]:
    return {"value": number}


@DBOS.workflow()
def workflow(steps: int) -> dict[str, int]:
    result = {"value": 0}
    for number in range(steps):
        result = step(number)
    return result


@DBOS.step()
async def step_async(number: int) -> dict[str, int]:
    return {"value": number}


@DBOS.workflow()
async def workflow_async(steps: int) -> dict[str, int]:
    result = {"value": 0}
    for number in range(steps):
        result = await step_async(number)
    return result


def launch(load: Load) -> None:
    for name in [name for name in os.environ if name.startswith("DBOS")]:
        del os.environ[name]
    config: DBOSConfig = {
        "name": "interlock-benchmark",
        "system_database_url": load.url,
        "sys_db_pool_size": DEFAULT_POOL + load.concurrency,
        "enable_otlp": False,
        "log_level": "ERROR",
    }
    DBOS(config=config)
    DBOS.launch()


async def measure_async_mode(load: Load) -> Sample:
    return await measure_async(load, lambda _worker: workflow_async(load.steps))


def measure(load: Load) -> Sample:
    launch(load)
    try:
        if load.mode == "async":
            return asyncio.run(measure_async_mode(load))
        return measure_threads(load, lambda _worker: workflow(load.steps))
    finally:
        DBOS.destroy()


if __name__ == "__main__":
    asked = parse_load("DBOS: a workflow of no-op steps", modes=("sync", "async"))
    report("dbos", importlib.metadata.version("dbos"), asked, measure(asked))
