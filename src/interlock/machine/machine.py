"""The orchestrator: `advance(program, state, event) -> (state, commands)`. No I/O, no clock, no randomness.

Total: an event that does not fit the state (a stale attempt, a decision nobody asked for, anything after the
end) gives back the very same state and no commands. So duplicated and reordered deliveries are harmless.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from interlock.base.errors import FailureKind
from interlock.machine import events as ev
from interlock.machine.events import Command, Failure, RunStatus
from interlock.machine.failures import (
    REJECTED,
    attempt_failed,
    conclude,
    confirm,
    deadline_passed,
    end,
    failed,
    out_of_time,
    undo,
    undo_failed,
)
from interlock.machine.flow import enter, leave, open_body, wrong_calls
from interlock.machine.program import Program
from interlock.machine.state import Kept, RunState, StepState, StepStatus
from interlock.machine.transition import Turn
from interlock.workflows.spec import MapStep, ReviewStep, SubworkflowStep, WaitStep

DEADLINE = "deadline"
MAX_SIGNALS = 1000
"""Signals a run takes in its life, and so how many it may keep: what a caller can make it hold is bounded."""


def advance(program: Program, state: RunState, event: Any) -> tuple[RunState, list[Command]]:
    """The state after `event`, and what the driver must do because of it."""
    handle = _HANDLERS.get(type(event))
    if handle is None or (state.over and not _is_second_chance(state, event)):
        return state, []
    turn = Turn(program, state, event.at)
    if not handle(turn, event):
        return state, []
    while True:
        while turn.todo:
            what, name, failure = turn.todo.pop()
            if what == "enter":
                enter(turn, name)
            elif what == "leave":
                leave(turn, name)
            elif failure is not None:
                failed(turn, name, failure)
        if turn.failing or turn.ending is not None:
            conclude(turn)
        if not turn.todo:
            return turn.finish()


def fold(program: Program, journal: Iterable[Any], state: RunState | None = None) -> RunState:
    """The state after a journal: its events in order, upon `state` or from the beginning."""
    folded = state if state is not None else RunState()
    for event in journal:
        folded, _ = advance(program, folded, event)
    return folded


def pending(state: RunState) -> list[Command]:
    """What a driver that takes a run over must do again: work without an outcome, timers not yet fired."""
    if state.over:
        return []
    commands: list[Command] = []
    for name, step in state.steps.items():
        if step.status is StepStatus.RUNNING:
            commands.append(ev.Perform(name, step.attempt))
        elif step.status is StepStatus.UNDOING:
            commands.append(ev.Compensate(name, step.undo_attempt))
    commands.extend(ev.StartTimer(timer, due) for timer, due in state.timers.items())
    return commands


def _is_second_chance(state: RunState, event: Any) -> bool:
    return state.status is RunStatus.DEAD and isinstance(event, ev.LetterRequeued | ev.LetterDiscarded)


# -- outcomes of work ----------------------------------------------------------------------------------------------


def _run_started(turn: Turn, event: ev.RunStarted) -> bool:
    if turn.state.status is not RunStatus.QUEUED or turn.steps:
        return False
    turn.seed, turn.input_facts = event.seed, event.facts
    turn.status = RunStatus.RUNNING
    if turn.program.workflow.deadline is not None:
        turn.timer(DEADLINE, turn.at + turn.program.workflow.deadline)
    turn.todo.append(("enter", turn.program.root.steps[0], None))
    return True


def _step_succeeded(turn: Turn, event: ev.StepSucceeded) -> bool:
    name = event.step
    step = turn.current(name, StepStatus.RUNNING, event.attempt)
    if step is None:
        return False
    turn.spend(event.spent)
    node = turn.program.node(name)
    is_turn = node.agent is not None and step.tool is None
    step = replace(
        step,
        status=StepStatus.SUCCEEDED,
        output=event.output,
        facts=event.facts,
        failure=None,
        calls=event.calls if is_turn else (),
    )
    if isinstance(node.step, MapStep | SubworkflowStep):
        if turn.blocked(name):
            turn.put(name, replace(step, status=StepStatus.FAILED, output=None))
        else:
            open_body(turn, name, step)
    elif is_turn and (wrong := wrong_calls(turn, name, event.calls)) is not None:
        attempt_failed(turn, name, replace(step, output=None, facts={}, calls=()), wrong)
    else:
        turn.succeed(name, step)
    return True


def _step_failed(turn: Turn, event: ev.StepFailed) -> bool:
    step = turn.current(event.step, StepStatus.RUNNING, event.attempt)
    if step is None:
        return False
    turn.spend(event.spent)
    attempt_failed(turn, event.step, step, event.failure)
    return True


def _step_deferred(turn: Turn, event: ev.StepDeferred) -> bool:
    name = event.step
    step = turn.current(name, StepStatus.RUNNING, event.attempt)
    if step is None:
        return False
    if event.ambiguous:
        message = "it was cut off, and then had to wait"
        failure = Failure(FailureKind.RATE_LIMITED, "deferred", message, ambiguous=True)
        step = replace(step, failure=failure)
    if turn.blocked(name):
        turn.unlimit(name)
        if step.failure is not None and step.failure.ambiguous:
            confirm(turn, name, step)  # this attempt did nothing, but an earlier one may have
        else:
            turn.put(name, replace(step, status=StepStatus.FAILED))
        return True
    if step.expired:
        out_of_time(turn, name, step)
        return True
    step = replace(step, status=StepStatus.RETRYING, deferrals=step.deferrals + 1)
    turn.put(name, step)
    turn.timer(f"defer:{name}:{step.attempt}:{step.deferrals}", turn.at + max(event.delay, 0.0))
    return True


def _compensation_succeeded(turn: Turn, event: ev.CompensationSucceeded) -> bool:
    step = turn.steps.get(event.step)
    if step is None or step.status is not StepStatus.UNDOING or step.undo_attempt != event.attempt:
        return False
    turn.put(event.step, replace(step, status=StepStatus.UNDONE))
    return True


def _compensation_failed(turn: Turn, event: ev.CompensationFailed) -> bool:
    step = turn.steps.get(event.step)
    if step is None or step.status is not StepStatus.UNDOING or step.undo_attempt != event.attempt:
        return False
    undo_failed(turn, event.step, step, event.failure)
    return True


# -- people --------------------------------------------------------------------------------------------------------


def _review_decided(turn: Turn, event: ev.ReviewDecided) -> bool:
    name = event.step
    step = turn.steps.get(name)
    if step is None or step.status not in {StepStatus.REVIEWING, StepStatus.CONFIRMING}:
        return False
    if step.status is StepStatus.CONFIRMING:
        return _doubt_settled(turn, event, step)
    spec = turn.program.node(name).step
    step = replace(step, output=event.output, facts={**event.facts, "approved": event.approved})
    turn.approvals += event.approved
    if event.approved or (isinstance(spec, ReviewStep) and spec.on_reject == "continue"):
        turn.succeed(name, step)
    else:
        turn.fail(name, step, Failure(FailureKind.DENIED, REJECTED, f'review "{name}" was rejected'))
    return True


def _doubt_settled(turn: Turn, event: ev.ReviewDecided, step: StepState) -> bool:
    if event.at in step.denials:
        return False  # the answer to an earlier question, delivered again
    if event.approved:
        turn.succeed(event.step, replace(step, output=event.output, facts=event.facts, failure=None))
        return True
    step = replace(step, failure=None, facts={}, denials=(*step.denials, event.at))
    if turn.blocked(event.step):
        turn.put(event.step, replace(step, status=StepStatus.FAILED))
        turn.unlimit(event.step)
    elif step.expired:
        out_of_time(turn, event.step, step)
    else:
        turn.perform(event.step, replace(step, attempt=step.attempt + 1, tries=step.tries + 1))
    return True


def _cancel_requested(turn: Turn, event: ev.CancelRequested) -> bool:
    return end(turn, RunStatus.CANCELLED, f"cancelled: {event.reason}")


def _pause_requested(turn: Turn, event: ev.PauseRequested) -> bool:  # noqa: ARG001  every handler gets the event
    if turn.paused or turn.ending is not None:
        return False
    turn.paused = True
    return True


def _resume_requested(turn: Turn, event: ev.ResumeRequested) -> bool:  # noqa: ARG001
    if not turn.paused:
        return False
    turn.paused = False
    for name, step in list(turn.steps.items()):
        if step.status is StepStatus.PAUSED:
            turn.perform(name, step)
    return True


def _letter_requeued(turn: Turn, event: ev.LetterRequeued) -> bool:
    step = turn.steps.get(event.step)
    if step is None or step.status not in {StepStatus.HELD, StepStatus.UNDO_FAILED}:
        return False
    turn.commands.append(ev.CloseLetter(event.step))
    if step.status is StepStatus.HELD:
        fresh = replace(
            step,
            attempt=step.attempt + 1,
            variant=0,
            tries=1,
            deferrals=0,
            failure=None,
            override=event.input if event.input is not None else step.override,
            expired=False,
            begun=step.attempt + 1,
        )
        turn.perform(event.step, fresh)
        turn.limit(event.step, getattr(turn.program.node(event.step).step, "deadline", None))
        agent = turn.agent_of(event.step)
        if agent is not None:  # its time stood still
            around = turn.steps[agent]
            turn.put(agent, replace(around, begun=around.begun + 1))
            turn.limit(agent, getattr(turn.program.node(agent).step, "deadline", None))
        return True
    if turn.status is RunStatus.DEAD:
        turn.status = RunStatus.COMPENSATING
    undo(turn, event.step, step)
    return True


def _letter_discarded(turn: Turn, event: ev.LetterDiscarded) -> bool:
    step = turn.steps.get(event.step)
    if step is None or step.status not in {StepStatus.HELD, StepStatus.UNDO_FAILED}:
        return False
    turn.commands.append(ev.CloseLetter(event.step))
    if step.status is StepStatus.UNDO_FAILED:
        turn.put(event.step, replace(step, status=StepStatus.UNDO_GIVEN_UP))
        return True
    turn.put(event.step, replace(step, status=StepStatus.FAILED))
    message = step.failure.message if step.failure is not None else "it was discarded"
    return end(turn, RunStatus.FAILED, f'step "{event.step}": {message}')


def _signal_received(turn: Turn, event: ev.SignalReceived) -> bool:
    if event.signal_id in turn.heard or turn.ending is not None or len(turn.heard) >= MAX_SIGNALS:
        return False
    turn.heard |= {event.signal_id}
    for name, step in turn.steps.items():
        spec = turn.program.node(name).step if step.status is StepStatus.WAITING else None
        if isinstance(spec, WaitStep) and spec.signal == event.name:
            turn.timers.pop(f"wait:{name}", None)
            turn.succeed(name, replace(step, output=event.payload, facts={**event.facts, "received": True}))
            return True
    kept = Kept(event.signal_id, event.payload, event.facts)
    turn.signals = {**turn.signals, event.name: (*turn.signals.get(event.name, ()), kept)}
    return True


# -- time ----------------------------------------------------------------------------------------------------------


def _timer_fired(turn: Turn, event: ev.TimerFired) -> bool:
    if turn.timers.pop(event.timer, None) is None:
        return False
    if event.timer == DEADLINE:
        return end(turn, RunStatus.PARTIAL, f"the run's deadline of {turn.program.workflow.deadline:g} s passed")
    kind, name, *_ = event.timer.split(":")
    step = turn.steps[name]
    match kind:
        case "retry":
            turn.perform(name, replace(step, attempt=step.attempt + 1, tries=step.tries + 1, deferrals=0))
        case "defer":
            turn.perform(name, step)
        case "undo":
            undo(turn, name, step)
        case "wait":
            _wait_over(turn, name, step)
        case _:
            _limit_passed(turn, name, step)
    return True


def _wait_over(turn: Turn, name: str, step: StepState) -> None:
    spec = turn.program.node(name).step
    if isinstance(spec, WaitStep) and spec.signal is not None:
        if spec.on_timeout == "fail":
            message = f'no signal "{spec.signal}" came within {spec.timeout:g} s'
            turn.fail(name, step, Failure(FailureKind.PERMANENT, "timeout", message))
            return
        step = replace(step, facts={"received": False})
    turn.succeed(name, step)


def _limit_passed(turn: Turn, name: str, step: StepState) -> None:
    match step.status:
        case StepStatus.RUNNING | StepStatus.CONFIRMING:
            turn.put(name, replace(step, expired=True))  # an effect may be happening: its outcome is awaited
        case StepStatus.RETRYING | StepStatus.PAUSED:
            for key in (f"retry:{name}:{step.attempt}", f"defer:{name}:{step.attempt}:{step.deferrals}"):
                turn.timers.pop(key, None)
            out_of_time(turn, name, step)
        case StepStatus.REVIEWING:
            turn.commands.append(ev.CloseReview(name))
            turn.fail(name, step, deadline_passed(turn, name))
        case StepStatus.OPEN:
            turn.fail(name, step, deadline_passed(turn, name))
        case _:
            pass


_HANDLERS: dict[type, Callable[[Turn, Any], bool]] = {
    ev.RunStarted: _run_started,
    ev.StepSucceeded: _step_succeeded,
    ev.StepFailed: _step_failed,
    ev.StepDeferred: _step_deferred,
    ev.ReviewDecided: _review_decided,
    ev.TimerFired: _timer_fired,
    ev.CompensationSucceeded: _compensation_succeeded,
    ev.CompensationFailed: _compensation_failed,
    ev.CancelRequested: _cancel_requested,
    ev.SignalReceived: _signal_received,
    ev.PauseRequested: _pause_requested,
    ev.ResumeRequested: _resume_requested,
    ev.LetterRequeued: _letter_requeued,
    ev.LetterDiscarded: _letter_discarded,
}
