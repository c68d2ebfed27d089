"""Faults. Each call injects a fault once, while work is in progress, and returns what it hit, or None if it hit nothing."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from interlock.chaos.fleet import Fleet, Struck, Worker
from interlock.chaos.oracle import ChaosProvider, Oracle
from interlock.chaos.people import People
from interlock.chaos.watch import RunWatch
from interlock.chaos.worker import BOUNDARIES
from interlock.store.embedded import EmbeddedPostgres

ARMED_SECONDS = 5.0  # maximum time for a worker to reach a boundary
SPELL_SECONDS = 1.5  # duration of a partition
# Seconds; an hour exceeds the stall limit of a run. Timers follow the database's time, so a step has no effect.
CLOCK_STEPS = (-3600.0, -30.0, 4.0, 3600.0)

# Boundaries at which it is unknown whether the effect happened or was recorded.
_PREFERRED = frozenset({"during call", "after call", "after probe", "after compensation"})
# Boundaries that runs rarely reach without help: a slow call, an effect with unknown outcome.
_NEEDED = {"during call": "slow", "after probe": "drop"}


@dataclass(slots=True)
class Strike:
    """A fault that hit work in progress.

    Attributes:
        at: `time.monotonic()`; for a lasting fault, its end.
        runs: runs whose worker it hit; empty for faults of requests.
        hits: number of runs or requests hit.
    """

    fault: str
    detail: str
    at: float
    runs: list[str] = field(default_factory=list)
    hits: int = 0


@dataclass(slots=True)
class Scene:
    """Targets of faults.

    Attributes:
        burst: starts more runs at once than the workers can drive.
        calm: while it is not set, no new runs are started, because a fault is being prepared that must not miss them.
        held: total seconds for which `calm` was not set.
    """

    fleet: Fleet
    oracle: Oracle
    provider: ChaosProvider
    people: People
    watch: RunWatch
    random: random.Random
    lease_seconds: float
    postgres: EmbeddedPostgres | None
    burst: Callable[[], Awaitable[None]]
    boundaries: tuple[str, ...] = BOUNDARIES
    met: dict[tuple[str, str], float] = field(default_factory=dict)
    calm: asyncio.Event = field(default_factory=asyncio.Event)
    held: float = 0.0

    async def prepare(self, preparation: Awaitable[None]) -> None:
        """Prepares a fault while no new runs are started."""
        began = time.monotonic()
        self.calm.clear()
        try:
            await preparation
        finally:
            self.held += time.monotonic() - began
            self.calm.set()

    def next_boundary(self, act: str) -> str:
        """The boundary with the fewest hits of this fault; those around the call itself come first and are repeated if missed."""
        order = sorted(self.boundaries, key=lambda one: (one not in _PREFERRED, self.boundaries.index(one)))
        return min(order, key=lambda one: self.met.get((act, one), 0.0))

    def note(self, act: str, boundary: str, *, struck: bool) -> None:
        """Records the result of a fault."""
        self.met[act, boundary] = self.met.get((act, boundary), 0.0) + (1.0 if struck else 0.4)


async def _at_boundary(scene: Scene, act: str, *, seconds: float = 0.0) -> tuple[list[Worker], Strike] | None:
    """Arms every free worker; the first to reach the boundary is hit, and the others are disarmed unless they arrive as early."""
    workers = scene.fleet.free
    if not workers:
        await asyncio.sleep(0.5)
        return None
    boundary = scene.next_boundary(act)
    if boundary in _NEEDED:
        await scene.oracle.fault(_NEEDED[boundary], seconds=ARMED_SECONDS, requests=3)
    waiting = {asyncio.create_task(one.struck(boundary, act, ARMED_SECONDS, seconds)): one for one in workers}
    left = set(waiting)
    struck: list[tuple[Worker, Struck]] = []
    while left and not struck:
        done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
        struck += [(waiting[task], said) for task in done if (said := task.result())]
    for task in left:
        await waiting[task].order("disarm")
    if left:
        done, left = await asyncio.wait(left, timeout=0.3)
        struck += [(waiting[task], said) for task in done if (said := task.result())]
    for task in left:
        task.cancel()
    scene.note(act, boundary, struck=bool(struck))
    if not struck:
        return None
    runs = [run_id for _, said in struck for run_id in said.runs]
    at = min(said.at for _, said in struck)
    return [worker for worker, _ in struck], Strike(act, boundary, at, runs, len(runs))


async def kill(scene: Scene) -> Strike | None:
    """SIGKILL of a worker exactly at a boundary of the effect ledger."""
    found = await _at_boundary(scene, "kill")
    return found[1] if found else None


async def stop(scene: Scene) -> Strike | None:
    """SIGSTOP at a boundary; the worker continues when its lease has expired and another worker drives its runs."""
    found = await _at_boundary(scene, "stop")
    if found is None:
        return None
    workers, strike = found
    for worker in workers:
        worker.stopped = True
    seconds = scene.lease_seconds * scene.random.uniform(1.3, 2.0)
    scene.fleet.wake_later(seconds, workers)
    return strike


async def drain(scene: Scene) -> Strike | None:
    """SIGTERM during work, while the worker's replacement is already running, as in a rolling deployment."""
    await scene.prepare(scene.fleet.add_successor())
    found = await _at_boundary(scene, "drain")
    if found is None:
        return None
    for worker in found[0]:
        worker.leaving = True
    return found[1]


