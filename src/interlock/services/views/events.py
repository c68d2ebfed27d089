"""Views of a run's event stream, one model per kind of server-sent event.

Journal entries carry their sequence number as the event's id and arrive each once, in order. All other kinds tell the state of
the run at the moment of a look at it: what happened between two looks arrives as one change.
"""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict

from interlock.machine.events import RunStatus
from interlock.services.views.base import Cost, View
from interlock.services.views.reviews import ReviewPurpose, ReviewStatus


class JournalEntry(View):
    """An entry of the run's journal: its number, its type and the fields of that type. The event's name is the type."""

    model_config = ConfigDict(extra="allow")

    seq: int
    type: str


class StatusChanged(View):
    """Event `status`: the run's status, at the beginning of the stream and after each change."""

    run_id: str
    status: RunStatus
    reason: str | None


class Waiting(View):
    """Event `waiting`: the run waits, or waits for other questions than before.

    Timers and signals that it waits for are in `waits_for` of the run itself.
    """

    run_id: str
    reviews: list[str]
    dead_letters: list[str]


class ReviewOpened(View):
    """Event `review_opened`: a person is asked. At the beginning of the stream, one for each open review."""

    run_id: str
    review_id: str
    step: str
    purpose: ReviewPurpose
    title: str
    role: str


class ReviewClosed(View):
    """Event `review_closed`: a review that this stream named as open was decided, or is no longer needed (`closed`)."""

    run_id: str
    review_id: str
    step: str
    status: ReviewStatus
    decided_by: str | None


class RunEnded(Cost):
    """Event `end`: the run is over and the stream ends."""

    run_id: str
    status: RunStatus
    reason: str | None
    input_tokens: int
    output_tokens: int


class StreamFailed(View):
    """Event `error`: the stream ends although the run may go on, such as after the key was revoked."""

    code: str
    message: str


StateKind = Literal["status", "waiting", "review_opened", "review_closed", "end", "error"]
StreamEvent = JournalEntry | StatusChanged | Waiting | ReviewOpened | ReviewClosed | RunEnded | StreamFailed
