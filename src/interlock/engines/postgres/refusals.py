"""Transactions that the database refused for a value in them, as the driver of a run takes them back."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from interlock.base.errors import InvalidInput
from interlock.execution.run import StepOutcome
from interlock.machine.events import CompensationFailed, CompensationSucceeded
from interlock.machine.state import RunState

Work = tuple[bool, str, int]
"""Whether it compensates, the step's name, and the attempt."""

Arrived = asyncio.Queue[StepOutcome | BaseException]


@dataclass(slots=True)
class Sent:
    """The last transaction, as it must be known to take it back.

    Attributes:
        state: of the run before it; `seq` likewise.
        outcomes: all that it records, in order; `given` is the list that came with it from outside.
        begun: work that began before it was durable.
    """

    state: RunState
    seq: int
    outcomes: list[StepOutcome]
    given: list[StepOutcome] | None
    begun: dict[asyncio.Task[None], Work] = field(default_factory=dict)


class Refused(InvalidInput):
    """Nothing of the transaction `sent` is durable."""

    def __init__(self, sent: Sent, error: InvalidInput) -> None:
        super().__init__(error.message, detail=error.detail)
        self.sent = sent


def work_in(item: Any) -> Work | None:
    """The work whose outcome an item of the queue is."""
    event = item.event if isinstance(item, StepOutcome) else None
    step, attempt = getattr(event, "step", None), getattr(event, "attempt", None)
    if step is None or attempt is None:
        return None
    return isinstance(event, CompensationSucceeded | CompensationFailed), step, attempt


def sift(queue: Arrived, void: set[Work]) -> set[Work]:
    """Drops the outcomes of void work from a queue; the work of those that stay."""
    left: set[Work] = set()
    for item in [queue.get_nowait() for _ in range(queue.qsize())]:
        work = work_in(item)
        if work is None or work not in void:
            queue.put_nowait(item)
            left |= {work} if work is not None else set()
    return left
