"""The dead-letter queue: what failed for good and waits for a person. Decision, signal and audit entry commit together.

A letter about a `step` or a `compensation` is answered to its run, which goes on; one about a `run` starts a new run; one
about the `driver` lets workers have the run again. Discarding gives up: the run fails, keeps its effect, or is cancelled.
"""

from __future__ import annotations

from typing import Any

import asyncpg

from interlock.audit.log import Entry
from interlock.base.clock import Clock
from interlock.base.errors import Conflict, ContractViolation, Erased, InterlockError, InvalidInput, NotFound
from interlock.base.refs import Ref
from interlock.definitions.versions import Version, Versions
from interlock.execution.inputs.arguments import arguments_of
from interlock.execution.loading import folded, run_of
from interlock.execution.steps import Work
from interlock.guard.pii import reveal
from interlock.identity.principal import Principal
from interlock.machine.events import CancelRequested, LetterDiscarded, LetterRequeued, event_to_json
from interlock.machine.state import RunState
from interlock.services.ingest import Redaction, note_of, vault_of
from interlock.services.submit import Intake
from interlock.store.artifacts import Artifacts
from interlock.store.commit import Commit, Committer
from interlock.store.database import Database, Row
from interlock.workflows.schemas import check_value
from interlock.workflows.spec import ModelStep, Step, ToolStep

_MAX_NOTE = 4000
MAX_PAGE = 200
_FIELDS = (
    "letter_id", "run_id", "workflow", "version", "step", "purpose", "code", "reason", "status", "decided_by", "note",
    "new_run", "created_at", "decided_at",
)  # fmt: skip


