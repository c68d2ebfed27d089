"""A worker process for the tests. It kills itself at a chosen point, once enough runs have reached it.

    python worker_process.py '{"project": …, "settings": {…}, "log": …, "ready": …, "stopping": …, "crash": [point, runs],
                               "poison": workflow, "wall": seconds, "together": calls}'

The points are wrapped around the ledger, the committer and the tools from here; the code under test knows nothing of them.
A run that reaches the point is held there, so that one kill strikes several runs at the same place. `poison` names a workflow
whose steps end the process, as a library does that runs into a segmentation fault; `wall` is by how much its wall clock is wrong;
batched calls are handed in once `together` of them wait, however slowly they came.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from interlock.app import App
from interlock.base import loop
from interlock.base.settings import Settings
from interlock.chaos.worker import WallClock
from interlock.execution.batch.calls import BatchedCalls
from interlock.execution.call import ModelCall
from interlock.execution.effects import EffectLedger
from interlock.execution.run import StepExecution, StepOutcome
from interlock.execution.steps import Steps
from interlock.store.commit import Committer
from interlock.telemetry import logs
from interlock.tools.registry import Tools


def crash_at(point: str, runs: int) -> None:
    reached = 0

    async def die() -> None:
        nonlocal reached
        reached += 1
        if runs == 0:  # stopped here, until somebody wakes the process
            os.kill(os.getpid(), signal.SIGSTOP)
            return
        if reached >= runs:
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.Event().wait()

    def wrap(owner: Any, method: str, matches: Callable[..., bool], *, before: bool = False) -> None:
        original = getattr(owner, method)

        async def wrapped(self: Any, *arguments: Any, **keywords: Any) -> Any:
            if before and matches(*arguments):
                await die()
            result = await original(self, *arguments, **keywords)
            if not before and matches(*arguments):
                await die()
            return result

        setattr(owner, method, wrapped)

    def always(*_: Any) -> bool:
        return True

    def called(function: str) -> Callable[..., bool]:
        return lambda tool, what, *_: what == function and tool.contract.mutating

    def settled(status: str) -> Callable[..., bool]:
        return lambda commit: any(effect.status == status for effect in commit.effects)

    wraps: dict[str, Callable[[], None]] = {
        "before intend": lambda: wrap(EffectLedger, "intend", always, before=True),
        "after intend": lambda: wrap(EffectLedger, "intend", always),
        "before executing": lambda: wrap(EffectLedger, "executing", always, before=True),
        "after executing": lambda: wrap(EffectLedger, "executing", always),
        "after call": lambda: wrap(Tools, "call", called("run")),
        "after settle": lambda: wrap(Committer, "submit", settled("succeeded")),
        "after compensation": lambda: wrap(Tools, "call", called("compensate")),
        "after compensation settle": lambda: wrap(Committer, "submit", settled("compensated")),
    }
    wraps[point]()


def die_of(workflow: str) -> None:
    """Performing a step of this workflow ends the process at once: no exception, no signal that could be handled."""
    original = Steps.perform

    async def perform(self: Steps, work: StepExecution) -> StepOutcome:
        if work.run.version.name == workflow:
            os._exit(139)
        return await original(self, work)

    setattr(Steps, "perform", perform)  # noqa: B010  a plain assignment is what mypy refuses


def gather(calls: int) -> None:
    original, enough = BatchedCalls._submit_batch, False

    async def hand_in(self: BatchedCalls, work: ModelCall, batches: Any) -> None:
        nonlocal enough
        async with self._database.connection(work.caller.org_id) as connection:
            enough = enough or await connection.fetchval("select count(*) from batched_calls") >= calls
        if enough:
            await original(self, work, batches)

    setattr(BatchedCalls, "_submit_batch", hand_in)  # noqa: B010  as above


async def main(config: dict[str, Any]) -> None:
    if config.get("crash"):
        crash_at(*config["crash"])
    if config.get("poison"):
        die_of(config["poison"])
    gather(config.get("together", 0))
    WallClock().step(config.get("wall", 0.0))
    logs.configure(level="info", file=Path(config["log"]))
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with App(Path(config["project"]), Settings(**config["settings"])) as app:
        await app.start_worker()
        Path(config["ready"]).touch()
        await stopped.wait()
        Path(config["stopping"]).touch()


if __name__ == "__main__":
    loop.run(main(json.loads(sys.argv[1])))  # as `interlock worker` does
