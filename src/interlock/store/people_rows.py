"""Rows of reviews, approvals and dead letters: parts of a commit, as in `rows.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from interlock.base.json import Json
from interlock.base.refs import RefJson
from interlock.base.values import value

ReviewPurpose = Literal["approve", "approve_act", "confirm"]
ReviewDecision = Literal["approved", "rejected"]
DeadLetterPurpose = Literal["step", "compensation", "run", "parked_run"]
DeadLetterDecision = Literal["requeued", "discarded"]


@value(frozen=True, slots=True, kw_only=True)
class ConsumedApproval:
    """An approval that the effect with the idempotency key `consumed_by` uses up; refused unless it is of this act and unused."""

    review_id: str
    org_id: str
    run_id: str
    step: str
    digest: str
    consumed_by: str


@value(frozen=True, slots=True, kw_only=True)
class NewReview:
    """A question to a person with the role `role`; `show` is what they see, `act` the call of a tool that it is about."""

    review_id: str
    org_id: str
    run_id: str
    step: str
    purpose: ReviewPurpose
    title: str
    role: str
    show: RefJson
    act: Mapping[str, Json] | None


@value(frozen=True, slots=True, kw_only=True)
class ClosedReview:
    """The open reviews of a step that needs no answer any more."""

    run_id: str
    step: str


@value(frozen=True, slots=True, kw_only=True)
class DecidedReview:
    """A person's decision; refused if the review is not open."""

    review_id: str
    status: ReviewDecision
    decided_by: str
    note: str


@value(frozen=True, slots=True, kw_only=True)
class NewApproval:
    """A person's yes to the act with this digest, until `expires` (seconds since the epoch), signed by the application."""

    review_id: str
    org_id: str
    run_id: str
    step: str
    digest: str
    approver: str
    roles: list[str]
    expires: int
    signature: str


@value(frozen=True, slots=True, kw_only=True)
class RevokedApproval:
    """An approval taken back; refused unless it is unused."""

    review_id: str
    revoked_by: str


@value(frozen=True, slots=True, kw_only=True)
class NewDeadLetter:
    """A failure for a person to decide about. `step` is empty where it is about the whole run."""

    dead_letter_id: str
    org_id: str
    run_id: str
    step: str
    purpose: DeadLetterPurpose
    code: str
    reason: str


@value(frozen=True, slots=True, kw_only=True)
class ClosedDeadLetter:
    """The open dead letters of a step that needs no decision any more."""

    run_id: str
    step: str


@value(frozen=True, slots=True, kw_only=True)
class DecidedDeadLetter:
    """A person's decision; refused if the dead letter is not open. `new_run` is the run that was started instead."""

    dead_letter_id: str
    status: DeadLetterDecision
    decided_by: str
    note: str
    new_run: str | None
