"""How long an accepted run waits until a worker has claimed it.

python benchmarks/pickup.py                # 300 runs a row
python benchmarks/pickup.py --runs 1000

A real application accepts runs one at a time; a real worker claims them, in the same process and in one of its own.
Counted from the call of `accept`, and from its return (then the run is durable), to the moment at which the worker holds
the claim; both clocks are CLOCK_MONOTONIC, which all processes of a machine share. Between two runs there is a pause of
random length, so that runs do not fall into step with the worker's poll. The database is durable (fsync), on disk. What
accepting itself takes, and a commit of one small row, are measured beside it for scale.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
from harness import BenchmarkFailed, Server, private_server
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from interlock.app import App
from interlock.base.settings import DatabaseSettings, SandboxSettings, Settings, WorkerSettings
from interlock.identity.principal import Principal
from interlock.services.administration import LOCAL_ORG
from interlock.store.database import Database
from interlock.telemetry import logs

PATIENCE = 30.0  # seconds without a claim after which the measurement is void
PAUSE = (0.02, 0.12)  # seconds between runs: long enough for the worker to be idle again
WARM_UP = 20
WORKFLOW = """
name: ask
input: {type: object, properties: {text: {type: string}}, required: [text]}
steps:
  - {id: approve, kind: review, title: Send it?, show: {text: $input.text}}
