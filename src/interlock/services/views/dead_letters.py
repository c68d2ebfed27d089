"""Views of dead letters."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from interlock.base.json import JsonField
from interlock.services.views.base import View

DeadLetterStatus = Literal["open", "requeued", "discarded", "closed"]
DeadLetterPurpose = Literal["step", "compensation", "run", "parked_run"]


class DeadLetterView(View):
    """A dead letter. `step` is empty when it is about a whole run; `new_run` is the run that a requeue started."""

    dead_letter_id: str
    run_id: str
    workflow: str
    version: str
    step: str
    purpose: DeadLetterPurpose
    code: str
    reason: str
    status: DeadLetterStatus
    decided_by: str | None
    note: str | None
    new_run: str | None
    created_at: datetime
    decided_at: datetime | None


class DeadLetterDetail(DeadLetterView):
    """A dead letter with values, which are redacted, and null once a person they are about was erased.

    Attributes:
        input: what a requeue would try again with; `editable` says whether a requeue may replace it.
        error_detail: the tool's own message about its failure.
        traceback, printed: as of the run's failures.
    """

    input: JsonField
    error_detail: str | None
    traceback: str | None
    printed: str | None
    editable: bool


class DeadLetterPage(View):
    """Dead letters, oldest first. `next` is the `after` of the next page; null if this one is not full."""

    dead_letters: list[DeadLetterView]
    next: str | None = None
