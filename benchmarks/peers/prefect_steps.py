"""A bare Prefect flow of no-op tasks, results persisted, against a Prefect server of its own.

The server keeps its state in the PostgreSQL that everyone here uses if that has the extension `pg_trgm`, which Prefect
needs and many embedded servers lack, and otherwise in a SQLite file, which is its default; the line says which. No
telemetry, no analytics, no update check, no logs to the server (each would cost it another request).
"""

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import psycopg
from measure import Load, Sample, measure_async, parse_load, report

QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "ERROR",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "true",
}


def database_url(url: str, home: Path) -> tuple[str, str]:
    with psycopg.connect(url) as connection:
        found = connection.execute("select from pg_available_extensions where name = 'pg_trgm'").fetchone()
    if found is None:
        return "sqlite", f"sqlite+aiosqlite:///{home}/prefect.db"
    return "postgresql", url.replace("postgresql://", "postgresql+asyncpg://", 1)


@contextmanager
def prefect_server(load: Load, home: Path) -> Iterator[str]:
    """Sets this process's environment up too: the client reads its own when it is imported."""
    kind, database = database_url(load.url, home)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(QUIET)
    os.environ.update(
        PREFECT_HOME=str(home),
        PREFECT_API_URL=f"http://127.0.0.1:{port}/api",
        PREFECT_API_DATABASE_CONNECTION_URL=database,
    )
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if server.poll() is not None:
                raise SystemExit("the Prefect server ended while it started")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.2)
        yield kind
    finally:
        server.terminate()
        server.wait()


async def measure(load: Load) -> Sample:
    # Here, because the environment that says where the server is must be set before.
    from prefect import flow, task  # noqa: PLC0415

    @task(persist_result=True, log_prints=False)
    async def step(number: int) -> dict[str, int]:
        return {"value": number}

    @flow(persist_result=True, validate_parameters=False)
    async def steps(count: int) -> dict[str, int]:
        result = {"value": 0}
        for number in range(count):
            result = await step(number)
        return result

    async def run(_worker: int) -> None:
        await steps(load.steps)

    return await measure_async(load, run)


def main() -> None:
    asked = parse_load("Prefect: a flow of no-op tasks, results persisted")
    with tempfile.TemporaryDirectory(prefix="interlock-bench-", dir="/var/tmp") as place:
        with prefect_server(asked, Path(place)) as kind:
            sample = asyncio.run(measure(asked))
        report("prefect", f"{version('prefect')} ({kind})", asked, sample)


if __name__ == "__main__":
    main()
