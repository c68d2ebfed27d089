"""The dead-letter queue: what failed for good and waits for a person. Decision, signal and audit entry commit together.

A dead letter about a `step` or a `compensation` is answered to its run, which goes on; one about a `run` starts a new run; one
about the `parked_run` lets workers have the run again. Discarding gives up: the run fails, keeps its effect, or is cancelled.
"""

from __future__ import annotations

import asyncpg

from interlock.base.clock import Clock
from interlock.base.error_detail import ErrorDetail
from interlock.base.errors import Conflict, ContractViolation, Erased, InterlockError, InvalidInput, NotFound
from interlock.base.json import Json
from interlock.base.refs import Ref
from interlock.budget.reservations import Reservations
from interlock.definitions.versions import Version, Versions
from interlock.execution.inputs.arguments import arguments_of
from interlock.execution.loading import fold_in_slices, run_of
from interlock.execution.run import StepExecution
from interlock.guard.pii import reveal
from interlock.identity.principal import Principal
from interlock.machine.events import CancelRequested, DeadLetterDiscarded, DeadLetterRequeued, Event, event_to_json
from interlock.machine.state import RunState
from interlock.services.cursors import unknown_cursor
from interlock.services.ingest import Redaction, vault_of
from interlock.services.journal import journal_in
from interlock.services.submit import Submission
from interlock.services.views.dead_letters import DeadLetterDetail, DeadLetterView
from interlock.store.artifacts import Artifacts
from interlock.store.commit import Commit, Committer
from interlock.store.database import Database, Row, Snapshot
from interlock.store.entries import Entry
from interlock.store.people_rows import DeadLetterDecision, DecidedDeadLetter
from interlock.store.rows import NewSignal, RequeuedRun
from interlock.workflows.schemas import check_value
from interlock.workflows.spec import ModelStep, Step, ToolStep

_MAX_NOTE = 4000
MAX_PAGE = 200


