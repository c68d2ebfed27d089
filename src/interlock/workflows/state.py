"""The machine's state: a fold over the run's events, never stored as such."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from interlock.base.refs import Ref
from interlock.workflows.events import TERMINAL, Failure, RunStatus, Spent
from interlock.workflows.facts import Facts


class StepStatus(StrEnum):
    RUNNING = "running"  # performed by a worker now
    RETRYING = "retrying"  # failed, waits for its backoff timer
    REVIEWING = "reviewing"  # a person is asked for a decision
    CONFIRMING = "confirming"  # a person is asked whether an unknown effect happened
    OPEN = "open"  # a container whose branches are under way
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    UNDOING = "undoing"  # its compensation is being performed
    UNDO_RETRYING = "undo_retrying"
    UNDONE = "undone"
    UNDO_FAILED = "undo_failed"


# Work whose end must be awaited before the run may end: an effect may be happening.
BUSY = frozenset({StepStatus.RUNNING, StepStatus.UNDOING, StepStatus.UNDO_RETRYING, StepStatus.CONFIRMING})


@dataclass(frozen=True, slots=True)
class StepState:
    """One step.

    Attributes:
        attempt: counts from 1.
        failure: of the last attempt.
        undo_attempt: counts its compensations.
        denials: the times at which a person said that the effect in doubt had not happened.
    """

    status: StepStatus
    attempt: int = 1
    output: Ref | None = None
    facts: Facts = field(default_factory=dict)
    failure: Failure | None = None
    undo_attempt: int = 0
    denials: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Ending:
    """How the run will end once what is under way is over."""

    status: RunStatus
    reason: str


@dataclass(frozen=True, slots=True)
class RunState:
    """A run.

    Attributes:
        completed: undoable steps that succeeded, in the order of their success.
        timers: key → due, seconds since the epoch.
        ending: set when the run can no longer succeed; then nothing new starts.
    """

    status: RunStatus = RunStatus.QUEUED
    seed: int = 0
    input_facts: Facts = field(default_factory=dict)
    steps: Mapping[str, StepState] = field(default_factory=dict)
    completed: tuple[str, ...] = ()
    timers: Mapping[str, float] = field(default_factory=dict)
    retries: int = 0
    spent: Spent = field(default_factory=Spent)
    ending: Ending | None = None
    reason: str | None = None

    @property
    def over(self) -> bool:
        return self.status in TERMINAL

    def facts(self, step_ids: Mapping[str, object]) -> dict[str, Facts]:
        """Facts by step id, `{}` for steps that have none yet, and the input's under `input`."""
        known = {name: self.steps[name].facts if name in self.steps else {} for name in step_ids}
        return {**known, "input": self.input_facts}

    @property
    def outputs(self) -> dict[str, Ref]:
        """Outputs of the steps that have one."""
        return {name: step.output for name, step in self.steps.items() if step.output is not None}
