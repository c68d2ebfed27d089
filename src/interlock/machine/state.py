"""The machine's state: a fold over the run's events, never stored as such."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from enum import StrEnum
from typing import cast

from pydantic import TypeAdapter

from interlock.base.json import Json
from interlock.base.refs import Ref
from interlock.base.usage import Usage
from interlock.base.values import value
from interlock.machine.events import TERMINAL, Failure, RunStatus
from interlock.machine.names import TimerKey
from interlock.machine.persistent import PersistentMap
from interlock.machine.version import require_known
from interlock.workflows.facts import Facts


class StepStatus(StrEnum):
    RUNNING = "running"  # performed by a worker now
    PAUSED = "paused"  # to be performed once the run is resumed
    RETRYING = "retrying"  # waits for its backoff timer, or for a slot
    REVIEWING = "reviewing"  # a person is asked for a decision
    APPROVING = "approving"  # a person is asked to approve one call of a mutating tool
    CONFIRMING = "confirming"  # a person is asked whether an unknown effect happened
    WAITING = "waiting"  # for time or a signal
    HELD = "held"  # failed for good, in the dead-letter queue
    OPEN = "open"  # a container whose inside is under way
    ENDING = "ending"  # a container that failed and whose inside is being finished and compensated
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    COMPENSATING = "compensating"  # its compensation is being performed
    COMPENSATION_RETRYING = "compensation_retrying"
    COMPENSATED = "compensated"
    COMPENSATION_FAILED = "compensation_failed"  # in the dead-letter queue
    COMPENSATION_ABANDONED = "compensation_abandoned"  # a person decided that the effect stays


# What a worker does now.
WORKING = frozenset({StepStatus.RUNNING, StepStatus.COMPENSATING})
# What was done and is to be, is being, or was taken back; also what could not be.
COMPENSATION = frozenset(
    {
        StepStatus.COMPENSATING,
        StepStatus.COMPENSATION_RETRYING,
        StepStatus.COMPENSATED,
        StepStatus.COMPENSATION_FAILED,
        StepStatus.COMPENSATION_ABANDONED,
    }
)
# Work whose end must be awaited before what it stands in may end: an effect may be happening.
BUSY = WORKING | {StepStatus.COMPENSATION_RETRYING, StepStatus.CONFIRMING}
# What must be over before a container around it that failed is finished.
UNFINISHED = BUSY | {StepStatus.ENDING}
OVER = frozenset({StepStatus.SUCCEEDED, StepStatus.FAILED})
# What needs nothing any more, unless a container around it fails.
SETTLED = frozenset(
    {StepStatus.SUCCEEDED, StepStatus.FAILED, StepStatus.COMPENSATED, StepStatus.COMPENSATION_ABANDONED}
)


@value(frozen=True, slots=True)
class ApprovalRequest:
    """Approval that an instance in `APPROVING` waits for; the fields are those of `ApprovalNeeded`."""

    digest: str
    input: Ref
    policy: str
    role: str


@value(frozen=True, slots=True)
class StepState:
    """One instance of a step, or one item or round of a container.

    Attributes:
        attempt: counts from 1, through all variants.
        variant: 0 is the step itself, n its n-th fallback; `tries` counts the attempts at this one.
        deferrals: how often the current attempt was put off.
        failure: of the last attempt.
        compensation_attempt: counts its compensations.
        decisions: the times of the decisions about this instance after which it went on: a second delivery of one is ignored.
        asked: how often an approval was asked for, at this variant; `request` is what is being asked for.
        tool: of an agent's call, the tool that the model named.
        calls: of an agent's turn, the tools it wants called.
        entry: of a map, its items; of a subworkflow, its input. `facts` are then theirs while it is open.
        iteration: of a map, the last item started; of a loop or an agent, the round or turn it is in. From 1.
        override: arguments that a person put in the place of the bound ones.
        expired: its deadline passed while it was being performed.
        begun: the attempt with which it began, or began anew out of the dead-letter queue; its deadline counts from there.
    """

    status: StepStatus
    attempt: int = 1
    variant: int = 0
    tries: int = 1
    deferrals: int = 0
    output: Ref | None = None
    facts: Facts = field(default_factory=dict)
    failure: Failure | None = None
    compensation_attempt: int = 0
    decisions: tuple[float, ...] = ()
    asked: int = 0
    request: ApprovalRequest | None = None
    tool: str | None = None
    calls: tuple[str, ...] = ()
    entry: Ref | None = None
    iteration: int = 0
    override: Ref | None = None
    expired: bool = False
    begun: int = 1


def is_settled(step: StepState, *, opens_body: bool) -> bool:
    """True if the result of a step may be read; a compensated one may not.

    Args:
        opens_body: of a map or a subworkflow, which while it is open keeps its items' counts, or its input's facts, there.
    """
    return step.status is StepStatus.SUCCEEDED if opens_body else step.status not in COMPENSATION


def limit_key(name: str, step: StepState) -> str:
    """The timer of an instance's deadline."""
    return str(TimerKey.limit(name, step.begun))