async def clock(scene: Scene) -> Strike | None:
    """Step of a worker's wall clock during work, and back after two seconds."""
    seconds = scene.random.choice(CLOCK_STEPS)
    found = await _at_boundary(scene, "clock", seconds=seconds)
    if found is None:
        return None
    workers, strike = found
    await asyncio.sleep(2)
    for worker in workers:
        await worker.order("clock", seconds=-seconds)
    strike.detail = f"{seconds:+g} s {strike.detail}"
    return strike


async def postgres(scene: Scene) -> Strike | None:
    """Crash of PostgreSQL during work, and in half of the cases another one during its recovery."""
    server = scene.postgres
    assert server is not None, "skipped on a shared server"
    found = await _at_boundary(scene, "tell")
    if found is None:
        return None
    strike = found[1]
    strike.fault, strike.runs = "postgres", sorted({*strike.runs, *scene.watch.driven})
    if not await asyncio.to_thread(server.crash):
        return None
    again = False
    starting = asyncio.create_task(asyncio.to_thread(_start, server))
    if scene.random.random() < 0.5:
        while not starting.done() and not again:
            again = await asyncio.to_thread(server.crash, while_starting=True)
            await asyncio.sleep(0.002)
    await starting
    strike.detail, strike.hits = f"{strike.detail}{', again in recovery' if again else ''}", len(strike.runs)
    return strike


def _start(server: EmbeddedPostgres) -> None:
    for attempt in range(5):
        try:
            server.start()
        except Exception:  # any error of a start that was crashed
            if attempt == 4:
                raise
        else:
            return


async def _spell(hits: Callable[[], Awaitable[int]]) -> int:
    """Waits until a partition has hit a request or its time is over; returns the number of hits."""
    before = await hits()
    deadline = time.monotonic() + ARMED_SECONDS
    while await hits() == before and time.monotonic() < deadline:  # noqa: ASYNC110  the count is in another process
        await asyncio.sleep(0.1)
    await asyncio.sleep(SPELL_SECONDS)
    return await hits() - before


async def provider(scene: Scene) -> Strike | None:
    """Failure of the model provider for some time: it refuses connections, hangs or answers errors."""

    async def hits() -> int:
        return scene.provider.struck

    mode = scene.random.choice(("refuse", "hang", "error"))
    scene.provider.fault = mode
    struck = await _spell(hits)
    scene.provider.fault = None
    return Strike("provider", mode, time.monotonic(), hits=struck) if struck else None


async def tool(scene: Scene) -> Strike | None:
    """Failure of the service behind the tools for some time: it refuses connections or hangs, without performing effects."""
    return await _partition(scene, "tool", scene.random.choice(("refuse", "hang")), requests=6)


async def timeout(scene: Scene) -> Strike | None:
    """Execute-and-timeout: the effect is performed, but the caller gets a closed connection or no answer."""
    return await _partition(scene, "timeout", scene.random.choice(("drop", "drop", "late")), requests=3)


async def _partition(scene: Scene, fault: str, mode: str, *, requests: int) -> Strike | None:
    await scene.oracle.fault(mode, seconds=ARMED_SECONDS + SPELL_SECONDS, requests=requests)
    struck = await _spell(scene.oracle.struck)
    await scene.oracle.fault(mode, seconds=0, requests=0)
    return Strike(fault, mode, time.monotonic(), hits=struck) if struck else None


async def signals(scene: Scene) -> Strike | None:
    """For some time people answer out of order, and every decision is delivered two more times."""

    async def hits() -> int:
        return scene.people.repeated

    scene.people.disorderly = True
    struck = await _spell(hits)
    scene.people.disorderly = False
    return Strike("signals", "twice more, out of order", time.monotonic(), hits=struck) if struck else None


async def spike(scene: Scene) -> Strike | None:
    """Load spike: more runs than all workers together can drive, so that some must wait."""
    await scene.burst()
    await asyncio.sleep(1)  # by now the workers have claimed all runs they can drive
    waiting = scene.watch.waiting
    return Strike("spike", f"{waiting} runs had to wait", time.monotonic(), hits=waiting) if waiting else None


FAULTS: dict[str, Callable[[Scene], Awaitable[Strike | None]]] = {
    one.__name__: one for one in (kill, stop, postgres, provider, tool, timeout, signals, drain, clock, spike)
}

TURNS = {"spike": 3, "kill": 0.4, "stop": 0.7}
"""Weight of a fault's turn: a spike's runs must also be finished; faults of workers have many boundaries."""
