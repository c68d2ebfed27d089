"""Signals, pause, resume and cancellation of a run under way. The signal and its audit entry commit
together."""

from __future__ import annotations

import asyncpg

from interlock.base.clock import Clock
from interlock.base.errors import Conflict, NotFound
from interlock.base.ids import new_id
from interlock.base.json import JsonObject, accept_json
from interlock.definitions.versions import Versions
from interlock.identity.principal import Principal
from interlock.machine.events import CancelRequested, PauseRequested, ResumeRequested, SignalReceived, event_to_json
from interlock.machine.machine import MAX_SIGNALS
from interlock.services.ingest import Redaction
from interlock.services.submit import checked_key
from interlock.services.views.runs import SentSignal, is_over
from interlock.store.commit import Commit, Committer
from interlock.store.database import Database, Row
from interlock.store.entries import Entry, EventType
from interlock.store.rows import NewSignal, SignalId
from interlock.workflows.facts import facts_of
from interlock.workflows.schemas import check_value

_MAX_REASON = 500
_ONCE = "signal_ids_pkey"
_Signal = SignalReceived | PauseRequested | ResumeRequested | CancelRequested


class Signals:
    """Tells runs of an organisation something; each call names its principal."""

    def __init__(
        self, database: Database, committer: Committer, versions: Versions, redaction: Redaction, clock: Clock
    ) -> None:
        self._database = database
        self._committer = committer
        self._versions = versions
        self._redaction = redaction
        self._clock = clock

    async def signal(
        self, principal: Principal, run_id: str, name: str, payload: object, key: str | None = None
    ) -> SentSignal:
        """Sends a signal. A run that does not wait for it yet keeps it; one key counts once, also when sent concurrently.

        Raises:
            NotFound: no such run, or its workflow waits for no signal of that name.
            ContractViolation: the payload does not fit.
            Conflict: the run is over, or has been told too much.
            Denied: the role may not, or the payload holds an injected order and the settings say `block`.
            Erased: a person whom the run is about was erased; nothing more may be stored about them.
        """
        principal.require("run.signal")
        signal_id = checked_key(key) or new_id("sig")
        run = await self._run(principal, run_id)
        if is_over(run["status"]):
            # A sender repeats what it got no answer to, however late.
            if key is None or not await self._is_known(principal, run_id, name, signal_id):
                raise _over(run)
            return SentSignal(run_id=run_id, signal_id=signal_id, new=False)
        version = await self._versions.get(run["org_id"], run["workflow"], run["version"])
        spec = version.signals.get(name)
        if spec is None:
            known = ", ".join(sorted(version.signals)) or "none"
            raise NotFound(f'workflow "{version.name}" waits for no signal "{name[:100]}"; it knows: {known}')
        check_value(spec.validator, accept_json(payload), what="payload", to_sender=True)
        if await self._is_known(principal, run_id, name, signal_id):
            return SentSignal(run_id=run_id, signal_id=signal_id, new=False)
        taken = await self._redaction.take(run, payload, origin="signal")
        now = self._clock.now()
        event = SignalReceived(name, signal_id, now, taken.ref, facts_of(spec.schema, taken.value))
        commit = self._signal_commit(
            principal, run, event, "run.signalled", "signal_run", {"signal": name, "flags": taken.flags}
        )
        commit.artifacts += taken.artifacts
        commit.new_vaults += taken.vaults
        commit.signal_ids.append(SignalId(run_id=run_id, signal_id=signal_id, org_id=principal.org_id, name=name))
        try:
            await self._committer.submit(commit)
        except asyncpg.UniqueViolationError as error:
            # The same signal twice at the same moment: the other one was committed.
            if error.constraint_name != _ONCE or not await self._is_known(principal, run_id, name, signal_id):
                raise
            return SentSignal(run_id=run_id, signal_id=signal_id, new=False)
        return SentSignal(run_id=run_id, signal_id=signal_id, new=True)

    async def _is_known(self, principal: Principal, run_id: str, name: str, signal_id: str) -> bool:
        """True if the run was sent this signal before.

        Raises:
            Conflict: under this id it was sent another signal, or it was sent as many as a run takes.
        """
        counted = await self._database.row("count_signals", run_id, signal_id, org=principal.org_id)
        assert counted is not None, "a count is always there"
        if counted["known"] == name:
            return True
        if counted["known"] is not None:
            raise Conflict(
                f'Idempotency-Key "{signal_id}" was used for signal "{counted["known"]}" of run {run_id}; choose a new key'
            )
        if counted["total"] >= MAX_SIGNALS:
            raise Conflict(f"run {run_id} has been sent {MAX_SIGNALS} signals, and takes no more")
        return False

    async def pause(self, principal: Principal, run_id: str, reason: str = "") -> None:
        """Pauses the run: work under way is finished, and nothing new begins until `resume`.

        Raises:
            NotFound: no such run. Conflict: it is over.
        """
        principal.require("run.pause")
        run = await self._open_run(principal, run_id)
        event = PauseRequested(self._clock.now(), await self._reason(principal, reason))
        await self._committer.submit(self._signal_commit(principal, run, event, "run.paused", "pause_run", {}))

    async def resume(self, principal: Principal, run_id: str) -> None:
        """Lets a paused run go on; harmless for one that is not.

        Raises:
            NotFound: no such run. Conflict: it is over.
        """
        principal.require("run.pause")
        run = await self._open_run(principal, run_id)
        event = ResumeRequested(self._clock.now())
        await self._committer.submit(self._signal_commit(principal, run, event, "run.resumed", "resume_run", {}))

    async def cancel(self, principal: Principal, run_id: str, reason: str = "") -> None:
        """Asks a run to stop: it finishes the step under way, undoes what must be undone, and ends as cancelled.

        Raises:
            NotFound: no such run. Conflict: it is over.
        """
        principal.require("run.cancel")
        run = await self._open_run(principal, run_id)
        event = CancelRequested(self._clock.now(), await self._reason(principal, reason))
        await self._committer.submit(
            self._signal_commit(principal, run, event, "run.cancel_requested", "cancel_run", {})
        )

    async def _reason(self, principal: Principal, text: str) -> str:
        return (await self._redaction.note(principal.org_id, text))[:_MAX_REASON] or f"by {principal.user_id}"

    async def _open_run(self, principal: Principal, run_id: str) -> Row:
        row = await self._run(principal, run_id)
        if is_over(row["status"]):
            raise _over(row)
        return row

    async def _run(self, principal: Principal, run_id: str) -> Row:
        row = await self._database.row("get_run", run_id, org=principal.org_id)
        if row is None:
            raise NotFound(f'no run "{run_id}" in this organisation')
        return row

    def _signal_commit(
        self, principal: Principal, run: Row, event: _Signal, event_type: EventType, action: str, detail: JsonObject
    ) -> Commit:
        entry = Entry(
            org_id=principal.org_id,
            event_type=event_type,
            actor=principal.actor,
            action=action,
            resource=f"run:{run['run_id']}",
            at=event.at,
            decision="allow",
            run_id=run["run_id"],
            trace_id=run["trace_id"],
            detail=detail,
        )
        signal = NewSignal(org_id=principal.org_id, run_id=run["run_id"], event=event_to_json(event))
        return Commit(principal.org_id, new_signals=[signal], audit=[entry])


def _over(run: Row) -> Conflict:
    return Conflict(f"run {run['run_id']} is over ({run['status']}); it takes no signals any more")
