"""What happens when something fails: retries, fallbacks, asking a person, letting go, undoing, ending."""

from __future__ import annotations

from dataclasses import replace

from interlock.base.errors import FailureKind
from interlock.machine import events as ev
from interlock.machine.events import Failure, RunStatus
from interlock.machine.flow import item_done
from interlock.machine.program import CALL, path_of
from interlock.machine.retry import RETRYABLE, backoff
from interlock.machine.state import BUSY, Ending, StepState, StepStatus, limit_key
from interlock.machine.transition import Turn
from interlock.workflows.spec import CONTAINERS, MapStep, ModelStep, RetryPolicy, ToolStep

REJECTED = "rejected"
"""Code of the failure of a review whose reviewer said no."""

_ONCE = RetryPolicy(max_attempts=1)
# What only waits, and can be let go of at any moment: nothing outside depends on it.
_IDLE = frozenset(
    {StepStatus.RETRYING, StepStatus.PAUSED, StepStatus.WAITING, StepStatus.OPEN, StepStatus.REVIEWING, StepStatus.HELD}
)


# -- one step ------------------------------------------------------------------------------------------------------


def attempt_failed(turn: Turn, name: str, step: StepState, failure: Failure) -> None:
    """An attempt failed: again, another way, ask a person, or for good."""
    if failure.kind is FailureKind.BUDGET and not failure.ambiguous:
        turn.put(name, replace(step, status=StepStatus.FAILED, failure=failure))
        turn.unlimit(name)
        end(turn, RunStatus.PARTIAL, failure.message)
    elif _may_retry(turn, name, step, failure):
        _retry_later(turn, name, step, failure)
    elif failure.ambiguous:
        confirm(turn, name, replace(step, failure=failure))
    else:
        give_up(turn, name, step, failure)


def give_up(turn: Turn, name: str, step: StepState, failure: Failure) -> None:
    """This way of doing it has failed for good, and surely did nothing: the next declared fallback, or failure."""
    spec = turn.program.node(name).step
    ladder = spec.fallback if isinstance(spec, ModelStep | ToolStep) else []
    # A refusal is a decision, not an accident: nothing is tried in its place.
    if step.variant < len(ladder) and failure.kind is not FailureKind.DENIED and not turn.blocked(name):
        turn.unlimit(name)
        fresh = replace(
            step,
            attempt=step.attempt + 1,
            variant=step.variant + 1,
            tries=1,
            deferrals=0,
            failure=failure,
            expired=False,
            # What a person put in the place of the step's arguments is not for a tool that is given its own.
            override=None if ladder[step.variant].input is not None else step.override,
        )
        turn.perform(name, fresh)
    else:
        turn.fail(name, step, failure)


def out_of_time(turn: Turn, name: str, step: StepState) -> None:
    """A step whose deadline has passed is not tried again: its fallbacks or failure, once no effect is in doubt."""
    if step.failure is not None and step.failure.ambiguous:
        confirm(turn, name, replace(step, expired=True))
    else:
        give_up(turn, name, step, deadline_passed(turn, name))


def deadline_passed(turn: Turn, name: str) -> Failure:
    seconds = getattr(turn.program.node(name).step, "deadline", None) or 0.0
    return Failure(FailureKind.PERMANENT, "deadline", f"its deadline of {seconds:g} s passed")


def confirm(turn: Turn, name: str, step: StepState) -> None:
    """An effect may have happened; until a person has said which, the run can neither go on nor undo."""
    turn.put(name, replace(step, status=StepStatus.CONFIRMING))
    turn.commands.append(ev.OpenReview(name, "confirm"))


def _policy(turn: Turn, name: str) -> RetryPolicy:
    step = turn.program.node(name).step
    return step.retry if isinstance(step, ModelStep | ToolStep) else _ONCE


def _may_retry(turn: Turn, name: str, step: StepState, failure: Failure) -> bool:
    return (
        failure.kind in RETRYABLE
        and not step.expired
        and step.tries < _policy(turn, name).max_attempts
        and turn.retries < turn.program.workflow.budget.retries
        and not turn.blocked(name)
    )


