"""What every measured program shares: the command line, the load, and the one line of JSON at the end.

Standard library only, because each program runs in the environment of the product that it measures. A program gives
`measure_async` or `measure_threads` one workflow run as a function; both return a `Sample` and `report` prints it.
"""

import argparse
import asyncio
import json
import statistics
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

SCHEME = "postgresql://"


@dataclass(frozen=True)
class Load:
    """How much to run. `warmup` runs go first at the same concurrency and are not counted."""

    url: str
    steps: int
    runs: int
    concurrency: int
    mode: str

    @property
    def warmup(self) -> int:
        """Runs before the clock starts: connections opened, statements prepared, code paths warm."""
        return max(min(20, self.runs // 4), min(2 * self.concurrency, self.runs))


@dataclass(frozen=True)
class Sample:
    """Duration of each run and of the whole, in seconds; `cpu` is this process's processor time over the same span."""

    durations: list[float]
    elapsed: float
    cpu: float


def parse_load(description: str, modes: tuple[str, ...] = ("default",)) -> Load:
    """The command line that every measured program has. The first of `modes` is the one that is reported."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--url", required=True, help="postgresql://… of an empty database; ?host= may name a socket")
    parser.add_argument("--steps", type=_positive, default=10, help="steps in one run")
    parser.add_argument("--runs", type=_positive, default=200, help="runs that are measured")
    parser.add_argument("--concurrency", type=_positive, default=1, help="runs under way at once")
    parser.add_argument("--mode", choices=modes, default=modes[0], help="variant of the same product, to compare")
    given = parser.parse_args()
    if not given.url.startswith(SCHEME):
        parser.error(f"--url must start with {SCHEME}")
    return Load(given.url, given.steps, given.runs, given.concurrency, given.mode)


async def measure_async(load: Load, run: Callable[[int], Awaitable[object]]) -> Sample:
    """`load.runs` calls of `run(worker)` in one event loop; workers are numbered from 0, one call at a time each."""

    async def drive(count: int) -> list[float]:
        todo = iter(range(count))
        durations: list[float] = []

        async def work(worker: int) -> None:
            for _ in todo:
                began = time.perf_counter()
                await run(worker)
                durations.append(time.perf_counter() - began)

        async with asyncio.TaskGroup() as group:
            for worker in range(load.concurrency):
                group.create_task(work(worker))
        return durations

    await drive(load.warmup)
    began, cpu = time.perf_counter(), time.process_time()
    durations = await drive(load.runs)
    return Sample(durations, time.perf_counter() - began, time.process_time() - cpu)


def measure_threads(load: Load, run: Callable[[int], object]) -> Sample:
    """As `measure_async`, with a thread for each unit of concurrency."""

    def drive(count: int) -> list[float]:
        todo = iter(range(count))
        guard = threading.Lock()
        durations: list[float] = []
        failures: list[BaseException] = []

        def work(worker: int) -> None:
            try:
                while True:
                    with guard:
                        if next(todo, None) is None:
                            return
                    began = time.perf_counter()
                    run(worker)
                    durations.append(time.perf_counter() - began)
            except Exception as failure:  # noqa: BLE001 - raised again below, in the thread that can end the program
                failures.append(failure)

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(load.concurrency)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return durations

    drive(load.warmup)
    began, cpu = time.perf_counter(), time.process_time()
    durations = drive(load.runs)
    return Sample(durations, time.perf_counter() - began, time.process_time() - cpu)


def report(peer: str, version: str, load: Load, sample: Sample, **more: object) -> None:
    """Print the result line. `more` may hold `breakdown`: parts of a step in milliseconds, which the harness shows."""
    per_step = sorted(seconds * 1000 / load.steps for seconds in sample.durations)
    total_steps = load.steps * load.runs
    line = {
        "peer": peer,
        "version": version,
        "mode": load.mode,
        "steps": load.steps,
        "runs": load.runs,
        "warmup_runs": load.warmup,
        "concurrency": load.concurrency,
        "ms_per_step_p50": round(statistics.median(per_step), 4),
        "ms_per_step_p95": round(per_step[min(len(per_step) - 1, int(0.95 * len(per_step)))], 4),
        "steps_per_second": round(total_steps / sample.elapsed, 1),
        "client_cpu_ms_per_step": round(sample.cpu * 1000 / total_steps, 4),
    }
    print(json.dumps(line | more), flush=True)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
