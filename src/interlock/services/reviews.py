"""The review queue: what waits for a person, and what they decided. Decision, signal and audit entry commit together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Literal, Protocol, TypedDict

from interlock.base.clock import Clock
from interlock.base.errors import Conflict, Denied, Erased, InvalidInput, NotFound, SelfApproval
from interlock.base.json import Json, JsonObject
from interlock.base.labels import UNTRUSTED, Labels, LabelsJson, Sensitivity, Trust
from interlock.base.refs import Ref
from interlock.definitions.versions import Versions
from interlock.execution.approvals import Approval
from interlock.guard.gate import composed
from interlock.identity.principal import Principal
from interlock.machine.events import ReviewDecided, event_to_json
from interlock.services.cursors import unknown_cursor
from interlock.services.ingest import Redaction, Taken
from interlock.services.views.reviews import ReviewView
from interlock.store.artifacts import Artifacts
from interlock.store.commit import Commit
from interlock.store.database import Database, Row
from interlock.store.entries import Entry, EventType
from interlock.store.people_rows import DecidedReview, ReviewDecision, RevokedApproval
from interlock.store.rows import NewSignal
from interlock.workflows.facts import Facts
from interlock.workflows.spec import ReviewStep

_MAX_NOTE = 4000
MAX_PAGE = 200
DIGEST_SHOWN = 16
"""Digits of an act's digest that people are shown; they suffice to tell one act from another."""


class Submits(Protocol):
    """Makes commits durable, as `store.commit.Committer`."""

    async def submit(self, commit: Commit) -> None: ...


class OutputFacts(Protocol):
    """Knows what tools can have given."""

    async def facts(self, org_id: str, run_id: str, step: str, output: Json) -> Facts:
        """The facts of a tool's output; raises ContractViolation if the tool cannot have given it."""
        ...


@dataclass(frozen=True, slots=True)
class Approving:
    """How approvals are given.

    Attributes:
        key: see `execution.approvals.approval_key`.
        seconds: for which an approval may be used.
        by_requester: whether a person may approve what that same person asked for.
    """

    key: bytes
    seconds: int
    by_requester: bool


class _Act(TypedDict):
    """The call that a review approves, with its arguments opened."""

    step: str
    tool: str
    digest: str
    arguments: Json
    labels: LabelsJson


@dataclass(frozen=True, slots=True)
class _Shown:
    """A review's row with the values that it shows, and their labels."""

    row: Row
    show: Json
    labels: Labels
    act: _Act | None
    deadline: datetime | None