class DeadLetters:
    """Open and decided letters of an organisation."""

    def __init__(
        self,
        database: Database,
        committer: Committer,
        versions: Versions,
        artifacts: Artifacts,
        intake: Intake,
        redaction: Redaction,
        clock: Clock,
    ) -> None:
        self._database = database
        self._committer = committer
        self._versions = versions
        self._artifacts = artifacts
        self._intake = intake
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
    ) -> list[dict[str, Any]]:
        """Letters, oldest first, without values; `after` is the last letter of the page before."""
        principal.require("letter.read")
        args = (status, run_id, after, max(1, min(limit, MAX_PAGE)))
        return [_public(row) for row in await self._database.rows("list_letters", *args, org=principal.org_id)]

    async def get(self, principal: Principal, letter_id: str) -> dict[str, Any]:
        """One letter: `input` is what a requeue would try again with, and `words` what the tool said about its failure.

        Values are redacted, and null once somebody they are about was erased.

        Raises:
            NotFound: no such letter in this organisation.
        """
        principal.require("letter.read")
        letter = await self._row(principal, letter_id)
        run = await self._run(letter)
        found = _public(letter) | {"input": None, "words": None, "editable": letter["purpose"] in {"step", "run"}}
        if letter["purpose"] == "run":
            found["input"] = await self._opened(principal, Ref.from_json(run["input"]))
        elif letter["purpose"] in {"step", "compensation"}:
            version, state = await folded(self._database, self._versions, run)
            found["input"] = await self._arguments(run, version, state, letter)
            failure = state.steps[letter["step"]].failure
            if failure is not None and failure.words is not None:
                found["words"] = await self._opened(principal, failure.words)
        return found

    # -- deciding ----------------------------------------------------------------------------------------------

    async def requeue(
        self, principal: Principal, letter_id: str, note: str = "", arguments: Any = None
    ) -> dict[str, Any]:
        """Has it tried again.

        Args:
            arguments: instead of what the step was given, or the run's input; None leaves that as it is.

        Raises:
            NotFound: no such letter. Conflict: it is not open any more. ContractViolation: the arguments do not fit.
            InvalidInput: this kind of letter takes none. Erased: nothing more may be stored about a person in it.
        """
        letter, run, note = await self._to_decide(principal, letter_id, note)
        commit, new_run = Commit(principal.org_id), None
        match letter["purpose"]:
            case "step":
                override = await self._edited(letter, run, arguments, commit)
                self._tell(commit, letter, LetterRequeued(letter["step"], self._clock.now(), override))
            case "run":
                new_run, commit = await self._new_run(principal, letter, run, arguments)
            case purpose:
                if arguments is not None:
                    raise InvalidInput(
                        f"a letter about a {purpose} takes no other input; what is done again is what was done before"
                    )
                if purpose == "compensation":
                    self._tell(commit, letter, LetterRequeued(letter["step"], self._clock.now()))
                else:
                    commit.requeued.append({"run_id": letter["run_id"]})
        return await self._decide(principal, letter, commit, "requeued", note, new_run, edited=arguments is not None)

    async def discard(self, principal: Principal, letter_id: str, note: str = "") -> dict[str, Any]:
        """Gives it up.

        Raises:
            NotFound: no such letter. Conflict: it is not open any more.
        """
        letter, _, note = await self._to_decide(principal, letter_id, note)
        commit, now = Commit(principal.org_id), self._clock.now()
        if letter["purpose"] in {"step", "compensation"}:
            self._tell(commit, letter, LetterDiscarded(letter["step"], now))
        elif letter["purpose"] == "driver":
            self._tell(commit, letter, CancelRequested(now, f"dead letter discarded by {principal.user_id}"))
            commit.requeued.append({"run_id": letter["run_id"]})
        return await self._decide(principal, letter, commit, "discarded", note, None, edited=False)

    async def _to_decide(self, principal: Principal, letter_id: str, note: str) -> tuple[Row, Row, str]:
        principal.require("letter.decide")
        if len(note) > _MAX_NOTE:
            raise InvalidInput(f"a note may have {_MAX_NOTE} characters; this one has {len(note)}")
        letter = await self._row(principal, letter_id)
        if letter["status"] != "open":
            raise Conflict(f"this letter is already {letter['status']}")
        return letter, await self._run(letter), note_of(note)

    async def _decide(
        self,
        principal: Principal,
        letter: Row,
        commit: Commit,
        status: str,
        note: str,
        new_run: str | None,
        *,
        edited: bool,
    ) -> dict[str, Any]:
        decided = {"status": status, "decided_by": principal.user_id, "note": note, "new_run": new_run}
        commit.decided_letters.append({"letter_id": letter["letter_id"], **decided})
        detail = {"step": letter["step"], "purpose": letter["purpose"], "edited": edited, "note": bool(note)}
        requeued = status == "requeued"
        entry = Entry(
            org_id=principal.org_id,
            event_type="letter.requeued" if requeued else "letter.discarded",
            actor=principal.actor,
            action="requeue" if requeued else "discard",
            resource=f"letter:{letter['letter_id']}",
            at=self._clock.now(),
            decision="allow",
            run_id=letter["run_id"],
            trace_id=letter["trace_id"],
            detail=detail | ({"new_run": new_run} if new_run else {}),
        )
        commit.audit.append(entry)
        try:
            await self._committer.submit(commit)
        except asyncpg.UniqueViolationError as error:
            raise Conflict(f"a run with the key requeue:{letter['letter_id']} is there already") from error
        return _public(letter) | decided

    def _tell(self, commit: Commit, letter: Row, event: Any) -> None:
        signal = {"org_id": letter["org_id"], "run_id": letter["run_id"], "event": event_to_json(event)}
        commit.new_signals.append(signal)

    async def _edited(self, letter: Row, run: Row, arguments: Any, commit: Commit) -> Ref | None:
        """What is to replace the step's arguments, as it will be given to the step."""
        if arguments is None:
            return None
        version = await self._versions.get(run["org_id"], run["workflow"], run["version"])
        taken = await self._redaction.take(run, arguments, origin="letter")
        _fits(version, version.program.work(letter["step"], 0, None), taken.value)
        commit.artifacts += taken.artifacts
        commit.new_vaults += taken.vaults
        return taken.ref

    async def _new_run(self, principal: Principal, letter: Row, run: Row, arguments: Any) -> tuple[str, Commit]:
        """The whole of a failed run again: by whom it was started, or with another input by whoever edited that."""
        key = f"requeue:{letter['letter_id']}"
        vault = await vault_of(self._database, self._artifacts, run)
        if arguments is not None:
            # The tokens in what was shown mean something in the old run only.
            return await self._intake.propose(principal, run["workflow"], reveal(arguments, vault), key)
        stored = await self._artifacts.open(run["org_id"], Ref.from_json(run["input"]))
        return await self._intake.propose_again(run, reveal(stored, vault), key, actor=principal.actor)

    # -- reading -----------------------------------------------------------------------------------------------

    async def _row(self, principal: Principal, letter_id: str) -> Row:
        row = await self._database.row("get_letter", letter_id, org=principal.org_id)
        if row is None:
            raise NotFound(f'no dead letter "{letter_id}" in this organisation')
        return row

    async def _run(self, letter: Row) -> Row:
        row = await self._database.row("get_run", letter["run_id"], org=letter["org_id"])
        assert row is not None, "a letter is about a run"
        return row

    async def _arguments(self, run: Row, version: Version, state: RunState, letter: Row) -> Any:
        """What the step gets if it is tried again; for an undo, what the call to be undone was made with."""
        name, here = letter["step"], state.steps[letter["step"]]
        variant = here.variant if letter["purpose"] == "compensation" else 0
        step = version.program.work(name, variant, here.tool)
        if not isinstance(step, ModelStep | ToolStep):
            return {}
        reading = run_of(run, version, self._artifacts, fence=0)
        try:
            return (await arguments_of(Work(reading, name, step, here.attempt, state), lenient=True)).value
        except (Erased, ContractViolation):
            return None

    async def _opened(self, principal: Principal, ref: Ref) -> Any:
        try:
            return await self._artifacts.open(principal.org_id, ref)
        except Erased:
            return None


def _fits(version: Version, step: Step, arguments: Any) -> None:
    """Raises:
    ContractViolation: the step cannot be performed with these.
    """
    if not isinstance(arguments, dict):
        raise ContractViolation("input: must be an object; `interlock letters show` prints what to edit")
    if isinstance(step, ToolStep):
        check_value(version.tool_input_validators[step.tool], arguments, what=f'tool "{step.tool}": arguments')
    elif isinstance(step, ModelStep):
        version.prompts[step.prompt].render(arguments)
    else:
        raise InterlockError(f"a step of kind {step.kind} has no letter")


def _public(row: Row) -> dict[str, Any]:
    return {name: row[name].isoformat() if hasattr(row[name], "isoformat") else row[name] for name in _FIELDS}