@value(frozen=True, slots=True)
class Ending:
    """How the run will end once what is under way is over."""

    status: RunStatus
    reason: str


@value(frozen=True, slots=True)
class Kept:
    """A signal that came before anybody waited for it."""

    signal_id: str
    payload: Ref
    facts: Facts


@value(frozen=True, slots=True)
class Failing:
    """A container that failed and is not finished yet.

    Attributes:
        unfinished: instances inside it, at any depth, that are in `UNFINISHED`.
        remaining: undoable instances inside it that are still to be compensated, in the order of their success, so the last one
            is next; None until everything inside it is over.
        left: how many of `remaining` have not been compensated.
    """

    failure: Failure
    unfinished: int = 0
    remaining: tuple[str, ...] | None = None
    left: int = 0


@value(frozen=True, slots=True)
class RunState:
    """A run. A value: `advance` makes another one, whose mappings share what did not change.

    Attributes:
        machine: the version of the machine that drives it, to its end.
        live: instances that are not in `SETTLED`: what is performed, waits, or is a container under way.
        completed: undoable instances that succeeded and were not compensated, in the order of their success.
        timers: key → due, seconds since the epoch.
        working, busy: how many instances are in `WORKING` and `BUSY`.
        done: steps that succeeded, containers aside.
        ending: set when the run can no longer succeed; then nothing new starts.
        failing: containers that failed and are not finished yet.
        usage: of all calls together, without provider and model.
        degraded: why the run will end as partial although it goes on.
        paused: nothing new is performed.
        signals: name → signals that no step has waited for yet; `received`: ids of all signals taken.
    """

    status: RunStatus = RunStatus.QUEUED
    machine: int = 1
    seed: int = 0
    input_facts: Facts = field(default_factory=dict)
    steps: Mapping[str, StepState] = field(default_factory=PersistentMap[StepState])
    live: Mapping[str, bool] = field(default_factory=PersistentMap[bool])
    completed: Mapping[str, bool] = field(default_factory=PersistentMap[bool])
    timers: Mapping[str, float] = field(default_factory=PersistentMap[float])
    working: int = 0
    busy: int = 0
    done: int = 0
    retries: int = 0
    usage: Usage = field(default_factory=Usage)
    ending: Ending | None = None
    failing: Mapping[str, Failing] = field(default_factory=PersistentMap[Failing])
    degraded: str | None = None
    paused: bool = False
    signals: Mapping[str, tuple[Kept, ...]] = field(default_factory=dict)
    received: frozenset[str] = frozenset()
    reason: str | None = None

    @property
    def over(self) -> bool:
        return self.status in TERMINAL

    @property
    def outputs(self) -> dict[str, Ref]:
        """Outputs of the instances that have one."""
        return {name: step.output for name, step in self.steps.items() if step.output is not None}


_STATE: TypeAdapter[RunState] = TypeAdapter(RunState)


def state_to_json(state: RunState) -> Json:
    """The state as JSON, for an engine that forwards it whole; the journal is what is kept."""
    plain = replace(
        state,
        steps=dict(state.steps),
        live=dict(state.live),
        completed=dict(state.completed),
        timers=dict(state.timers),
        failing=dict(state.failing),
    )
    return cast("Json", _STATE.dump_python(plain, mode="json"))


def state_from_json(data: Json) -> RunState:
    """The state that `state_to_json` gave.

    Raises:
        NeedsNewerRelease: it is of a machine version that this release does not know.
        pydantic.ValidationError: it is not one.
    """
    state = _STATE.validate_python(data)
    require_known(state.machine)
    return replace(
        state,
        steps=PersistentMap(state.steps),
        live=PersistentMap(state.live),
        completed=PersistentMap(state.completed),
        timers=PersistentMap(state.timers),
        failing=PersistentMap(state.failing),
    )