def _retry_later(turn: Turn, name: str, step: StepState, failure: Failure) -> None:
    turn.retries += 1
    wait = backoff(
        _policy(turn, name),
        attempt=step.tries,
        seed=turn.seed,
        key=_jitter_key(name, step),
        retry_after=failure.retry_after,
    )
    turn.put(name, replace(step, status=StepStatus.RETRYING, failure=failure))
    turn.timer(f"retry:{name}:{step.attempt}", turn.at + wait)


def _jitter_key(name: str, step: StepState) -> str:
    return f"{name}~{step.variant}" if step.variant else name


# -- what it stands in ---------------------------------------------------------------------------------------------


def failed(turn: Turn, name: str, failure: Failure) -> None:
    """A step failed for good: whoever tolerates that goes on without it; else a person looks at it, or the run ends."""
    if turn.blocked(name):
        return
    spec = turn.program.node(name).step
    if path_of(name).endswith(f"/{CALL}") and turn.program.node(name).agent is not None:
        turn.todo.append(("leave", name, None))  # the model is told, and may do something else
    elif isinstance(spec, CONTAINERS) and spec.on_failure == "continue":
        _let_fail(turn, name, failure)
    elif spec.on_failure == "continue":
        _degrade(turn, name, failure)
        turn.todo.append(("leave", name, None))
    elif (container := _tolerant(turn, name)) is not None:
        _let_fail(turn, container, failure)
    elif turn.program.workflow.on_failure == "hold" and isinstance(spec, ModelStep | ToolStep):
        turn.put(name, replace(turn.steps[name], status=StepStatus.HELD))
        turn.commands.append(ev.OpenLetter(name, "step"))
        if (agent := turn.agent_of(name)) is not None:
            turn.unlimit(agent)
    else:
        end(turn, RunStatus.FAILED, _reason(name, failure))


def _tolerant(turn: Turn, name: str) -> str | None:
    """The innermost thing around a step that may fail without the run failing."""
    for container in turn.ancestors(name):
        spec = turn.program.node(container).step
        if "#" in container[container.rfind("/") + 1 :]:
            # Of the frames only a map's item may fail by itself; a round or a turn fails its loop or agent.
            if isinstance(spec, MapStep) and spec.on_item_failure == "continue":
                return container
        elif spec.on_failure == "continue":
            return container
    return None


def _degrade(turn: Turn, name: str, failure: Failure) -> None:
    if turn.degraded is None:
        turn.degraded = _reason(name, failure)


def _reason(name: str, failure: Failure) -> str:
    return failure.message if failure.code == REJECTED else f'step "{name}": {failure.message}'


def _let_fail(turn: Turn, container: str, failure: Failure) -> None:
    turn.failing[container] = failure
    _degrade(turn, container, failure)
    state = turn.steps[container]
    turn.put(container, replace(state, status=StepStatus.ENDING, failure=failure))
    turn.unlimit(container)
    _let_go(turn, container)


def _let_go(turn: Turn, container: str | None) -> None:
    """Drops what only waits inside a container (None: everywhere). What works is awaited; a doubt is put to a person."""
    for name, step in list(turn.steps.items()):
        if step.status not in _IDLE or not turn.inside(name, container):
            continue
        for key in (limit_key(name, step), f"wait:{name}", f"retry:{name}:{step.attempt}"):
            turn.timers.pop(key, None)
        turn.timers.pop(f"defer:{name}:{step.attempt}:{step.deferrals}", None)
        waits = step.status in {StepStatus.RETRYING, StepStatus.PAUSED}
        if waits and step.failure is not None and step.failure.ambiguous:
            confirm(turn, name, step)
            continue
        if step.status is StepStatus.REVIEWING:
            turn.commands.append(ev.CloseReview(name))
        elif step.status is StepStatus.HELD:
            turn.commands.append(ev.CloseLetter(name))
        turn.put(name, replace(step, status=StepStatus.FAILED))


