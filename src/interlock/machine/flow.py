"""How a run moves through its program: entering a step, and what follows once one is done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from typing import Any

from interlock.base.errors import FailureKind, InvalidSpec
from interlock.machine import events as ev
from interlock.machine.events import Failure, RunStatus
from interlock.machine.program import CALL, TURN, Condition, Scope, path_of, space_of
from interlock.machine.state import Ending, StepState, StepStatus, is_told
from interlock.machine.transition import Turn
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

_OVER = frozenset({StepStatus.SUCCEEDED, StepStatus.FAILED})


def enter(turn: Turn, name: str) -> None:
    """Begins a step, unless nothing may begin there any more."""
    if turn.blocked(name):
        return
    step = turn.program.node(name).step
    match step:
        case ModelStep() | ToolStep():
            turn.perform(name, StepState(StepStatus.RUNNING))
            turn.limit(name, step.deadline)
        case MapStep() | SubworkflowStep():
            turn.perform(name, StepState(StepStatus.RUNNING))  # its items or its input have to be looked up
        case AgentStep():
            turn.put(name, StepState(StepStatus.OPEN))
            turn.limit(name, step.deadline)
            next_turn(turn, name)
        case ReviewStep():
            turn.put(name, StepState(StepStatus.REVIEWING))
            turn.commands.append(ev.OpenReview(name, "approve"))
            turn.limit(name, step.deadline)
        case WaitStep():
            _wait(turn, name, step)
        case ParallelStep():
            turn.put(name, StepState(StepStatus.OPEN))
            for scope in reversed(turn.program.scopes[path_of(name)]):  # the first is entered first
                _begin(turn, name, scope)
        case BranchStep():
            _branch(turn, name)
        case LoopStep():
            turn.put(name, StepState(StepStatus.OPEN))
            _round(turn, name)


def leave(turn: Turn, name: str) -> None:
    """Goes on after a step that is done, or that the run goes on without."""
    if turn.blocked(name):
        return
    node = turn.program.node(name)
    if node.agent is not None:
        next_calls(turn, space_of(name)[:-1])
        return
    scope, space = node.scope, space_of(name)
    if node.index + 1 < len(scope.steps):
        turn.todo.append(("enter", space + scope.steps[node.index + 1], None))
    else:
        _scope_done(turn, turn.program.parent(name))


def _begin(turn: Turn, owner: str, scope: Scope) -> None:
    """Enters the first step of a scope. `owner` is the container, or the frame whose body it is."""
    space = f"{owner}/" if scope.body else space_of(owner)
    if scope.steps:
        turn.todo.append(("enter", space + scope.steps[0], None))
    else:
        _scope_done(turn, owner)


def _scope_done(turn: Turn, owner: str | None) -> None:
    if owner is None:
        _all_done(turn)
        return
    step, state = turn.program.node(owner).step, turn.steps[owner]
    match step:
        case ParallelStep():
            scopes = turn.program.scopes[path_of(owner)]
            if state.status is StepStatus.OPEN and all(_is_done(turn, owner, one) for one in scopes):
                turn.succeed(owner, state)
        case MapStep():
            turn.put(owner, replace(state, status=StepStatus.SUCCEEDED))
            item_done(turn, owner, succeeded=True)
        case LoopStep():
            turn.put(owner, replace(state, status=StepStatus.SUCCEEDED))
            _round_done(turn, owner, step)
        case _:
            turn.succeed(owner, replace(state, facts={}) if isinstance(step, SubworkflowStep) else state)


def _is_done(turn: Turn, owner: str, scope: Scope) -> bool:
    if not scope.steps:
        return True
    name = space_of(owner) + scope.steps[-1]
    last = turn.steps.get(name)
    return (
        last is not None
        and last.status in _OVER
        and not any(kind == "fail" and one == name for kind, one, _ in turn.todo)
    )


def _all_done(turn: Turn) -> None:
    stuck = any(step.status is StepStatus.UNDO_FAILED for step in turn.steps.values())
    if stuck or turn.busy:  # what is busy is an undoing that was requeued
        turn.ending = Ending(RunStatus.PARTIAL, turn.degraded or "")  # for `failures.conclude`, now and after a requeue
        turn.timers.pop("deadline", None)
        turn.paused = False
    elif turn.degraded is not None:
        turn.status, turn.reason = RunStatus.PARTIAL, turn.degraded
    else:
        turn.status = RunStatus.SUCCEEDED


# -- branches and conditions ---------------------------------------------------------------------------------------


def _branch(turn: Turn, name: str) -> None:
    path = path_of(name)
    try:
        verdicts = (_holds(turn, condition, name) for condition in turn.program.conditions[path])
        taken = next((index for index, verdict in enumerate(verdicts) if verdict), None)
    except InvalidSpec as error:
        turn.fail(name, StepState(StepStatus.FAILED), Failure(FailureKind.PERMANENT, error.code, error.message))
        return
    scopes = turn.program.scopes[path]
    turn.put(name, StepState(StepStatus.OPEN, facts={"case": -1 if taken is None else taken}))
    _begin(turn, name, scopes[-1] if taken is None else scopes[taken])


def _holds(turn: Turn, condition: Condition, near: str) -> bool:
    return holds(condition.program, {name: _facts(turn, path, near) for name, path in condition.reads})


def _facts(turn: Turn, path: str | None, near: str) -> Facts:
    """The facts a step at `near` sees under a name; `{}` for a step that has none yet. `path` None is the input."""
    if path is None:
        home = turn.program.node(near).home
        if not home:
            return turn.input_facts
        path = home[:-1]  # the facts of an open subworkflow are those of its input
        caller = turn.steps.get(turn.program.instance(near, path, turn.steps))
        return caller.facts if caller is not None else {}
    step = turn.steps.get(turn.program.instance(near, path, turn.steps))
    if step is None or not is_told(
        step, opens_body=isinstance(turn.program.nodes[path].step, MapStep | SubworkflowStep)
    ):
        return {}
    return step.facts


# -- loops ---------------------------------------------------------------------------------------------------------


def _round(turn: Turn, name: str) -> None:
    state = turn.steps[name]
    number = state.iteration + 1
    turn.put(name, replace(state, iteration=number))
    frame = f"{name}#{number}"
    turn.put(frame, StepState(StepStatus.OPEN))
    _begin(turn, frame, turn.program.scopes[path_of(name)][0])


def _round_done(turn: Turn, frame: str, step: LoopStep) -> None:
    name = frame[: frame.rfind("#")]
    state = turn.steps[name]
    inside = f"{frame}/{step.steps[-1].id}"
    try:
        met = _holds(turn, turn.program.conditions[path_of(name)][0], inside)
    except InvalidSpec as error:
        turn.fail(name, state, Failure(FailureKind.PERMANENT, error.code, error.message))
        return
    if not met and state.iteration < step.max_iterations:
        _round(turn, name)
    elif met or step.on_limit == "continue":
        turn.succeed(name, replace(state, facts={"iterations": state.iteration, "met": met}))
    else:
        message = f"its condition did not come true in {step.max_iterations} rounds"
        turn.fail(name, state, Failure(FailureKind.PERMANENT, "loop_limit", message))


# -- maps and subworkflows -----------------------------------------------------------------------------------------


def open_body(turn: Turn, name: str, state: StepState) -> None:
    """A map's items or a subworkflow's input are known: goes inside."""
    state = replace(state, status=StepStatus.OPEN, entry=state.output, output=None)
    step = turn.program.node(name).step
    if isinstance(step, MapStep):
        count = state.facts.get("count")
        if not isinstance(count, int) or not 0 <= count <= step.max_items:
            turn.fail(name, state, Failure(FailureKind.INVALID, "too_many_items", f"more than {step.max_items} items"))
            return
        turn.put(name, replace(state, facts={"count": count, "succeeded": 0, "failed": 0}))
        _more_items(turn, name, step)
    else:
        turn.put(name, state)
        _begin(turn, name, turn.program.scopes[path_of(name)][0])


def item_done(turn: Turn, frame: str, *, succeeded: bool) -> None:
    """One item of a map is over: the next one, or the map is done."""
    name = frame[: frame.rfind("#")]
    state, step = turn.steps[name], turn.program.node(name).step
    assert isinstance(step, MapStep)
    which = "succeeded" if succeeded else "failed"
    turn.put(name, replace(state, facts={**state.facts, which: state.facts[which] + 1}))
    if not turn.blocked(frame) and state.status is StepStatus.OPEN:
        _more_items(turn, name, step)


def _more_items(turn: Turn, name: str, step: MapStep) -> None:
    state = turn.steps[name]
    count, over = state.facts["count"], state.facts["succeeded"] + state.facts["failed"]
    if over == count:
        turn.succeed(name, state)
        return
    last = min(count, over + step.concurrency)
    fresh = [f"{name}#{number}" for number in range(state.iteration + 1, last + 1)]
    turn.put(name, replace(state, iteration=max(last, state.iteration)))
    for frame in fresh:
        turn.put(frame, StepState(StepStatus.OPEN))
    for frame in reversed(fresh):
        _begin(turn, frame, turn.program.scopes[path_of(name)][0])


# -- agents --------------------------------------------------------------------------------------------------------


def next_turn(turn: Turn, name: str) -> None:
    """An agent's next model call, or its failure if it has had all its turns."""
    state, step = turn.steps[name], turn.program.node(name).step
    assert isinstance(step, AgentStep)
    if state.iteration >= step.max_turns:
        message = f"no answer after {step.max_turns} turns"
        turn.fail(name, state, Failure(FailureKind.PERMANENT, "turns_exhausted", message))
        return
    turn.put(name, replace(state, iteration=state.iteration + 1))
    frame = f"{name}#{state.iteration + 1}"
    turn.put(frame, StepState(StepStatus.OPEN))
    # What a person put in the place of the prompt's values holds for the turns that follow, too.
    before = turn.steps.get(f"{name}#{state.iteration}/{TURN}")
    turn.perform(f"{frame}/{TURN}", StepState(StepStatus.RUNNING, override=before.override if before else None))


