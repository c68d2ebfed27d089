"""Worker processes of a chaos run, controlled by their parent: start, fault injection, replacement."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NotRequired, TypedDict

from interlock.base.errors import Unavailable

START_SECONDS = 60.0


@dataclass(slots=True)
class Struck:
    """Last report of a worker before a fault hit it.

    Attributes:
        at: `time.monotonic()` of the report.
        runs: runs that it drove.
    """

    boundary: str
    at: float
    runs: list[str]


class Said(TypedDict):
    """A message of a worker; `boundary` and `runs` come with kind "struck"."""

    said: str
    boundary: NotRequired[str]
    runs: NotRequired[list[str]]


@dataclass(slots=True, eq=False)
class Worker:
    """One worker process."""

    number: int
    process: asyncio.subprocess.Process
    stopped: bool = False
    leaving: bool = False
    _said: dict[str, asyncio.Queue[Said]] = field(default_factory=dict)
    _ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def free(self) -> bool:
        """True if the worker runs and is under no fault."""
        return self.process.returncode is None and not self.stopped and not self.leaving

    async def order(self, do: str, **values: object) -> None:
        stdin = self.process.stdin
        assert stdin is not None
        with contextlib.suppress(ConnectionError):
            stdin.write((json.dumps({"do": do, **values}) + "\n").encode())
            await stdin.drain()

    async def received(self, kind: str, seconds: float) -> Said | None:
        """The worker's next message of this kind; None after a time-out or its end."""
        queue = self._said.setdefault(kind, asyncio.Queue())
        getting, ended = asyncio.ensure_future(queue.get()), asyncio.ensure_future(self._ended.wait())
        try:
            await asyncio.wait({getting, ended}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                return getting.result()
        finally:
            ended.cancel()
            getting.cancel()
        return queue.get_nowait() if not queue.empty() else None

    async def struck(self, boundary: str, act: str, patience: float, seconds: float = 0.0) -> Struck | None:
        """Arms the worker and waits until it reaches the boundary; None if it does not within `patience` seconds."""
        await self.order("arm", boundary=boundary, act=act, seconds=seconds)
        said = await self.received("struck", patience)
        if said is None:
            await self.order("disarm")
            said = await self.received("struck", 0.2)  # the message may have been in transit
        return Struck(said["boundary"], time.monotonic(), said["runs"]) if said else None

    async def listen(self) -> None:
        stdout = self.process.stdout
        assert stdout is not None
        async for line in stdout:
            with contextlib.suppress(ValueError):
                said = json.loads(line)
                self._said.setdefault(said["said"], asyncio.Queue()).put_nowait(said)
        await self.process.wait()
        self._ended.set()


class Fleet:
    """Keeps a fixed number of workers running and replaces those that have ended.

    Args:
        config: configuration of a worker process, without its log.
    """

    def __init__(self, home: Path, config: Mapping[str, object], size: int) -> None:
        self._home = home
        self._config = config
        self._size = size
        self._workers: list[Worker] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._number = 0

    @property
    def free(self) -> list[Worker]:
        """Running workers that are under no fault."""
        return [worker for worker in self._workers if worker.free]

    async def start(self) -> None:
        workers = [await self._spawn() for _ in range(self._size)]
        for worker in workers:
            await self._until_ready(worker)
        self._keeper = asyncio.create_task(self._keep())

    async def add_successor(self) -> None:
        """Starts one more worker, as the replacement of one that is about to drain; it is ready on return."""
        if self._staying <= self._size:
            await self._until_ready(await self._spawn())

    def wake_later(self, seconds: float, workers: list[Worker]) -> None:
        """Continues stopped workers after some seconds, or when the fleet ends, if that is earlier."""

        async def wait() -> None:
            try:
                await asyncio.sleep(seconds)
            finally:
                for worker in workers:
                    self.wake(worker)

        task = asyncio.create_task(wait())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def wake(self, worker: Worker) -> None:
        """Continues a stopped worker."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.process.pid, signal.SIGCONT)
        worker.stopped = False

    async def heal(self) -> None:
        """Continues stopped workers and waits until the fleet is complete."""
        for worker in self._workers:
            if worker.stopped:
                self.wake(worker)
        try:
            async with asyncio.timeout(START_SECONDS):
                while len(self.free) < self._size:  # noqa: ASYNC110  processes have no event for it
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise Unavailable(f"only {len(self.free)} of {self._size} workers came back after the faults") from None

    async def close(self) -> None:
        """Ends all workers, first by SIGTERM."""
        if self._keeper is not None:
            self._keeper.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for worker in self._workers:
            self.wake(worker)
            with contextlib.suppress(ProcessLookupError):
                worker.process.terminate()
        for worker in self._workers:
            try:
                async with asyncio.timeout(20):
                    await worker.process.wait()
            except TimeoutError:
                worker.process.kill()
                await worker.process.wait()

    @property
    def _staying(self) -> int:
        # A stopped worker counts, because it will continue. A leaving one does not, because it has a successor.
        return sum(one.process.returncode is None and not one.leaving for one in self._workers)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(0.1)
            self._workers = [worker for worker in self._workers if worker.process.returncode is None]
            if self._staying < self._size:
                await self._spawn()

    async def _spawn(self) -> Worker:
        self._number += 1
        log = self._home / "log" / f"worker{self._number}.jsonl"
        log.parent.mkdir(exist_ok=True)
        temporary = self._home / "tmp"
        temporary.mkdir(exist_ok=True)
        config = json.dumps({**self._config, "log": str(log)})
        kept = {name: value for name, value in os.environ.items() if not name.startswith("INTERLOCK_")}
        with log.with_suffix(".err").open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "interlock.chaos.worker", config),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=output,
                env={**kept, "TMPDIR": str(temporary)},
                start_new_session=True,  # Ctrl-C is for the parent, which ends its workers itself
            )
        worker = Worker(self._number, process)
        self._workers.append(worker)
        task = asyncio.create_task(worker.listen())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return worker

    async def _until_ready(self, worker: Worker) -> None:
        if await worker.received("ready", START_SECONDS) is None:
            error = (self._home / "log" / f"worker{worker.number}.err").read_text()[-500:]
            raise Unavailable(f"a worker of the chaos run did not start: {error.strip() or 'no output'}")
