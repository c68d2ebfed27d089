"""How a run moves through its program: entering a step, and what follows once one is done."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from interlock.base.errors import FailureKind, InvalidSpec
from interlock.machine import events as ev
from interlock.machine.agents import next_calls, next_turn
from interlock.machine.events import Failure, RunStatus
from interlock.machine.names import (
    DEADLINE,
    TimerKey,
    beside,
    enclosing,
    frame_of,
    path_of,
    unnumbered,
    within,
)
from interlock.machine.program import Block, Condition
from interlock.machine.state import OVER, Ending, StepState, StepStatus, is_settled
from interlock.machine.transition import Transition, not_compensated
from interlock.workflows.bindings import dig, parse
from interlock.workflows.facts import Facts, holds
from interlock.workflows.spec import (
    AgentStep,
    BranchStep,
    LoopStep,
    MapStep,
    ModelStep,
    ParallelStep,
    ReviewStep,
    SubworkflowStep,
    ToolStep,
    WaitStep,
)

_LAST_MOMENT = 253_402_300_800.0
"""The year 10000, in seconds since the epoch; the ends of `datetime`."""


def enter(transition: Transition, name: str) -> None:
    """Begins a step, unless nothing may begin there any more."""
    if transition.blocked(name):
        return
    step = transition.program.node(name).step
    match step:
        case ModelStep() | ToolStep():
            transition.perform(name, StepState(StepStatus.RUNNING))
            transition.limit(name, step.deadline)
        case MapStep() | SubworkflowStep():
            transition.perform(name, StepState(StepStatus.RUNNING))  # its items or its input have to be looked up
        case AgentStep():
            transition.put(name, StepState(StepStatus.OPEN))
            transition.limit(name, step.deadline)
            next_turn(transition, name)
        case ReviewStep():
            transition.put(name, StepState(StepStatus.REVIEWING))
            transition.commands.append(ev.OpenReview(name, "approve"))
            transition.limit(name, step.deadline)
        case WaitStep():
            _wait(transition, name, step)
        case ParallelStep():
            transition.put(name, StepState(StepStatus.OPEN))
            for scope in reversed(transition.program.scopes[path_of(name)]):  # the first is entered first
                _begin(transition, name, scope)
        case BranchStep():
            _branch(transition, name)
        case LoopStep():
            transition.put(name, StepState(StepStatus.OPEN))
            _round(transition, name)


def leave(transition: Transition, name: str) -> None:
    """Goes on after a step that is done, or that the run goes on without."""
    if transition.blocked(name):
        return
    node = transition.program.node(name)
    if node.agent is not None:
        next_calls(transition, enclosing(name))
        return
    scope = node.scope
    if node.index + 1 < len(scope.steps):
        transition.todo.append(("enter", beside(name, scope.steps[node.index + 1]), None))
    else:
        _scope_done(transition, transition.program.parent(name))


def _begin(transition: Transition, owner: str, scope: Block) -> None:
    """Enters the first step of a scope. `owner` is the container, or the frame whose body it is."""
    if scope.steps:
        first = scope.steps[0]
        transition.todo.append(("enter", within(owner, first) if scope.body else beside(owner, first), None))
    else:
        _scope_done(transition, owner)


def _scope_done(transition: Transition, owner: str | None) -> None:
    if owner is None:
        _all_done(transition)
        return
    step, state = transition.program.node(owner).step, transition.steps[owner]
    match step:
        case ParallelStep():
            scopes = transition.program.scopes[path_of(owner)]
            if state.status is StepStatus.OPEN and all(_is_done(transition, owner, one) for one in scopes):
                transition.succeed(owner, state)
        case MapStep():
            transition.put(owner, replace(state, status=StepStatus.SUCCEEDED))
            item_done(transition, owner, succeeded=True)
        case LoopStep():
            transition.put(owner, replace(state, status=StepStatus.SUCCEEDED))
            _round_done(transition, owner, step)
        case _:
            transition.succeed(owner, replace(state, facts={}) if isinstance(step, SubworkflowStep) else state)


def _is_done(transition: Transition, owner: str, scope: Block) -> bool:
    if not scope.steps:
        return True
    name = beside(owner, scope.steps[-1])
    last = transition.steps.get(name)
    return (
        last is not None
        and last.status in OVER
        and not any(kind == "fail" and one == name for kind, one, _ in transition.todo)
    )


def _all_done(transition: Transition) -> None:
    if any(not_compensated(transition)) or transition.busy:  # what is busy is an undoing that was requeued
        transition.ending = Ending(
            RunStatus.PARTIAL, transition.degraded or ""
        )  # for `failures.conclude`, now and after a requeue
        transition.timers.pop(DEADLINE)
        transition.paused = False
    elif transition.degraded is not None:
        transition.status, transition.reason = RunStatus.PARTIAL, transition.degraded
    else:
        transition.status = RunStatus.SUCCEEDED


# -- branches and conditions ---------------------------------------------------------------------------------------


def _branch(transition: Transition, name: str) -> None:
    path = path_of(name)
    try:
        verdicts = (_holds(transition, condition, name) for condition in transition.program.conditions[path])
        taken = next((index for index, verdict in enumerate(verdicts) if verdict), None)
    except InvalidSpec as error:
        transition.fail(name, StepState(StepStatus.FAILED), Failure(FailureKind.PERMANENT, error.code, error.message))
        return
    scopes = transition.program.scopes[path]
    transition.put(name, StepState(StepStatus.OPEN, facts={"case": -1 if taken is None else taken}))
    _begin(transition, name, scopes[-1] if taken is None else scopes[taken])


def _holds(transition: Transition, condition: Condition, near: str) -> bool:
    return holds(condition.program, {name: _facts(transition, path, near) for name, path in condition.reads})


def _facts(transition: Transition, path: str | None, near: str) -> Facts:
    """The facts a step at `near` sees under a name; `{}` for a step that has none yet. `path` None is the input."""
    if path is None:
        home = transition.program.node(near).home
        if not home:
            return transition.input_facts
        path = enclosing(home)  # the facts of an open subworkflow are those of its input
        caller = transition.steps.get(transition.program.instance(near, path, transition.steps.get))
        return caller.facts if caller is not None else {}
    step = transition.steps.get(transition.program.instance(near, path, transition.steps.get))
    if step is None or not is_settled(
        step, opens_body=isinstance(transition.program.nodes[path].step, MapStep | SubworkflowStep)
    ):
        return {}
    return step.facts


# -- loops ---------------------------------------------------------------------------------------------------------


def _round(transition: Transition, name: str) -> None:
    state = transition.steps[name]
    number = state.iteration + 1
    transition.put(name, replace(state, iteration=number))
    frame = frame_of(name, number)
    transition.put(frame, StepState(StepStatus.OPEN))
    _begin(transition, frame, transition.program.scopes[path_of(name)][0])


def _round_done(transition: Transition, frame: str, step: LoopStep) -> None:
    name = unnumbered(frame)
    state = transition.steps[name]
    inside = within(frame, step.steps[-1].id)
    try:
        met = _holds(transition, transition.program.conditions[path_of(name)][0], inside)
    except InvalidSpec as error:
        transition.fail(name, state, Failure(FailureKind.PERMANENT, error.code, error.message))
        return
    if not met and state.iteration < step.max_iterations:
        _round(transition, name)
    elif met or step.on_limit == "continue":
        transition.succeed(name, replace(state, facts={"iterations": state.iteration, "met": met}))
    else:
        message = f"its condition did not come true in {step.max_iterations} rounds"
        transition.fail(name, state, Failure(FailureKind.PERMANENT, "loop_limit", message))


# -- maps and subworkflows -----------------------------------------------------------------------------------------


def open_body(transition: Transition, name: str, state: StepState) -> None:
    """A map's items or a subworkflow's input are known: goes inside."""
    state = replace(state, status=StepStatus.OPEN, entry=state.output, output=None)
    step = transition.program.node(name).step
    if isinstance(step, MapStep):
        count = state.facts.get("count")
        if not isinstance(count, int) or not 0 <= count <= step.max_items:
            transition.fail(
                name, state, Failure(FailureKind.INVALID, "too_many_items", f"more than {step.max_items} items")
            )
            return
        transition.put(name, replace(state, facts={"count": count, "succeeded": 0, "failed": 0}))
        _more_items(transition, name, step)
    else:
        transition.put(name, state)
        _begin(transition, name, transition.program.scopes[path_of(name)][0])


def item_done(transition: Transition, frame: str, *, succeeded: bool) -> None:
    """One item of a map is over: the next one, or the map is done."""
    name = unnumbered(frame)
    state, step = transition.steps[name], transition.program.node(name).step
    assert isinstance(step, MapStep)
    which = "succeeded" if succeeded else "failed"
    transition.put(name, replace(state, facts={**state.facts, which: state.facts[which] + 1}))
    if not transition.blocked(frame) and state.status is StepStatus.OPEN:
        _more_items(transition, name, step)


def _more_items(transition: Transition, name: str, step: MapStep) -> None:
    state = transition.steps[name]
    count, over = state.facts["count"], state.facts["succeeded"] + state.facts["failed"]
    if over == count:
        transition.succeed(name, state)
        return
    last = min(count, over + step.concurrency)
    fresh = [frame_of(name, number) for number in range(state.iteration + 1, last + 1)]
    transition.put(name, replace(state, iteration=max(last, state.iteration)))
    for frame in fresh:
        transition.put(frame, StepState(StepStatus.OPEN))
    for frame in reversed(fresh):
        _begin(transition, frame, transition.program.scopes[path_of(name)][0])


# -- waits ---------------------------------------------------------------------------------------------------------


def _wait(transition: Transition, name: str, step: WaitStep) -> None:
    state = StepState(StepStatus.WAITING)
    if step.signal is not None:
        kept = transition.signals.get(step.signal, ())
        if kept:
            first, rest = kept[0], kept[1:]
            transition.signals = {**transition.signals, step.signal: rest}
            transition.succeed(name, replace(state, output=first.payload, facts={**first.facts, "received": True}))
            return
        transition.put(name, state)
        if step.timeout is not None:
            transition.timer(str(TimerKey.wait(name)), transition.at + step.timeout)
        return
    due = transition.at + step.duration if step.duration is not None else _moment(transition, name, str(step.until))
    if due is None:
        message = f"{step.until} is no number of seconds since 1970, so it is no moment to wait for"
        transition.fail(name, state, Failure(FailureKind.INVALID, "no_moment", message))
    else:
        transition.put(name, state)
        transition.timer(str(TimerKey.wait(name)), due)


def _moment(transition: Transition, name: str, until: str) -> float | None:
    """Seconds since the epoch; None if the fact it refers to is none."""
    reference = parse(until)
    if reference is None:
        try:
            moment = datetime.fromisoformat(until)
            # Without an offset it would be another moment on another machine.
            return None if moment.tzinfo is None else moment.timestamp()
        except (ValueError, OverflowError):
            return None
    home = transition.program.node(name).home
    path = (
        None
        if reference.root == "input"
        else transition.program.ids.get((home, str(reference.step)), str(reference.step))
    )
    value: object = dig(_facts(transition, path, name), reference.path)
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= _LAST_MOMENT:
        return None
    return float(value)
