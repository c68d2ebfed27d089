"""What followers of an idle run cost: processor time for each of them, and the delay of another client's requests.

    python benchmarks/followers.py                                 # 5,000 events, 1 and 20 followers
    python benchmarks/followers.py --events 30000 --seconds 20

A server process of its own, without a worker, over a private PostgreSQL; a waiting run with a long journal, of which nothing new
comes. Rounds without, with one and with all followers are interleaved, so that a machine that grows slower shows in all of them.
Processor time is that of the server and of all its database's processes, less that of the rounds without followers. The exit code
is 1 if a follower costs a hundredth of a core or more, or if all of them more than double the median of /healthz.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import psycopg
from harness import BenchmarkFailed, private_server
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from interlock.api.server import Server
from interlock.app import App
from interlock.base import loop
from interlock.base.settings import DatabaseSettings, SandboxSettings, Settings
from interlock.telemetry import logs

WORKFLOW = """\
name: wait
input: {}
steps:
  - {id: heard, kind: wait, signal: go}
output: {}
"""
PAUSE_SECONDS = 0.01  # between two requests of the client whose delay is measured
CPU_TARGET, DELAY_TARGET = 0.01, 2.0
TICKS = os.sysconf("SC_CLK_TCK")


async def serve(url: str, directory: Path) -> None:
    """The measured process: serves until SIGTERM; prints one line of JSON once it is up."""
    settings = Settings(
        data_dir=directory / "data", database=DatabaseSettings(url=url), sandbox=SandboxSettings(warm=0)
    )
    async with App(directory, settings) as app:
        principal, key = await app.admin.local_principal()
        await app.admin.deploy(principal, app.read_project())
        run_id, _ = await app.submission.accept(principal, "wait", {}, None)
        server = Server(app.services, host="127.0.0.1", port=0, payload_bytes=settings.limits.payload_bytes)
        await server.start()
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        print(json.dumps({"url": server.url, "key": key, "run_id": run_id}), flush=True)
        await stop.wait()
        await server.stop()


def lengthen(url: str, run_id: str, events: int) -> None:
    """Makes the run a waiting one with a journal of so many entries, as its owner could not: followers fold nothing."""
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute(
            "insert into journal (run_id, org_id, seq, event) select run_id, org_id, n, jsonb_build_object('type', "
            "'timer_fired', 'timer', 'retry:heard:' || n, 'at', n) from runs, generate_series(1, %s) as n where run_id = %s",
            (events, run_id),
        )
        owner.execute("delete from queue where run_id = %s", (run_id,))
        owner.execute("update runs set status = 'waiting' where run_id = %s", (run_id,))
        owner.execute("analyze journal")


def postmaster_of(url: str) -> int:
    """Process id of the database's first process."""
    with psycopg.connect(url) as connection:
        row = connection.execute("show data_directory").fetchone()
        assert row is not None
        return int((Path(row[0]) / "postmaster.pid").read_text().split()[0])


def ticks(pid: int) -> int:
    """Processor time of a process, children that ended included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15]))


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@asynccontextmanager
async def followers(client: httpx.AsyncClient, run_id: str, number: int, last: int) -> AsyncIterator[None]:
    """So many streams that have caught up: each has read the journal's last entry."""
    async with AsyncExitStack() as stack:
        tasks = []
        for _ in range(number):
            response = await stack.enter_async_context(client.stream("GET", f"/v1/runs/{run_id}/events"))
            lines = response.aiter_lines()
            async for line in lines:
                if line == f"id: {last}":
                    break
            tasks.append(asyncio.create_task(_drain(lines)))
        try:
            yield
            if any(task.done() for task in tasks):
                raise BenchmarkFailed("a stream ended while it was measured")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _drain(lines: AsyncIterator[str]) -> None:
    async for _ in lines:
        pass


async def round_of(
    client: httpx.AsyncClient, pids: list[int], run_id: str, number: int, last: int, seconds: float
) -> tuple[float, float]:
    """(cores used, median milliseconds of /healthz) with so many followers.

    The processor time is taken while no other request comes, the delay afterwards.
    """
    async with followers(client, run_id, number, last):
        await asyncio.sleep(2)  # past the second look, which comes a second after the first
        begin, at = sum(map(ticks, pids)), time.monotonic()
        await asyncio.sleep(seconds)
        used = (sum(map(ticks, pids)) - begin) / TICKS / (time.monotonic() - at)
        delays = []
        end = time.monotonic() + seconds / 2
        while time.monotonic() < end:
            at = time.perf_counter()
            (await client.get("/healthz")).raise_for_status()
            delays.append((time.perf_counter() - at) * 1000)
            await asyncio.sleep(PAUSE_SECONDS)
    return used, statistics.median(delays)


async def measure(url: str, postmaster: int, options: argparse.Namespace) -> dict[int, list[tuple[float, float]]]:
    """Rounds by number of followers."""
    with tempfile.TemporaryDirectory(prefix="interlock-bench-") as name:
        directory = Path(name)
        (directory / "workflows").mkdir()
        (directory / "workflows" / "wait.yaml").write_text(WORKFLOW)
        process = await asyncio.create_subprocess_exec(
            sys.executable, __file__, "--serve", url, name, stdout=asyncio.subprocess.PIPE
        )
        try:
            assert process.stdout is not None
            line = await process.stdout.readline()
            if not line:
                raise BenchmarkFailed("the server did not start")
            served = json.loads(line)
            lengthen(url, served["run_id"], options.events)
            headers = {"Authorization": f"Bearer {served['key']}"}
            limits = httpx.Limits(max_connections=options.followers + 5)
            found: dict[int, list[tuple[float, float]]] = {0: [], 1: [], options.followers: []}
            async with httpx.AsyncClient(
                base_url=served["url"], headers=headers, timeout=60, trust_env=False, limits=limits
            ) as client:
                for _ in range(options.rounds):
                    for number, rounds in found.items():
                        pids = [process.pid, postmaster, *children(postmaster)]
                        run = (served["run_id"], number, options.events, options.seconds)
                        rounds.append(await round_of(client, pids, *run))
            return found
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


def report(found: dict[int, list[tuple[float, float]]], events: int) -> bool:
    """Prints the table; whether both targets hold."""
    cores = {number: statistics.median(one[0] for one in rounds) for number, rounds in found.items()}
    delay = {number: statistics.median(one[1] for one in rounds) for number, rounds in found.items()}
    most = max(found)
    title = f"Followers of an idle run of {events:,} events"
    table = Table("followers", "cores", "cores a follower", "/healthz p50 ms", "to none", box=SIMPLE, title=title)
    for number in found:
        each = f"{(cores[number] - cores[0]) / number:.4f}" if number else ""
        row = (f"{cores[number]:.4f}", each, f"{delay[number]:.2f}", f"{delay[number] / delay[0]:.2f}")
        table.add_row(str(number), *row)
    Console().print(table)
    each = max((cores[number] - cores[0]) / number for number in found if number)
    return each < CPU_TARGET and delay[most] / delay[0] <= DELAY_TARGET


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure what followers of an idle run cost.")
    parser.add_argument("--events", type=int, default=5000)
    parser.add_argument("--followers", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", nargs=2, metavar=("URL", "DIRECTORY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    logs.configure(level="error")
    if options.serve:
        loop.run(serve(options.serve[0], Path(options.serve[1])))
        return 0
    with private_server() as server:
        url = server.create_database("followers")
        found = asyncio.run(measure(url, postmaster_of(url), options))
    good = report(found, options.events)
    print("targets hold" if good else "a target is missed")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
