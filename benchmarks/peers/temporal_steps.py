"""A bare Temporal workflow of no-op activities against the official test server, one worker in this process.

The test server keeps its histories in memory: nothing it answers is durable, so its figures are what the SDK and the
protocol cost and flatter a real cluster, which adds its database. Payloads are JSON, workflows run without the sandbox
(faster, and a common production setting), histories stay cached. Local activities are not measured: their results are
recorded once a workflow task, not once a step.
"""

import asyncio
import importlib.metadata
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from measure import Load, Sample, measure_async, parse_load, report
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

QUEUE = "steps"


@activity.defn
async def step(number: int) -> dict[str, int]:
    return {"value": number}


@workflow.defn
class Steps:
    @workflow.run
    async def run(self, steps: int) -> dict[str, int]:
        result = {"value": 0}
        for number in range(steps):
            result = await workflow.execute_activity(step, number, start_to_close_timeout=timedelta(seconds=60))
        return result


@contextmanager
def serving() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The wheel has no module: its one file is this program.
    program = Path(sys.executable).with_name("temporal-test-server")
    server = subprocess.Popen([str(program), str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if server.poll() is not None:
                raise SystemExit("the Temporal test server ended while it started")
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


async def measure(load: Load, address: str) -> Sample:
    client = await Client.connect(address)
    worker = Worker(
        client, task_queue=QUEUE, workflows=[Steps], activities=[step], workflow_runner=UnsandboxedWorkflowRunner()
    )

    async def run(_worker: int) -> None:
        await client.execute_workflow(Steps.run, load.steps, id=str(uuid.uuid4()), task_queue=QUEUE)

    async with worker:
        return await measure_async(load, run)


if __name__ == "__main__":
    asked = parse_load("Temporal: a workflow of no-op activities, test server in memory")
    with serving() as where:
        sample = asyncio.run(measure(asked, where))
    report("temporal", importlib.metadata.version("temporalio"), asked, sample)