def end(turn: Turn, status: RunStatus, reason: str) -> bool:
    """Nothing new starts from here; what only waits is dropped, what works is awaited. False if it was ending already."""
    if turn.ending is not None:
        return False
    turn.ending = Ending(status, reason)
    turn.paused = False
    turn.timers.pop("deadline", None)
    _let_go(turn, None)
    return True


def conclude(turn: Turn) -> None:
    """Finishes what is ending and has nothing under way inside any more: first containers, then the run."""
    # Only where something changed: a thousand items that fail are looked at a thousand times, not a million.
    while turn.failing and turn.changed:
        around = {one for name in turn.changed for one in (name, *turn.ancestors(name)) if one in turn.failing}
        turn.changed.clear()
        # The innermost first: it must be over before what holds it.
        for container in sorted(around, key=lambda one: (-sum(1 for _ in turn.ancestors(one)), one)):
            _conclude_container(turn, container)
    if turn.ending is not None and not turn.busy and not turn.failing:
        _conclude_run(turn, turn.ending)


def _conclude_container(turn: Turn, container: str) -> None:
    if any(
        (step.status in BUSY or step.status is StepStatus.ENDING) and turn.inside(name, container)
        for name, step in turn.steps.items()
    ):
        return
    for name in reversed(turn.completed):
        step = turn.steps[name]
        if step.status is StepStatus.SUCCEEDED and turn.inside(name, container):
            undo(turn, name, step)
            return
    del turn.failing[container]
    turn.put(container, replace(turn.steps[container], status=StepStatus.FAILED))
    if isinstance(turn.program.node(container).step, MapStep) and "#" in container[container.rfind("/") + 1 :]:
        item_done(turn, container, succeeded=False)
    elif not turn.blocked(container):  # asked now: what is around it may be concluded before the leaving's turn comes
        turn.todo.append(("leave", container, None))


def _conclude_run(turn: Turn, ending: Ending) -> None:
    if ending.status in {RunStatus.FAILED, RunStatus.CANCELLED}:
        remaining = next(
            (name for name in reversed(turn.completed) if turn.steps[name].status is StepStatus.SUCCEEDED), None
        )
        if remaining is not None:
            turn.status = RunStatus.COMPENSATING
            undo(turn, remaining, turn.steps[remaining])
            return
    stuck = sorted(name for name, step in turn.steps.items() if step.status is StepStatus.UNDO_FAILED)
    if stuck:
        turn.status = RunStatus.DEAD
        turn.reason = "; ".join(filter(None, [ending.reason, f"could not undo {', '.join(stuck)}"]))
    else:
        turn.status, turn.reason = ending.status, ending.reason or None


# -- undoing -------------------------------------------------------------------------------------------------------


def undo(turn: Turn, name: str, step: StepState) -> None:
    """Has a completed step undone."""
    attempt = step.undo_attempt + 1
    turn.put(name, replace(step, status=StepStatus.UNDOING, undo_attempt=attempt))
    turn.commands.append(ev.Compensate(name, attempt))


def undo_failed(turn: Turn, name: str, step: StepState, failure: Failure) -> None:
    """Again later, or into the dead-letter queue. Undoing is not charged to the run's retry budget: a run out of retries
    must still clean up."""
    policy = _policy(turn, name)
    if failure.kind in RETRYABLE and step.undo_attempt % policy.max_attempts:
        wait = backoff(
            policy,
            attempt=step.undo_attempt % policy.max_attempts,
            seed=turn.seed,
            key=f"undo:{name}",
            retry_after=failure.retry_after,
        )
        turn.put(name, replace(step, status=StepStatus.UNDO_RETRYING, failure=failure))
        turn.timer(f"undo:{name}:{step.undo_attempt}", turn.at + wait)
    else:
        turn.put(name, replace(step, status=StepStatus.UNDO_FAILED, failure=failure))
        turn.commands.append(ev.OpenLetter(name, "compensation"))