def next_calls(turn: Turn, frame: str) -> None:
    """Starts what may start of the calls of a turn; with none left, the next turn, and with none wanted, the answer."""
    agent = frame[: frame.rfind("#")]
    asked = turn.steps[f"{frame}/{TURN}"]
    if not asked.calls:
        turn.put(frame, replace(turn.steps[frame], status=StepStatus.SUCCEEDED))
        turn.succeed(agent, replace(turn.steps[agent], output=asked.output, facts=asked.facts))
        return
    waiting = False  # a call named earlier is not over
    for number, tool in enumerate(asked.calls, start=1):
        name = f"{frame}/{CALL}#{number}"
        state = turn.steps.get(name)
        if state is not None and state.status in _OVER:
            continue
        alone = turn.program.mutates(tool)
        if state is None and not (alone and waiting):
            turn.perform(name, StepState(StepStatus.RUNNING, tool=tool))
        waiting = True
        if alone:
            return
    if not waiting:
        turn.put(frame, replace(turn.steps[frame], status=StepStatus.SUCCEEDED))
        next_turn(turn, agent)


def wrong_calls(turn: Turn, name: str, calls: Iterable[str]) -> Failure | None:
    """Whether a turn names tools the agent does not have, or too many; the kernel should have refused that already."""
    step = turn.program.node(name).agent
    wanted = list(calls)
    if not wanted or (step is not None and set(wanted) <= set(step.tools) and len(wanted) <= step.max_calls):
        return None
    return Failure(FailureKind.INVALID, "unknown_tool", "the model asked for tools that this step does not have")