output: {}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument(
        "--waiting", type=int, default=20_000, help="runs asleep in the queue, in the rows that have some"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    logs.configure(level="error")
    if asked.worker:
        asyncio.run(be_worker(json.loads(asked.worker)))
        return 0
    try:
        rows = asyncio.run(measure(asked.runs, asked.waiting))
    except BenchmarkFailed as failure:
        print(f"pickup: {failure}", file=sys.stderr)
        return 1
    table = Table("from", "to", "worker in", "asleep", "runs", "p50 ms", "p95 ms", "max ms", box=SIMPLE)
    for row in rows:
        numbers = [f"{row[name]:.2f}" for name in ("p50", "p95", "max")]
        table.add_row(row["from"], row["to"], row["worker"], str(row["asleep"]), str(row["runs"]), *numbers)
    Console().print(table)
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


async def measure(runs: int, waiting: int) -> list[dict[str, Any]]:
    """All rows: a worker in this process and in another, with an empty queue and a long one."""
    rows: list[dict[str, Any]] = []
    with private_server() as server:
        for asleep in (0, waiting):
            for where in ("same process", "other process"):
                rows += await one_row(server, runs, asleep, where)
    return rows


async def one_row(server: Server, runs: int, asleep: int, where: str) -> list[dict[str, Any]]:
    database = f"pickup_{time.monotonic_ns()}"
    url = server.create_database(database)
    try:
        with tempfile.TemporaryDirectory(prefix="interlock-bench-") as place:
            times = await accept_and_wait(Path(place), url, runs, asleep, where)
    finally:
        server.drop_database(database)
    commits = bare_commits(server, runs)
    found = [
        ("accept called", "claimed", [claimed - called for called, _, claimed in times]),
        ("accept returned", "claimed", [claimed - returned for _, returned, claimed in times]),
        ("accept called", "accept returned", [returned - called for called, returned, _ in times]),
        ("commit called", "commit returned", commits),
    ]
    return [
        {"from": start, "to": end, "worker": where, "asleep": asleep, **summary(seconds)}
        for start, end, seconds in found
    ]


def summary(seconds: list[float]) -> dict[str, Any]:
    ordered = sorted(one * 1000 for one in seconds)
    p95 = statistics.quantiles(ordered, n=20)[-1]
    return {"runs": len(ordered), "p50": statistics.median(ordered), "p95": p95, "max": ordered[-1]}


async def accept_and_wait(
    project: Path, url: str, runs: int, asleep: int, where: str
) -> list[tuple[float, float, float]]:
    """(accept called, accept returned, claimed) of every run, in seconds of CLOCK_MONOTONIC."""
    (project / "workflows").mkdir()
    (project / "workflows" / "ask.yaml").write_text(WORKFLOW)
    claims: dict[str, float] = {}
    times = []
    async with App(project, settings(project, url)) as app:
        principal, _ = await app.admin.local_principal()
        await app.admin.deploy(principal, app.read_project())
        await fill(app, principal, url, asleep)
        async with worker(app, where, project, url, claims):
            for number in range(WARM_UP + runs):
                await asyncio.sleep(random.uniform(*PAUSE))
                called = time.monotonic()
                run_id, _ = await app.submission.accept(principal, "ask", {"text": "x"}, None)
                returned = time.monotonic()
                await until(lambda run_id=run_id: run_id in claims)
                if number >= WARM_UP:
                    times.append((called, returned, claims[run_id]))
    return times


def settings(project: Path, url: str) -> Settings:
    return Settings(
        data_dir=project / "data",
        database=DatabaseSettings(url=url),
        sandbox=SandboxSettings(warm=0),
        worker=WorkerSettings(concurrency=16),
    )


async def fill(app: App, principal: Principal, url: str, count: int) -> None:
    """Runs that sleep until a signal or a distant timer: one accepted as usual, the others copied from it."""
    if not count:
        return
    run_id, _ = await app.submission.accept(principal, "ask", {"text": "x"}, None)
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute(
            "insert into runs (run_id, org_id, workflow, version, status, principal, idempotency_key, input, trace_id, span_id) "
            "select run_id || n, org_id, workflow, version, 'queued', principal, n::text, input, trace_id, span_id "
            "from runs, generate_series(1, %s::integer) n where run_id = %s",
            (count, run_id),
        )
        owner.execute(
            "insert into queue (run_id, org_id, workflow, fence, available_at) select run_id, org_id, workflow, 1, "
            "case when random() < 0.5 then 'infinity'::timestamptz else now() + interval '1 day' end "
            "from runs where run_id <> %s",
            (run_id,),
        )
        owner.execute("update queue set available_at = 'infinity' where run_id = %s", (run_id,))
        owner.execute("analyze queue")


def note_claims(note: Callable[[str], None]) -> Callable[[], None]:
    """From here on, tells of every run that a claim of this process brings, as soon as it is there; undone by the result."""
    original = Database.rows

    async def rows(self: Database, query: str, *args: Any, org: str = "") -> list[Any]:
        found = await original(self, query, *args, org=org)
        if query == "claim_runs":
            for row in found:
                note(row["run_id"])
        return found

    def undo() -> None:
        Database.rows = original  # type: ignore[method-assign]

    Database.rows = rows  # type: ignore[method-assign]
    return undo


@asynccontextmanager
async def worker(app: App, where: str, project: Path, url: str, claims: dict[str, float]) -> AsyncIterator[None]:
    if where == "same process":
        undo = note_claims(lambda run_id: claims.setdefault(run_id, time.monotonic()))
        try:
            await app.start_worker()
            yield
        finally:
            undo()
        return
    config = json.dumps({"project": str(project), "url": url})
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--worker", config, stdout=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    reading = asyncio.create_task(read_claims(process.stdout, claims))
    try:
        await until(lambda: "ready" in claims)
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()
        await reading


async def read_claims(stream: asyncio.StreamReader, claims: dict[str, float]) -> None:
    async for line in stream:
        run_id, at = line.split()
        claims.setdefault(run_id.decode(), float(at))


async def be_worker(config: dict[str, str]) -> None:
    """The worker's process: drives runs until its standard input closes, and says when it claimed which."""
    project = Path(config["project"])
    note_claims(lambda run_id: print(run_id, time.monotonic(), flush=True))
    async with App(project, settings(project, config["url"])) as app:
        await app.start_worker()
        print("ready", time.monotonic(), flush=True)
        await asyncio.to_thread(sys.stdin.read)


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise BenchmarkFailed(f"nothing was claimed for {PATIENCE:.0f} s")
        await asyncio.sleep(0.001)


def bare_commits(server: Server, count: int) -> list[float]:
    database = f"commits_{time.monotonic_ns()}"
    url = server.create_database(database)
    times = []
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("create table t (n integer, org text)")
            for number in range(count):
                called = time.monotonic()
                connection.execute("insert into t values (%s, %s)", (number, LOCAL_ORG))
                times.append(time.monotonic() - called)
    finally:
        server.drop_database(database)
    return times


if __name__ == "__main__":
    sys.exit(main())