class ReviewQueue:
    """Open and decided reviews of an organisation.

    Args:
        answers: checks what a person says that a tool gave; without it that is taken as it is, and has no facts.
        versions: of the workflows, for the deadlines of reviews; without it none is named.
    """

    def __init__(
        self,
        database: Database,
        committer: Submits,
        artifacts: Artifacts,
        clock: Clock,
        *,
        approving: Approving,
        redaction: Redaction,
        answers: OutputFacts | None = None,
        versions: Versions | None = None,
    ) -> None:
        self._versions = versions
        self._approving = approving
        self._answers = answers
        self._redaction = redaction
        self._database = database
        self._committer = committer
        self._artifacts = artifacts
        self._clock = clock

    async def page(
        self,
        principal: Principal,
        *,
        status: str | None = "open",
        run_id: str | None = None,
        after: str | None = None,
        limit: int = MAX_PAGE,
    ) -> list[ReviewView]:
        """Reviews, oldest first, with what the reviewer is to see; `after` is the last review of the page before."""
        principal.require("review.read")
        if after is not None and await self._database.row("get_review", after, org=principal.org_id) is None:
            raise unknown_cursor("after", after)
        args = (status, run_id, after, max(1, min(limit, MAX_PAGE)))
        rows = await self._database.rows("list_reviews", *args, org=principal.org_id)
        return [_view(await self._with_values(principal, row)) for row in rows]

    async def get(self, principal: Principal, review_id: str) -> ReviewView:
        """Raises:
        NotFound: no such review in this organisation.
        """
        return _view(await self._row(principal, review_id))

    async def _row(self, principal: Principal, review_id: str) -> _Shown:
        principal.require("review.read")
        row = await self._database.row("get_review", review_id, org=principal.org_id)
        if row is None:
            raise NotFound(f'no review "{review_id}"')
        return await self._with_values(principal, row)

    async def decide(
        self,
        principal: Principal,
        review_id: str,
        decision: Literal["approve", "reject"],
        note: str,
        output: Json = None,
    ) -> ReviewView:
        """Decides an open review; the run goes on as soon as this is durable.

        Args:
            output: for a `confirm` review that is approved: what the tool gave, if known.

        Raises:
            NotFound: no such review. Denied: this principal lacks its role. Conflict: it is not open any more.
            SelfApproval: this principal asked for what is to be approved.
            ContractViolation: the tool cannot have given this output.
        """
        principal.require("review.decide")
        if len(note) > _MAX_NOTE:
            raise InvalidInput(f"a note may have {_MAX_NOTE} characters; this one has {len(note)}")
        note = await self._redaction.note(principal.org_id, note)
        shown = await self._row(principal, review_id)
        review, act = shown.row, shown.act
        _require_role(principal, review)
        if review["status"] != "open":
            if output is None and _is_same(review, principal, decision, note):
                return _view(shown)  # sent again, because the first answer was lost
            raise _not_open(review)
        approved, now = decision == "approve", self._clock.now()
        if approved:
            self._require_another(principal, review)
        facts: Facts = {}
        if review["purpose"] == "confirm" and approved and output is not None and self._answers is not None:
            facts = await self._answers.facts(principal.org_id, review["run_id"], review["step"], output)
        # About the same people as what was shown, so it is erased with them.
        labels = Labels(Trust.USER, shown.labels.sensitivity, shown.labels.subjects, frozenset({"review"}))
        if review["purpose"] == "confirm" and output is not None:
            given = await self._given(review, output)
        else:
            decided: Json = {"approved": approved, "by": principal.user_id, "note": note}
            value = composed(decided if review["purpose"] != "confirm" else None)
            sealed = await self._artifacts.seal(principal.org_id, value, labels)
            given = Taken(None, sealed.ref, [sealed.row], [], [])
        digest = act["digest"] if act is not None else ""
        event = ReviewDecided(review["step"], now, approved, given.ref, facts, digest)
        run_id = review["run_id"]
        detail = {"step": review["step"], "purpose": review["purpose"], "note": bool(note)}
        audit = [_entry(principal, review, "review.decided", decision, now, detail)]
        status: ReviewDecision = "approved" if approved else "rejected"
        commit = Commit(
            principal.org_id,
            artifacts=given.artifacts,
            new_vaults=given.vaults,
            decided_reviews=[
                DecidedReview(review_id=review_id, status=status, decided_by=principal.user_id, note=note)
            ],
            new_signals=[NewSignal(org_id=principal.org_id, run_id=run_id, event=event_to_json(event))],
            audit=audit,
        )
        if act is not None:
            kind: EventType = "approval.granted" if approved else "approval.denied"
            audit.append(_entry(principal, review, kind, decision, now, _about(act)))
            if approved:
                commit.new_approvals = [self._approval(principal, review, act, now).row(self._approving.key)]
        await self._committer.submit(commit)
        return _view(shown, {"status": status, "decided_by": principal.user_id, "note": note})

    async def _given(self, review: Row, output: Json) -> Taken:
        """Redacts an operator's answer for a tool into the run's vault; permanently if a subject was erased."""
        run = await self._database.row("get_run", review["run_id"], org=review["org_id"])
        assert run is not None, "a review is about a run"
        try:
            return await self._redaction.take(run, output, origin="review")
        except Erased:
            inspection = await self._redaction.inspect(review["org_id"], output)
            labels = Labels(Trust.USER, Sensitivity.INTERNAL, frozenset(), frozenset({"review"}))
            sealed = await self._artifacts.seal(review["org_id"], inspection.accepted, labels)
            return Taken(inspection.value, sealed.ref, [sealed.row], [], inspection.flags)

    async def revoke(self, principal: Principal, review_id: str) -> ReviewView:
        """Takes an approval back that has not been used; the call it was for needs another one.

        Raises:
            NotFound: no such review. Denied: this principal lacks its role. Conflict: it approved no call, or that approval is
                used, expired or revoked.
        """
        principal.require("review.decide")
        shown = await self._row(principal, review_id)
        review, act = shown.row, shown.act
        _require_role(principal, review)
        if act is None or review["status"] != "approved":
            raise Conflict("this review has approved no call of a tool, so there is nothing to revoke")
        entry = _entry(principal, review, "approval.revoked", "revoke", self._clock.now(), _about(act))
        row = RevokedApproval(review_id=review_id, revoked_by=principal.user_id)
        try:
            await self._committer.submit(Commit(principal.org_id, revoked_approvals=[row], audit=[entry]))
        except Conflict as error:
            raise Conflict("this approval is used, expired or revoked, so it cannot be revoked any more") from error
        return await self.get(principal, review_id)

    def _require_another(self, principal: Principal, review: Row) -> None:
        """Refuses the requester of an act as its approver; every reviewer may answer whether an effect happened."""
        if self._approving.by_requester or review["purpose"] == "confirm":
            return
        if principal.user_id == review["requester"]:
            asked = "started this run"
        elif principal.user_id in review["requeued_by"]:
            asked = "requeued a dead letter of this run"
        else:
            return
        raise SelfApproval(
            f"you {asked}, so another person has to approve this; "
            "review.self_approval = true in the settings lets people approve what they asked for"
        )

    def _approval(self, principal: Principal, review: Row, act: _Act, now: float) -> Approval:
        return Approval(
            review["review_id"],
            principal.org_id,
            review["run_id"],
            act["step"],
            act["digest"],
            principal.user_id,
            tuple(sorted(principal.roles | {review["role"]})),
            int(now) + self._approving.seconds,
        )

    async def _with_values(self, principal: Principal, row: Row) -> _Shown:
        """The row with what the reviewer is to see: nothing if that person was erased; the question stays open."""
        ref = Ref.from_json(row["show"])
        try:
            show, labels = await self._artifacts.open(principal.org_id, ref), ref.labels
        except Erased:
            show, labels = {}, UNTRUSTED
        deadline = await self._deadline(row)
        if row["act"] is None:
            return _Shown(row, show, labels, None, deadline)
        arguments = Ref.from_json(row["act"]["arguments"])
        value = show if arguments == ref else await self._opened(principal, arguments)
        step, tool, digest = row["act"]["step"], row["act"]["tool"], row["act"]["digest"]
        act: _Act = {
            "step": step,
            "tool": tool,
            "digest": digest,
            "arguments": value,
            "labels": arguments.labels.to_json(),
        }
        return _Shown(row, show, labels, act, deadline)

    async def _deadline(self, row: Row) -> datetime | None:
        """Until when a decision is awaited: the review opened when its step began."""
        if self._versions is None or row["purpose"] != "approve":
            return None
        version = await self._versions.get(row["org_id"], row["workflow"], row["version"])
        step = version.program.node(row["step"]).step
        seconds = step.deadline if isinstance(step, ReviewStep) else None
        return None if seconds is None else row["created_at"] + timedelta(seconds=seconds)

    async def _opened(self, principal: Principal, ref: Ref) -> Json:
        try:
            return await self._artifacts.open(principal.org_id, ref)
        except Erased:
            return {}


