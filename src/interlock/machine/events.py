"""Events (input) and commands (output) of the state machine. The journal is the list of events; its fold is the state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from enum import StrEnum
from typing import Annotated, Literal, cast, get_args, get_type_hints

from pydantic import Field, TypeAdapter

from interlock.base.errors import FailureKind
from interlock.base.json import Json, JsonObject
from interlock.base.refs import Ref
from interlock.base.usage import Usage
from interlock.base.values import value
from interlock.machine.version import NeedsNewerRelease
from interlock.workflows.facts import Facts


class RunStatus(StrEnum):
    """Where a run stands; the moves allowed are `RUN_MOVES`, which the database enforces too."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    COMPENSATING = "compensating"
    SUCCEEDED = "succeeded"
    PARTIAL = "partial"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DEAD = "dead"


TERMINAL = frozenset({RunStatus.SUCCEEDED, RunStatus.PARTIAL, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.DEAD})

RUN_MOVES: dict[RunStatus, frozenset[RunStatus]] = {
    RunStatus.QUEUED: frozenset({RunStatus.RUNNING, RunStatus.WAITING, RunStatus.COMPENSATING}) | TERMINAL,
    RunStatus.RUNNING: frozenset({RunStatus.WAITING, RunStatus.COMPENSATING}) | TERMINAL,
    RunStatus.WAITING: frozenset({RunStatus.RUNNING, RunStatus.COMPENSATING}) | TERMINAL,
    RunStatus.COMPENSATING: frozenset({RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.PARTIAL, RunStatus.DEAD}),
    **{ending: frozenset() for ending in TERMINAL},
    # What could not be undone can be tried again by a person, out of the dead-letter queue.
    RunStatus.DEAD: frozenset({RunStatus.COMPENSATING, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.PARTIAL}),
}


@value(frozen=True, slots=True)
class Failure:
    """Why a step did not succeed. `message` is one sentence, free of values.

    `ambiguous` means that a mutating tool may have done its work all the same, in this attempt or an earlier one; such a
    step never simply fails. Who reports a later failure without it says that the earlier doubt is settled.
    `words` is what the tool itself said about it.
    """

    kind: FailureKind
    code: str
    message: str
    retry_after: float | None = None
    ambiguous: bool = False
    error_detail: Ref | None = None


@value(frozen=True, slots=True)
class RunStarted:
    """First event of every run. `seed` feeds the jitter; `facts` are the input's; `machine` is the version it is driven by."""

    at: float
    seed: int
    facts: Facts = field(default_factory=dict)
    machine: int = 1
    type: Literal["run_started"] = "run_started"


@value(frozen=True, slots=True)
class StepSucceeded:
    """An attempt at a step gave a result.

    Attributes:
        began: when the kernel began with the attempt; like `at`, seconds since the epoch by the database's clock. Here and in
            the other outcomes the machine decides nothing by it.
        usage: of a model step; None of other steps.
        calls: for an agent's turn, the tools it wants called, in its order; none means that this is its answer.
        request: the rendered request of a model call; None if no model was asked.
    """

    step: str
    attempt: int
    began: float
    at: float
    output: Ref
    facts: Facts = field(default_factory=dict)
    usage: Usage | None = None
    calls: tuple[str, ...] = ()
    request: Ref | None = None
    type: Literal["step_succeeded"] = "step_succeeded"


@value(frozen=True, slots=True)
class StepFailed:
    """An attempt at a step failed; fields as in `StepSucceeded`."""

    step: str
    attempt: int
    began: float
    at: float
    failure: Failure
    usage: Usage | None = None
    request: Ref | None = None
    type: Literal["step_failed"] = "step_failed"


@value(frozen=True, slots=True)
class StepDeferred:
    """Nothing was tried, for want of a slot or a place in a rate limit: the same attempt again after `delay` seconds.

    Attributes:
        ambiguous: the attempt had begun before, in a worker that was lost: its effect may have happened.
    """

    step: str
    attempt: int
    began: float
    at: float
    delay: float
    ambiguous: bool = False
    type: Literal["step_deferred"] = "step_deferred"


@value(frozen=True, slots=True)
class ApprovalNeeded:
    """Nothing was tried: policy would allow the call of a mutating tool if a person approved exactly this call.

    Attributes:
        digest: of the act, see `execution.approvals`.
        input: the arguments of the call.
        policy: version of the policy set that asks; it is part of the act.
        role: what a person needs to decide.
    """

    step: str
    attempt: int
    began: float
    at: float
    digest: str
    input: Ref
    policy: str
    role: str = "reviewer"
    type: Literal["approval_needed"] = "approval_needed"


@value(frozen=True, slots=True)
class ReviewDecided:
    """A person decided. For a `confirm` review, approved means: yes, the effect happened, and `output` is what it gave.

    Attributes:
        digest: of the act that an `approve_act` review asked about; the decision is of no meaning for another one.
    """

    step: str
    at: float
    approved: bool
    output: Ref
    facts: Facts = field(default_factory=dict)
    digest: str = ""
    type: Literal["review_decided"] = "review_decided"


@value(frozen=True, slots=True)
class TimerFired:
    timer: str
    at: float
    type: Literal["timer_fired"] = "timer_fired"


@value(frozen=True, slots=True)
class CompensationSucceeded:
    step: str
    attempt: int
    began: float
    at: float
    type: Literal["compensation_succeeded"] = "compensation_succeeded"


