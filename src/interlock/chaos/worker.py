"""Worker process of a chaos run: the real application with a real worker, and faults injected inside the process.

    python -m interlock.chaos.worker '{"project": …, "settings": {…}, "log": …}'

Only inside the process can a fault hit exactly a boundary of the effect ledger. This module wraps the boundaries around
ledger, committer and executors; the code under test has no hooks. Commands arrive as JSON lines on standard input (`arm`,
`disarm`, `clock`), and reports are written as JSON lines to standard output. When the input ends, because the controlling
process has ended, this process ends too.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from interlock.app import App
from interlock.base import loop
from interlock.base.settings import given_settings
from interlock.execution.call import ToolCall
from interlock.execution.effects import EffectLedger
from interlock.execution.executors.tools import ToolExecutor
from interlock.store.commit import Commit, Committer
from interlock.store.database import Row
from interlock.telemetry import logs

BOUNDARIES = (
    "before intend",
    "after intend",
    "before executing",
    "after executing",
    "during call",
    "after call",
    "after commit",
    "after probe",
    "after compensation",
    "after compensation commit",
)

# Only the chaos organisation's runs: against a shared database, runs of other organisations must not be claimed.
_CLAIM = """
update queue set worker = $1, fence = queue.fence + 1, lease_until = now() + make_interval(secs => $2)
    where queue.run_id in (
        select q.run_id from queue q where q.available_at <= now() and (q.worker is null or q.lease_until < now())
        order by q.available_at limit $3 for update skip locked)
    returning queue.run_id, queue.org_id, queue.fence, queue.crash_streak