def _require_role(principal: Principal, review: Row) -> None:
    if review["role"] not in principal.roles and "admin" not in principal.roles:
        raise Denied(f'this review needs role "{review["role"]}"')


def _is_same(review: Row, principal: Principal, decision: str, note: str) -> bool:
    """True if a review was decided by this very request: by the same person, alike, with the same note, and it still holds."""
    status = "approved" if decision == "approve" else "rejected"
    return review["revoked_at"] is None and (review["status"], review["decided_by"], review["note"]) == (
        status,
        principal.user_id,
        note,
    )


def _not_open(review: Row) -> Conflict:
    if review["status"] == "closed":
        return Conflict("this review is closed: its run does not need the decision any more")
    return Conflict(f"this review is already {review['status']}, by {review['decided_by']}")


def _about(act: _Act) -> dict[str, Json]:
    return {"step": act["step"], "tool": act["tool"], "act": act["digest"]}


def _entry(
    principal: Principal, review: Row, event_type: EventType, action: str, now: float, detail: JsonObject
) -> Entry:
    return Entry(
        org_id=principal.org_id,
        event_type=event_type,
        actor=principal.actor,
        action=action,
        resource=f"review:{review['review_id']}",
        at=now,
        decision="allow" if action == "approve" else "deny",
        run_id=review["run_id"],
        trace_id=review["trace_id"],
        detail=detail,
    )


def _view(shown: _Shown, decided: Mapping[str, str] = MappingProxyType({})) -> ReviewView:
    """The review as people see it.

    Args:
        decided: columns that the row will have once the decision is stored.
    """
    row, act = shown.row, None
    if shown.act is not None:
        approval = {name: row[name] for name in ("expires_at", "consumed_at", "revoked_at")}
        given = approval if approval["expires_at"] is not None else None
        act = {**shown.act, "digest": shown.act["digest"][:DIGEST_SHOWN], "approval": given}
    return ReviewView.model_validate({
        **dict(row), **decided, "show": shown.show, "act": act, "deadline": shown.deadline
    })  # fmt: skip