@value(frozen=True, slots=True)
class CompensationFailed:
    step: str
    attempt: int
    began: float
    at: float
    failure: Failure
    type: Literal["compensation_failed"] = "compensation_failed"


@value(frozen=True, slots=True)
class CancelRequested:
    at: float
    reason: str
    type: Literal["cancel_requested"] = "cancel_requested"


@value(frozen=True, slots=True)
class SignalReceived:
    """A signal was received. It is kept until a step waits for it; one id counts once."""

    name: str
    signal_id: str
    at: float
    payload: Ref
    facts: Facts = field(default_factory=dict)
    type: Literal["signal_received"] = "signal_received"


@value(frozen=True, slots=True)
class PauseRequested:
    """Pause: work under way is finished, nothing new is performed until ResumeRequested."""

    at: float
    reason: str = ""
    type: Literal["pause_requested"] = "pause_requested"


@value(frozen=True, slots=True)
class ResumeRequested:
    at: float
    type: Literal["resume_requested"] = "resume_requested"


@value(frozen=True, slots=True)
class DeadLetterRequeued:
    """A dead letter is to be tried again. `input` replaces the step's arguments, if an operator edited them."""

    step: str
    at: float
    input: Ref | None = None
    type: Literal["dead_letter_requeued"] = "dead_letter_requeued"


@value(frozen=True, slots=True)
class DeadLetterDiscarded:
    """A dead letter is given up: the step has failed, or its effect stays as it is."""

    step: str
    at: float
    type: Literal["dead_letter_discarded"] = "dead_letter_discarded"


Event = Annotated[
    RunStarted
    | StepSucceeded
    | StepFailed
    | StepDeferred
    | ApprovalNeeded
    | ReviewDecided
    | TimerFired
    | CompensationSucceeded
    | CompensationFailed
    | CancelRequested
    | SignalReceived
    | PauseRequested
    | ResumeRequested
    | DeadLetterRequeued
    | DeadLetterDiscarded,
    Field(discriminator="type"),
]


@value(frozen=True, slots=True)
class Perform:
    """Do a step's work; answer with StepSucceeded or StepFailed of the same attempt."""

    step: str
    attempt: int


@value(frozen=True, slots=True)
class Compensate:
    """Undo a completed mutating step; answer with CompensationSucceeded or CompensationFailed."""

    step: str
    attempt: int


@value(frozen=True, slots=True)
class StartTimer:
    """Answer with TimerFired at `due` (seconds since the epoch), not before."""

    timer: str
    due: float


@value(frozen=True, slots=True)
class OpenReview:
    """Ask a person; answer with ReviewDecided.

    `approve` is a review step, `approve_act` asks for one call of a mutating tool, `confirm` whether an unknown effect happened.
    """

    step: str
    purpose: Literal["approve", "approve_act", "confirm"]


@value(frozen=True, slots=True)
class CloseReview:
    """The question of this step needs no answer any more."""

    step: str


@value(frozen=True, slots=True)
class OpenDeadLetter:
    """A step waits in the dead-letter queue: finally failed, or not to be undone. Answer with DeadLetterRequeued or -Discarded."""

    step: str
    purpose: Literal["step", "compensation"]


@value(frozen=True, slots=True)
class CloseDeadLetter:
    """The dead letter of this step needs no decision any more."""

    step: str


@value(frozen=True, slots=True)
class Finish:
    """The run is over."""

    status: RunStatus
    reason: str | None


Command = Perform | Compensate | StartTimer | OpenReview | CloseReview | OpenDeadLetter | CloseDeadLetter | Finish

_EVENTS: TypeAdapter[Event] = TypeAdapter(Event)
_KINDS = frozenset(get_args(get_type_hints(one)["type"])[0] for one in get_args(get_args(Event)[0]))
_REFS = ("output", "payload", "input", "request")
_ref = cast("Callable[[JsonObject], Ref]", Ref.from_json)  # of what `event_to_json` wrote


def event_to_json(event: Event) -> dict[str, Json]:
    """JSON of an event, as the journal keeps it."""
    return {name: _to_json(getattr(event, name)) for name in event.__slots__}


def _to_json(value: object) -> Json:
    if isinstance(value, Ref | Usage):
        return cast("Json", value.to_json())
    if isinstance(value, Failure):
        return {name: _to_json(getattr(value, name)) for name in value.__slots__}
    return list(value) if isinstance(value, tuple) else cast("Json", value)


def event_from_json(data: Mapping[str, Json]) -> Event:
    """The event of a journal entry.

    Raises:
        NeedsNewerRelease: it is of a kind that this release does not know.
        pydantic.ValidationError: it is no event.
    """
    kind = data.get("type")
    if isinstance(kind, str) and kind not in _KINDS:
        message = f'this run needs a newer release: its journal has an event "{kind[:60]}", unknown to this one'
        raise NeedsNewerRelease(message)
    fields: dict[str, object] = dict(data)
    for name in _REFS:
        if isinstance(ref := data.get(name), Mapping):
            fields[name] = _ref(ref)
    if isinstance(failure := data.get("failure"), Mapping) and isinstance(
        detail := failure.get("error_detail"), Mapping
    ):
        fields["failure"] = {**failure, "error_detail": _ref(detail)}
    return _EVENTS.validate_python(fields)
