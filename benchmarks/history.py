"""What a step costs against the length of its run's history: the first and the last tenth of long runs.

    python benchmarks/history.py                        # runs of 10, 100 and 500 steps
    python benchmarks/history.py --lengths 100,1000

One run at a time, model steps in a row against a model that answers at once, everything on, a private PostgreSQL. A step's
time is the distance between two transactions' ends; its processor time is this process's over the same tenth. A curve
that stays flat has the same figures in every tenth and in every row.
"""

import argparse
import asyncio
import gc
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import BenchmarkFailed, private_server
from interlock_steps import InstantModel, write_project
from peers.measure import Load
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from interlock.app import App
from interlock.base.settings import DatabaseSettings, SandboxSettings, Settings
from interlock.store.commit import Commit
from interlock.telemetry import logs

Tenth = tuple[float, float]
"""Milliseconds and milliseconds of processor time a step."""


async def measure(load: Load, runs: int) -> list[tuple[Tenth, Tenth]]:
    """(first tenth, last tenth) of each run, after one that warms up."""
    with tempfile.TemporaryDirectory(prefix="interlock-bench-") as place:
        project = Path(place)
        write_project(project, load)
        settings = Settings(
            data_dir=project / "data", database=DatabaseSettings(url=load.url), sandbox=SandboxSettings(warm=0)
        )
        async with App(project, settings, models=InstantModel()) as app:
            principal, _ = await app.admin.local_principal()
            await app.admin.deploy(principal, app.read_project())
            await app.start_worker()
            durable: list[Tenth] = []
            original = app.committer.submit
            ended = asyncio.Event()

            async def submit(commit: Commit) -> None:
                await original(commit)
                if commit.journal:
                    durable.append((time.perf_counter(), time.process_time()))
                if commit.finished:
                    ended.set()

            app.committer.submit = submit  # type: ignore[method-assign]
            found = []
            for _ in range(runs + 1):
                durable.clear()
                ended.clear()
                gc.collect()
                await app.submission.accept(principal, "bench", {"text": "person"}, None)
                await ended.wait()
                found.append(_tenths(durable[-load.steps - 1 :]))
            return found[1:]


def _tenths(durable: list[Tenth]) -> tuple[Tenth, Tenth]:
    steps = len(durable) - 1
    part = max(1, steps // 10)
    return _between(durable[0], durable[part], part), _between(durable[-part - 1], durable[-1], part)


def _between(begin: Tenth, end: Tenth, steps: int) -> Tenth:
    return (end[0] - begin[0]) * 1000 / steps, (end[1] - begin[1]) * 1000 / steps


def main() -> int:
    parser = argparse.ArgumentParser(description="Cost of a step against the length of its run's history.")
    parser.add_argument("--lengths", default="10,100,500", help="steps in a run, a list (default 10,100,500)")
    parser.add_argument("--steps", type=int, default=1500, help="steps measured for each length (default 1500)")
    asked = parser.parse_args()
    logs.configure(level="error")
    title = "Milliseconds a step, medians of runs\n(processor time of the client in brackets)"
    table = Table("steps in a run", "runs", "first tenth", "last tenth", "last / first CPU", title=title, box=SIMPLE)
    try:
        with private_server() as server:
            for length in (int(part) for part in asked.lengths.split(",")):
                load = Load(server.create_database(f"history_{length}"), length, 1, 1, "model")
                runs = max(3, asked.steps // length)
                table.add_row(str(length), str(runs), *_row(asyncio.run(measure(load, runs))))
    except BenchmarkFailed as failure:
        print(f"history: {failure}", file=sys.stderr)
        return 1
    Console().print(table)
    return 0


def _row(found: list[tuple[Tenth, Tenth]]) -> list[str]:
    first, last = ([statistics.median(run[end][part] for run in found) for part in (0, 1)] for end in (0, 1))
    ratio: Any = last[1] / first[1]
    return [f"{first[0]:.2f} ({first[1]:.2f})", f"{last[0]:.2f} ({last[1]:.2f})", f"{ratio:.2f}"]


if __name__ == "__main__":
    sys.exit(main())