class DeadLetters:
    """Open and decided letters of an organisation."""

    def __init__(
        self,
        database: Database,
        committer: Committer,
        versions: Versions,
        artifacts: Artifacts,
        submission: Submission,
        redaction: Redaction,
        clock: Clock,
    ) -> None:
        self._database = database
        self._committer = committer
        self._versions = versions
        self._artifacts = artifacts
        self._submission = submission
        self._redaction = redaction
        self._clock = clock

    # -- looking -----------------------------------------------------------------------------------------------

    async def page(
        self,
        principal: Principal,
        *,
        status: str | None = "open",
        run_id: str | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> list[DeadLetterView]:
        """Dead letters, oldest first, without values; `after` is the last dead letter of the page before."""
        principal.require("dead_letter.read")
        if after is not None and await self._database.row("get_dead_letter", after, org=principal.org_id) is None:
            raise unknown_cursor("after", after)
        args = (status, run_id, after, max(1, min(limit, MAX_PAGE)))
        return [_view(row) for row in await self._database.rows("list_dead_letters", *args, org=principal.org_id)]

    async def get(self, principal: Principal, dead_letter_id: str) -> DeadLetterDetail:
        """One dead letter with its values.

        Raises:
            NotFound: no such dead letter in this organisation.
        """
        principal.require("dead_letter.read")

        async def read(snapshot: Snapshot) -> tuple[Row, Row, list[Event]]:
            dead_letter = _found(await snapshot.row("get_dead_letter", dead_letter_id), dead_letter_id)
            run = await snapshot.row("get_run", dead_letter["run_id"])
            assert run is not None, "a dead letter is about a run"
            of_step = dead_letter["purpose"] in {"step", "compensation"}
            return dead_letter, run, await journal_in(snapshot, run["run_id"]) if of_step else []

        # In one snapshot, or an open dead letter could be shown with the failure of a later attempt.
        dead_letter, run, journal = await self._database.in_snapshot(read, org=principal.org_id)
        given, detail = None, ErrorDetail()
        if dead_letter["purpose"] == "run":
            given = await self._opened(principal, Ref.from_json(run["input"]))
        elif dead_letter["purpose"] in {"step", "compensation"}:
            version = await self._versions.get(run["org_id"], run["workflow"], run["version"])
            state = await fold_in_slices(version.program, journal, RunState())
            given = await self._arguments(run, version, state, dead_letter)
            failure = state.steps[dead_letter["step"]].failure
            if failure is not None and failure.error_detail is not None:
                detail = ErrorDetail.from_json(await self._opened(principal, failure.error_detail))
        editable = dead_letter["purpose"] in {"step", "run"}
        values = {
            "input": given,
            "editable": editable,
            "error_detail": detail.message,
            "traceback": detail.traceback or None,
            "printed": detail.printed or None,
        }
        return DeadLetterDetail.model_validate(dict(dead_letter) | values)

    # -- deciding ----------------------------------------------------------------------------------------------

    async def requeue(
        self, principal: Principal, dead_letter_id: str, note: str = "", arguments: Json = None
    ) -> DeadLetterView:
        """Has it tried again.

        Args:
            arguments: instead of what the step was given, or the run's input; None leaves that as it is.

        Raises:
            NotFound: no such dead letter. Conflict: it is not open any more. ContractViolation: the arguments do not fit.
            InvalidInput: this kind of dead letter takes none. Erased: nothing more may be stored about a person in it.
        """
        dead_letter, run, note = await self._to_decide(principal, dead_letter_id, note)
        commit, new_run = Commit(principal.org_id), None
        match dead_letter["purpose"]:
            case "step":
                override = await self._edited(dead_letter, run, arguments, commit)
                self._tell(commit, dead_letter, DeadLetterRequeued(dead_letter["step"], self._clock.now(), override))
            case "run":
                new_run, commit = await self._new_run(principal, dead_letter, run, arguments)
            case purpose:
                if arguments is not None:
                    raise InvalidInput(
                        f"a letter about a {purpose} takes no other input; what is done again is what was done before"
                    )
                if purpose == "compensation":
                    self._tell(commit, dead_letter, DeadLetterRequeued(dead_letter["step"], self._clock.now()))
                else:
                    commit.requeued.append(RequeuedRun(run_id=dead_letter["run_id"]))
        return await self._decide(
            principal, dead_letter, commit, "requeued", note, new_run, edited=arguments is not None
        )

    async def discard(self, principal: Principal, dead_letter_id: str, note: str = "") -> DeadLetterView:
        """Gives it up.

        Raises:
            NotFound: no such dead letter. Conflict: it is not open any more.
        """
        dead_letter, _, note = await self._to_decide(principal, dead_letter_id, note)
        commit, now = Commit(principal.org_id), self._clock.now()
        if dead_letter["purpose"] in {"step", "compensation"}:
            self._tell(commit, dead_letter, DeadLetterDiscarded(dead_letter["step"], now))
        elif dead_letter["purpose"] == "parked_run":
            self._tell(commit, dead_letter, CancelRequested(now, f"dead letter discarded by {principal.user_id}"))
            commit.requeued.append(RequeuedRun(run_id=dead_letter["run_id"]))
        return await self._decide(principal, dead_letter, commit, "discarded", note, None, edited=False)

    async def _to_decide(self, principal: Principal, dead_letter_id: str, note: str) -> tuple[Row, Row, str]:
        principal.require("dead_letter.decide")
        if len(note) > _MAX_NOTE:
            raise InvalidInput(f"a note may have {_MAX_NOTE} characters; this one has {len(note)}")
        dead_letter = await self._row(principal, dead_letter_id)
        if dead_letter["status"] != "open":
            raise Conflict(f"this letter is already {dead_letter['status']}")
        return dead_letter, await self._run(dead_letter), await self._redaction.note(principal.org_id, note)

    async def _decide(
        self,
        principal: Principal,
        dead_letter: Row,
        commit: Commit,
        status: DeadLetterDecision,
        note: str,
        new_run: str | None,
        *,
        edited: bool,
    ) -> DeadLetterView:
        commit.decided_dead_letters.append(
            DecidedDeadLetter(
                dead_letter_id=dead_letter["dead_letter_id"],
                status=status,
                decided_by=principal.user_id,
                note=note,
                new_run=new_run,
            )
        )
        detail = {"step": dead_letter["step"], "purpose": dead_letter["purpose"], "edited": edited, "note": bool(note)}
        requeued = status == "requeued"
        entry = Entry(
            org_id=principal.org_id,
            event_type="dead_letter.requeued" if requeued else "dead_letter.discarded",
            actor=principal.actor,
            action="requeue" if requeued else "discard",
            resource=f"dead_letter:{dead_letter['dead_letter_id']}",
            at=self._clock.now(),
            decision="allow",
            run_id=dead_letter["run_id"],
            trace_id=dead_letter["trace_id"],
            detail=detail | ({"new_run": new_run} if new_run else {}),
        )
        commit.audit.append(entry)
        try:
            await self._committer.submit(commit)
        except asyncpg.UniqueViolationError as error:
            raise Conflict(f"a run with the key requeue:{dead_letter['dead_letter_id']} is there already") from error
        # `decided_at` is the database's, and shown from the next look on.
        decided = {"status": status, "decided_by": principal.user_id, "note": note, "new_run": new_run}
        return DeadLetterView.model_validate(dict(dead_letter) | decided)

    def _tell(
        self, commit: Commit, dead_letter: Row, event: CancelRequested | DeadLetterDiscarded | DeadLetterRequeued
    ) -> None:
        signal = NewSignal(org_id=dead_letter["org_id"], run_id=dead_letter["run_id"], event=event_to_json(event))
        commit.new_signals.append(signal)

    async def _edited(self, dead_letter: Row, run: Row, arguments: Json, commit: Commit) -> Ref | None:
        """Replacement of the step's arguments, as it will be given to the step."""
        if arguments is None:
            return None
        version = await self._versions.get(run["org_id"], run["workflow"], run["version"])
        taken = await self._redaction.take(run, arguments, origin="dead_letter")
        _fits(version, version.program.work(dead_letter["step"], 0, None), taken.value)
        commit.artifacts += taken.artifacts
        commit.new_vaults += taken.vaults
        return taken.ref

    async def _new_run(self, principal: Principal, dead_letter: Row, run: Row, arguments: Json) -> tuple[str, Commit]:
        """The whole of a failed run again: for the same user, or with an edited input for its editor."""
        key = f"requeue:{dead_letter['dead_letter_id']}"
        vault = await vault_of(self._database, self._artifacts, run)
        if arguments is not None:
            # The tokens in what was shown mean something in the old run only.
            return await self._submission.propose(principal, run["workflow"], reveal(arguments, vault), key)
        stored = await self._artifacts.open(run["org_id"], Ref.from_json(run["input"]))
        return await self._submission.propose_again(run, reveal(stored, vault), key, actor=principal.actor)

    # -- reading -----------------------------------------------------------------------------------------------

    async def _row(self, principal: Principal, dead_letter_id: str) -> Row:
        return _found(await self._database.row("get_dead_letter", dead_letter_id, org=principal.org_id), dead_letter_id)

    async def _run(self, dead_letter: Row) -> Row:
        row = await self._database.row("get_run", dead_letter["run_id"], org=dead_letter["org_id"])
        assert row is not None, "a letter is about a run"
        return row

    async def _arguments(self, run: Row, version: Version, state: RunState, dead_letter: Row) -> Json:
        """Arguments of a retry; for a compensation, the arguments of the original call."""
        name, here = dead_letter["step"], state.steps[dead_letter["step"]]
        variant = here.variant if dead_letter["purpose"] == "compensation" else 0
        step = version.program.work(name, variant, here.tool)
        if not isinstance(step, ModelStep | ToolStep):
            return {}
        reading = run_of(run, version, self._artifacts, Reservations(self._database), fence=0)
        try:
            bound = await arguments_of(StepExecution(reading, name, step, here.attempt, state), lenient=True)
        except (Erased, ContractViolation):
            return None
        value: Json = bound.value
        return value

    async def _opened(self, principal: Principal, ref: Ref) -> Json:
        try:
            return await self._artifacts.open(principal.org_id, ref)
        except Erased:
            return None


def _fits(version: Version, step: Step, arguments: Json) -> None:
    """Raises:
    ContractViolation: the step cannot be performed with these.
    """
    if not isinstance(arguments, dict):
        raise ContractViolation("input: must be an object; `interlock dead-letters show` prints what to edit")
    if isinstance(step, ToolStep):
        check_value(
            version.tool_input_validators[step.tool], arguments, what=f'tool "{step.tool}": arguments', to_sender=True
        )
    elif isinstance(step, ModelStep):
        version.prompts[step.prompt].render(arguments)
    else:
        raise InterlockError(f"a step of kind {step.kind} has no dead letter")


def _found(row: Row | None, dead_letter_id: str) -> Row:
    if row is None:
        raise NotFound(f'no dead letter "{dead_letter_id}" in this organisation')
    return row


def _view(row: Row) -> DeadLetterView:
    return DeadLetterView.model_validate(dict(row))
