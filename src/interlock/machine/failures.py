"""Handling of failures: retries, fallbacks, confirmation by a person, abandoning, compensation, ending."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from interlock.base.errors import FailureKind
from interlock.machine import events as ev
from interlock.machine.events import Failure, RunStatus
from interlock.machine.flow import item_done
from interlock.machine.names import CALL, DEADLINE, EffectName, TimerKey, TimerKind, id_of, is_numbered, path_of
from interlock.machine.retry import RETRYABLE, backoff
from interlock.machine.state import UNFINISHED, Ending, Failing, StepState, StepStatus, limit_key
from interlock.machine.transition import Transition, not_compensated
from interlock.workflows.spec import CONTAINERS, MapStep, ModelStep, RetryPolicy, ToolStep

REJECTED = "rejected"
"""Code of the failure of a review whose reviewer said no."""

_ONCE = RetryPolicy(max_attempts=1)
# Statuses that only wait. A step in one of them can be abandoned at any moment: nothing outside depends on it.
_IDLE = frozenset(
    {
        StepStatus.RETRYING,
        StepStatus.PAUSED,
        StepStatus.WAITING,
        StepStatus.OPEN,
        StepStatus.REVIEWING,
        StepStatus.APPROVING,
        StepStatus.HELD,
    }
)


# -- one step ------------------------------------------------------------------------------------------------------


def attempt_failed(transition: Transition, name: str, step: StepState, failure: Failure) -> None:
    """An attempt failed: again, another way, ask a person, or for good."""
    if failure.kind is FailureKind.BUDGET and not failure.ambiguous:
        transition.put(name, replace(step, status=StepStatus.FAILED, failure=failure))
        transition.unlimit(name)
        end(transition, RunStatus.PARTIAL, failure.message)
    elif _may_retry(transition, name, step, failure):
        _retry_later(transition, name, step, failure)
    elif failure.ambiguous:
        confirm(transition, name, replace(step, failure=failure))
    else:
        give_up(transition, name, step, failure)


def give_up(transition: Transition, name: str, step: StepState, failure: Failure) -> None:
    """This way of doing it has failed for good, and surely did nothing: the next declared fallback, or failure."""
    spec = transition.program.node(name).step
    ladder = spec.fallback if isinstance(spec, ModelStep | ToolStep) else []
    # A refusal is a decision, not an accident: nothing is tried in its place.
    if step.variant < len(ladder) and failure.kind is not FailureKind.DENIED and not transition.blocked(name):
        transition.unlimit(name)
        fresh = replace(
            step,
            attempt=step.attempt + 1,
            variant=step.variant + 1,
            tries=1,
            deferrals=0,
            failure=failure,
            asked=0,  # another tool's call is another act
            expired=False,
            # What a person put in the place of the step's arguments is not for a tool that is given its own.
            override=None if ladder[step.variant].input is not None else step.override,
        )
        transition.perform(name, fresh)
    else:
        transition.fail(name, step, failure)


def out_of_time(transition: Transition, name: str, step: StepState) -> None:
    """A step whose deadline has passed is not tried again: its fallbacks or failure, once no effect is in doubt."""
    if step.failure is not None and step.failure.ambiguous:
        confirm(transition, name, replace(step, expired=True))
    else:
        give_up(transition, name, step, deadline_passed(transition, name))


def deadline_passed(transition: Transition, name: str) -> Failure:
    seconds = getattr(transition.program.node(name).step, "deadline", None) or 0.0
    return Failure(FailureKind.PERMANENT, "deadline", f"its deadline of {seconds:g} s passed")


def confirm(transition: Transition, name: str, step: StepState) -> None:
    """An effect may have happened; until a person has said which, the run can neither go on nor undo."""
    transition.put(name, replace(step, status=StepStatus.CONFIRMING))
    transition.commands.append(ev.OpenReview(name, "confirm"))


def _policy(transition: Transition, name: str) -> RetryPolicy:
    step = transition.program.node(name).step
    return step.retry if isinstance(step, ModelStep | ToolStep) else _ONCE


def _may_retry(transition: Transition, name: str, step: StepState, failure: Failure) -> bool:
    return (
        failure.kind in RETRYABLE
        and not step.expired
        and step.tries < _policy(transition, name).max_attempts
        and transition.retries < transition.program.workflow.budget.retries
        and not transition.blocked(name)
    )


def _retry_later(transition: Transition, name: str, step: StepState, failure: Failure) -> None:
    transition.retries += 1
    wait = backoff(
        _policy(transition, name),
        attempt=step.tries,
        seed=transition.seed,
        key=str(EffectName(name, step.variant)),
        retry_after=failure.retry_after,
    )
    transition.put(name, replace(step, status=StepStatus.RETRYING, failure=failure))
    transition.timer(str(TimerKey.retry(name, step.attempt)), transition.at + wait)


# -- what it stands in ---------------------------------------------------------------------------------------------


def failed(transition: Transition, name: str, failure: Failure) -> None:
    """Handles a final failure: a tolerant container continues without the step; else a dead letter opens or the run ends."""
    if transition.blocked(name):
        return
    spec = transition.program.node(name).step
    if id_of(path_of(name)) == CALL and transition.program.node(name).agent is not None:
        transition.todo.append(("leave", name, None))  # the model gets the failure, and may choose another call
    elif isinstance(spec, CONTAINERS) and spec.on_failure == "continue":
        _let_fail(transition, name, failure)
    elif spec.on_failure == "continue":
        _degrade(transition, name, failure)
        transition.todo.append(("leave", name, None))
    elif (container := _tolerant(transition, name)) is not None:
        _let_fail(transition, container, failure)
    elif transition.program.workflow.on_failure == "hold" and isinstance(spec, ModelStep | ToolStep):
        transition.put(name, replace(transition.steps[name], status=StepStatus.HELD))
        transition.commands.append(ev.OpenDeadLetter(name, "step"))
        if (agent := transition.agent_of(name)) is not None:
            transition.unlimit(agent)
    else:
        end(transition, RunStatus.FAILED, _reason(name, failure))


def _tolerant(transition: Transition, name: str) -> str | None:
    """The innermost thing around a step that may fail without the run failing."""
    for container in transition.ancestors(name):
        spec = transition.program.node(container).step
        if is_numbered(container):
            # Of the frames only a map's item may fail by itself; a round or a turn fails its loop or agent.
            if isinstance(spec, MapStep) and spec.on_item_failure == "continue":
                return container
        elif spec.on_failure == "continue":
            return container
    return None


def _degrade(transition: Transition, name: str, failure: Failure) -> None:
    if transition.degraded is None:
        transition.degraded = _reason(name, failure)


def _reason(name: str, failure: Failure) -> str:
    return failure.message if failure.code == REJECTED else f'step "{name}": {failure.message}'


def _let_fail(transition: Transition, container: str, failure: Failure) -> None:
    inside = list(transition.inside(container))
    unfinished = sum(transition.steps[name].status in UNFINISHED for name in inside)
    transition.failing[container] = Failing(failure, unfinished)
    _degrade(transition, container, failure)
    state = transition.steps[container]
    transition.put(container, replace(state, status=StepStatus.ENDING, failure=failure))
    transition.unlimit(container)
    _abandon(transition, inside)


def _abandon(transition: Transition, names: Iterable[str]) -> None:
    """Drops what only waits. What works is awaited; a doubt is put to a person."""
    for name in names:
        step = transition.steps[name]
        if step.status not in _IDLE:
            continue
        _forget_timers(transition, name, step)
        waits = step.status in {StepStatus.RETRYING, StepStatus.PAUSED}
        if waits and step.failure is not None and step.failure.ambiguous:
            confirm(transition, name, step)
            continue
        if step.status in {StepStatus.REVIEWING, StepStatus.APPROVING}:
            transition.commands.append(ev.CloseReview(name))
        elif step.status is StepStatus.HELD:
            transition.commands.append(ev.CloseDeadLetter(name))
        transition.put(name, replace(step, status=StepStatus.FAILED))


def _forget_timers(transition: Transition, name: str, step: StepState) -> None:
    if transition.timers:
        transition.timers.pop(limit_key(name, step))
        transition.timers.pop(str(TimerKey.wait(name)))
        forget_attempt_timers(transition, name, step)


def forget_attempt_timers(transition: Transition, name: str, step: StepState) -> None:
    """The attempt that a step waits for is not made any more."""
    transition.timers.pop(str(TimerKey.retry(name, step.attempt)))
    transition.timers.pop(str(TimerKey.defer(name, step.attempt, step.deferrals)))


def end(transition: Transition, status: RunStatus, reason: str) -> bool:
    """Nothing new starts from here; what only waits is dropped, what works is awaited. False if it was ending already."""
    if transition.ending is not None:
        return False
    transition.ending = Ending(status, reason)
    transition.paused = False
    transition.timers.pop(DEADLINE)
    _abandon(transition, list(transition.live))
    return True


def conclude(transition: Transition) -> None:
    """Finishes what is ending and has nothing under way inside any more: first containers, then the run."""
    # Only where something changed: a thousand items that fail are looked at a thousand times, not a million.
    while transition.failing and transition.changed:
        around = {
            one
            for name in transition.changed
            for one in (name, *transition.ancestors(name))
            if one in transition.failing
        }
        transition.changed.clear()
        # The innermost first: it must be over before what holds it.
        for container in sorted(around, key=lambda one: (-sum(1 for _ in transition.ancestors(one)), one)):
            _conclude_container(transition, container)
    if transition.ending is not None and not transition.busy and not transition.failing:
        _conclude_run(transition, transition.ending)


def _conclude_container(transition: Transition, container: str) -> None:
    failing = transition.failing[container]
    if failing.unfinished:
        return
    if failing.remaining is None:
        completed = transition.completed
        inside = [name for name in transition.inside(container) if name in completed] if completed else []
        remaining = tuple(sorted(inside, key=completed.position))
        failing = replace(failing, remaining=remaining, left=len(remaining))
    if failing.remaining and failing.left:
        name = failing.remaining[failing.left - 1]
        transition.failing[container] = replace(failing, left=failing.left - 1)
        compensate(transition, name, transition.steps[name])
        return
    transition.failing.pop(container)
    transition.put(container, replace(transition.steps[container], status=StepStatus.FAILED))
    if isinstance(transition.program.node(container).step, MapStep) and is_numbered(container):
        item_done(transition, container, succeeded=False)
    elif not transition.blocked(
        container
    ):  # asked now: what is around it may be concluded before the leaving's turn comes
        transition.todo.append(("leave", container, None))


def _conclude_run(transition: Transition, ending: Ending) -> None:
    if ending.status in {RunStatus.FAILED, RunStatus.CANCELLED}:
        remaining = transition.completed.last()
        if remaining is not None:
            transition.status = RunStatus.COMPENSATING
            compensate(transition, remaining, transition.steps[remaining])
            return
    stuck = sorted(not_compensated(transition))
    if stuck:
        transition.status = RunStatus.DEAD
        transition.reason = "; ".join(filter(None, [ending.reason, f"could not undo {', '.join(stuck)}"]))
    else:
        transition.status, transition.reason = ending.status, ending.reason or None


# -- undoing -------------------------------------------------------------------------------------------------------


def compensate(transition: Transition, name: str, step: StepState) -> None:
    """Has a completed step undone."""
    attempt = step.compensation_attempt + 1
    transition.completed.pop(name)
    transition.put(name, replace(step, status=StepStatus.COMPENSATING, compensation_attempt=attempt))
    transition.commands.append(ev.Compensate(name, attempt))


def compensation_failed(transition: Transition, name: str, step: StepState, failure: Failure) -> None:
    """Again later, or into the dead-letter queue. Undoing is not charged to the run's retry budget: a run out of retries
    must still clean up."""
    policy = _policy(transition, name)
    if failure.kind in RETRYABLE and step.compensation_attempt % policy.max_attempts:
        wait = backoff(
            policy,
            attempt=step.compensation_attempt % policy.max_attempts,
            seed=transition.seed,
            key=str(TimerKey(TimerKind.COMPENSATE, name)),
            retry_after=failure.retry_after,
        )
        transition.put(name, replace(step, status=StepStatus.COMPENSATION_RETRYING, failure=failure))
        transition.timer(str(TimerKey.compensate(name, step.compensation_attempt)), transition.at + wait)
    else:
        transition.put(name, replace(step, status=StepStatus.COMPENSATION_FAILED, failure=failure))
        transition.commands.append(ev.OpenDeadLetter(name, "compensation"))