# -- waits ---------------------------------------------------------------------------------------------------------


def _wait(turn: Turn, name: str, step: WaitStep) -> None:
    state = StepState(StepStatus.WAITING)
    if step.signal is not None:
        kept = turn.signals.get(step.signal, ())
        if kept:
            first, rest = kept[0], kept[1:]
            turn.signals = {**turn.signals, step.signal: rest}
            turn.succeed(name, replace(state, output=first.payload, facts={**first.facts, "received": True}))
            return
        turn.put(name, state)
        if step.timeout is not None:
            turn.timer(f"wait:{name}", turn.at + step.timeout)
        return
    due = turn.at + step.duration if step.duration is not None else _moment(turn, name, str(step.until))
    if due is None:
        message = f"{step.until} is no number of seconds since 1970, so it is no moment to wait for"
        turn.fail(name, state, Failure(FailureKind.INVALID, "no_moment", message))
    else:
        turn.put(name, state)
        turn.timer(f"wait:{name}", due)


def _moment(turn: Turn, name: str, until: str) -> float | None:
    """Seconds since the epoch; None if the fact it refers to is none."""
    reference = parse(until)
    if reference is None:
        try:
            moment = datetime.fromisoformat(until)
            # Without an offset it would be another moment on another machine.
            return None if moment.tzinfo is None else moment.timestamp()
        except (ValueError, OverflowError):
            return None
    home = turn.program.node(name).home
    path = None if reference.root == "input" else turn.program.ids.get((home, str(reference.step)), str(reference.step))
    value: Any = dig(_facts(turn, path, name), reference.path)
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= _LAST_MOMENT:
        return None
    return float(value)