"""


# Seconds after which a call has reached the counter, if the counter is slow.
_INSIDE_SECONDS = 1.0


class WallClock:
    """Wrong wall clock of this process, as if set by an operator or a broken NTP: shifts every reading of the `time` module.

    Durations stay correct, as after a step of a real clock.
    """

    def __init__(self) -> None:
        self._off_ns = 0
        wall, wall_ns, any_clock = time.time, time.time_ns, time.clock_gettime

        def clock_gettime(which: int) -> float:
            return any_clock(which) + (self._off_ns / 1e9 if which == time.CLOCK_REALTIME else 0.0)

        self._strikes = {
            "time": lambda: wall() + self._off_ns / 1e9,
            "time_ns": lambda: wall_ns() + self._off_ns,
            "clock_gettime": clock_gettime,
        }

    def step(self, seconds: float) -> None:
        """Shifts the clock forward or back by these further seconds."""
        self._off_ns += int(seconds * 1e9)
        for name, strike in self._strikes.items():
            setattr(time, name, strike)


Act = Literal["kill", "stop", "drain", "clock", "tell"]
"""Action at a boundary; `tell` only informs the parent, which crashes the database."""


S = TypeVar("S")
_Method = Callable[..., Awaitable[object]]


class Saboteur:
    """Fault injector: when armed, it acts at the boundary that the worker reaches."""

    def __init__(self, runs: Callable[[], list[str]], clock: WallClock) -> None:
        self._runs = runs
        self._clock = clock
        self._boundary: str | None = None
        self._act: Act = "tell"
        self._seconds = 0.0

    def arm(self, boundary: str, act: Act, seconds: float) -> None:
        """Args:
        seconds: step of `clock`.
        """
        self._boundary, self._act, self._seconds = boundary, act, seconds

    def disarm(self) -> None:
        self._boundary = None

    async def reached(self, boundary: str) -> None:
        """Called by the wrappers, before the code under test continues."""
        if boundary != self._boundary:
            return
        self._boundary = None
        say("struck", boundary=boundary, act=self._act, runs=self._runs())
        match self._act:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "drain":
                os.kill(os.getpid(), signal.SIGTERM)
            case "clock":
                self._clock.step(self._seconds)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
                # Continued. A stop from outside nearly always hits a process whose event loop waits, so timers become due before
                # the code under test continues; without this sleep, every stop would act between two statements.
                await asyncio.sleep(0.02)

    def wrap(self) -> None:
        """Wraps the boundaries around the code that writes the ledger and calls the tools."""
        self._around(EffectLedger, "intend", "before intend", "after intend", _always)
        self._around(EffectLedger, "executing", "before executing", "after executing", _always)
        self._inside(ToolExecutor, "execute", "during call")
        self._around(ToolExecutor, "execute", None, "after call", _mutating)
        self._around(ToolExecutor, "probe", None, "after probe", _always)
        self._around(ToolExecutor, "compensate", None, "after compensation", _always)
        self._around(Committer, "submit", None, "after commit", _settles("succeeded"))
        self._around(Committer, "submit", None, "after compensation commit", _settles("compensated"))

    def _around(self, owner: type, method: str, before: str | None, after: str, concerns: Callable[[S], bool]) -> None:
        original: _Method = getattr(owner, method)

        async def wrapped(this: object, subject: S, *arguments: object, **keywords: object) -> object:
            if before is not None:
                await self.reached(before)
            result = await original(this, subject, *arguments, **keywords)
            if concerns(subject):
                await self.reached(after)
            return result

        setattr(owner, method, wrapped)

    def _inside(self, owner: type, method: str, boundary: str) -> None:
        original: _Method = getattr(owner, method)

        async def later() -> None:
            await asyncio.sleep(_INSIDE_SECONDS)
            await self.reached(boundary)

        async def wrapped(this: object, work: ToolCall, *arguments: object, **keywords: object) -> object:
            waiting = asyncio.create_task(later()) if _mutating(work) else None
            try:
                return await original(this, work, *arguments, **keywords)
            finally:
                if waiting is not None:
                    waiting.cancel()

        setattr(owner, method, wrapped)


def _always(_subject: object) -> bool:
    return True


def _mutating(work: ToolCall) -> bool:
    return work.tool.contract.mutating


def _settles(status: str) -> Callable[[Commit], bool]:
    return lambda commit: any(effect.status == status for effect in commit.effects)


def say(kind: str, **values: object) -> None:
    """Writes one line to the controlling process, unbuffered, because the process may be killed next."""
    os.write(1, (json.dumps({"said": kind, **values}) + "\n").encode())


def claim_only(app: App, org_id: str) -> None:
    """Restricts this process's worker to runs of one organisation."""
    original = app.database.rows

    async def rows(query: str, *args: object, org: str = "") -> list[Row]:
        if query != "claim_runs":
            return await original(query, *args, org=org)

        async def claim() -> list[Row]:
            async with app.database.connection(org_id) as connection:
                return list(await connection.fetch(_CLAIM, *args[:3]))  # the fourth argument is the engine

        return list(await app.database.retrying(claim))

    setattr(app.database, "rows", rows)  # noqa: B010  mypy refuses a plain assignment


async def main(config: dict[str, Any]) -> None:
    logs.configure(level="info", file=Path(config["log"]))
    clock, stop = WallClock(), asyncio.Event()
    app = App(Path(config["project"]), given_settings(config["settings"]))

    def runs() -> list[str]:
        # The worker's own record of the runs that it drives now.
        return list(getattr(app.engine, "_drivers", ()))

    saboteur = Saboteur(runs, clock)
    saboteur.wrap()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with app:
        if config.get("only_org"):
            claim_only(app, config["only_org"])
        await app.start_worker()
        say("ready")
        orders = asyncio.create_task(_take_orders(saboteur, clock, stop))
        await stop.wait()
        orders.cancel()
    say("gone")


async def _take_orders(saboteur: Saboteur, clock: WallClock, stop: asyncio.Event) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        order = json.loads(line)
        match order["do"]:
            case "arm":
                saboteur.arm(order["boundary"], order["act"], order["seconds"])
            case "disarm":
                saboteur.disarm()
            case "clock":
                clock.step(order["seconds"])
    stop.set()


if __name__ == "__main__":
    loop.run(main(json.loads(sys.argv[1])))
