"""From the queue to Temporal: starts the workflows of new runs and delivers what people tell those under way.

Doors know nothing of engines: they write runs, queue rows and signals. A row of ours that is due is claimed, by the rules
and within the limits of all engines, handed on, and leased to Temporal itself for as long as the run works: so it keeps its
place among the runs at once, which `Performer` gives up when the run only waits. What a working run is told is claimed
apart, for it has its place. Signals are deleted only when what came of them is on record, by the process that records it; until
then they are delivered again after a minute, and the workflow knows their ids. Once claimed, nothing here takes long; a
lease is for a bridge that dies.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace

from temporalio.client import Client
from temporalio.common import Priority, WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from interlock.base.background import Loop
from interlock.base.errors import LeaseLost, Unavailable
from interlock.engines.temporal.tasks import SIGNAL_TYPE, WORKFLOW_TYPE, Beginning, SignalInput, Start, WorkerLimits
from interlock.engines.temporal.workflow import program_to_json
from interlock.execution.engine import EngineServices
from interlock.execution.loading import JOURNAL_PAGE, input_facts, load_run, replayed, seed_of
from interlock.execution.run import Run
from interlock.machine import version as machine_version
from interlock.machine.state import state_to_json
from interlock.store.commit import Commit
from interlock.store.database import Row
from interlock.store.listener import Listener
from interlock.store.rows import ForwardedSignal, ReleasedRun
from interlock.telemetry import names
from interlock.telemetry.logs import log

ENGINE = "temporal"
CHANNEL = "interlock_queue"
_POLL_SECONDS = 1.0  # the net under LISTEN/NOTIFY
_AT_ONCE = 32
_LEASE_SECONDS = 30.0  # a few calls to Temporal and one commit


class Bridge:
    """One of these in every worker process; they share the queue as workers of the PostgreSQL engine do.

    Args:
        blind: makes of an organisation's id what Temporal may know it by.
    """

    def __init__(
        self,
        services: EngineServices,
        client: Client,
        *,
        worker_id: str,
        task_queue: str,
        heartbeat: float,
        limits: WorkerLimits,
        blind: Callable[[str], str],
    ) -> None:
        self._services = services
        self._client = client
        self._worker_id = worker_id
        self._task_queue = task_queue
        self._heartbeat = heartbeat
        self._limits = limits
        self._blind = blind
        self._loop = Loop("bridge", self._claim, every=_POLL_SECONDS, longest=_POLL_SECONDS, report=complain)
        self._listener = Listener(services.database, CHANNEL, lambda _: self._loop.wake())

    def start(self) -> None:
        self._loop.start()
        self._listener.start()

    async def close(self) -> None:
        """Forwards the claimed runs, and claims no more."""
        if not self._loop.running:
            return
        await self._loop.stop()
        await self._listener.close()
        with contextlib.suppress(Unavailable):
            await self._services.database.execute("release_leases", self._worker_id)

    # -- claiming ----------------------------------------------------------------------------------------------

    async def _claim(self) -> bool:
        rows = await self._services.database.rows(
            "claim_kept",
            self._worker_id,
            _LEASE_SECONDS,
            _AT_ONCE,
            ENGINE,
            machine_version.OLDEST_MACHINE,
            machine_version.MACHINE_VERSION,
        )
        await asyncio.gather(*map(self._forward, rows))
        return bool(rows)

    async def _forward(self, claimed: Row) -> None:
        run_id, org_id = claimed["run_id"], claimed["org_id"]
        commit = Commit(org_id, fence=(run_id, claimed["fence"]))
        # Its next attention is a signal's; if handing on fails, the next poll's, and a run at work has its place all the same.
        released = ReleasedRun(run_id=run_id, wake_at=None, kept=claimed["works"])
        try:
            row = await self._services.database.row("load_run", run_id, JOURNAL_PAGE, org=org_id)
            assert row is not None, "a queued run has a row"
            if row["signals"] or not row["journal"]:
                released = replace(released, kept=await self._deliver(row))
            else:  # all it was told is on record by now
                at_work = claimed["works"] or row["status"] in {"running", "compensating"}
                released = replace(released, kept=at_work)
            commit.forwarded_signals = [ForwardedSignal(signal_id=signal["id"]) for signal in row["signals"]]
        except Exception as error:  # noqa: BLE001  one run's trouble must not stop the others; it is tried again
            complain(error, run_id)
            released = replace(released, wake_at=self._services.clock.now() + _POLL_SECONDS, failed=True)
        commit.released.append(released)
        try:
            await self._services.committer.submit(commit)
        except LeaseLost:
            pass  # over by now, or another bridge's
        except Exception as error:  # noqa: BLE001  the lease expires, and a worker forwards it again
            complain(error, run_id)

    # -- handing on --------------------------------------------------------------------------------------------

    async def _deliver(self, row: Row) -> bool:
        """Starts the run's workflow or signals it, whichever it needs: a crash may have come between any two steps.

        False if the run needs neither: it is over.
        """
        signals: list[SignalInput] = row["signals"]
        if row["journal"] and await self._signal(row["run_id"], signals):
            return True
        run = await load_run(self._services, row, fence=0)
        start = await self._beginning(run, row)
        if start is None:
            return False
        try:
            await self._client.start_workflow(
                WORKFLOW_TYPE,
                start,
                id=run.run_id,
                task_queue=self._task_queue,
                priority=Priority(priority_key=_priority_key(row["priority"]), fairness_key=self._blind(run.org_id)),
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
            )
        except WorkflowAlreadyStartedError:
            await self._signal(run.run_id, signals)
        return True

    async def _signal(self, run_id: str, signals: list[SignalInput]) -> bool:
        """False if no workflow of this run is there to hear it."""
        try:
            await self._client.get_workflow_handle(run_id).signal(SIGNAL_TYPE, signals)
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return False
            raise
        return True

    async def _beginning(self, run: Run, row: Row) -> Start | None:
        """The input of a new workflow; None for a run that is over and is told nothing that could bring it to life again.

        A journal without a workflow is a run that Temporal lost, or that was terminated there: it goes on from its journal.
        """
        program = run.version.program
        state, seq = await replayed(self._services.database, program, row)
        if state.over and not row["signals"]:
            return None
        rebuilt = seq > 0
        if rebuilt:
            log(names.LOG_RUN_RESUMED, run_id=run.run_id, events=seq)
        return {
            "run_id": run.run_id,
            "org_id": run.org_id,
            "program": program_to_json(program),
            "begin": None if rebuilt else await self._first(run, row["machine"]),
            "state": state_to_json(state) if rebuilt else None,
            "seq": seq,
            "unrecorded": [],
            "signals": row["signals"],
            "seen": [],
            "rebuilt": rebuilt,
            "heartbeat": self._heartbeat,
            "limits": self._limits,
        }

    @staticmethod
    async def _first(run: Run, machine: int) -> Beginning:
        return {"seed": seed_of(run.run_id), "facts": dict(await input_facts(run)), "machine": machine}


def _priority_key(priority: int) -> int:
    """Of -100 to 100, most urgent first, in Temporal's five: 1 to 5, and 3 for what has none."""
    return 3 - (priority > 0) - (priority > 50) + (priority < 0) + (priority < -50)


def complain(error: BaseException, run_id: str | None = None) -> None:
    """Into the log: whose trouble it is, and never twice the same stack for a server that is down."""
    about = {"run_id": run_id} if run_id else {}
    if isinstance(error, Unavailable):
        log(names.LOG_DATABASE_DOWN, error.message, level="error", **about)
    elif isinstance(error, RPCError):
        log(names.LOG_TEMPORAL_DOWN, f"Temporal refused a call: {error.status.name}", level="error", **about)
    else:
        log(names.LOG_INTERNAL, str(error), level="error", exc_info=error, **about)
