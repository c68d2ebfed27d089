"""The orchestrator: `advance(program, state, event) -> (state, commands)`. No I/O, no clock, no randomness.

Every run behaves as the machine version did under which it was submitted (`version`).

Total: an event that does not fit the state (a stale attempt, a decision without a review, anything after the
end) gives back the very same state and no commands. So duplicated and reordered deliveries are harmless.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Never, cast

from interlock.base.errors import FailureKind
from interlock.machine import events as ev
from interlock.machine.agents import wrong_calls
from interlock.machine.approvals import act_decided, approval_needed
from interlock.machine.events import Command, Event, Failure, RunStatus
from interlock.machine.failures import (
    REJECTED,
    attempt_failed,
    compensate,
    compensation_failed,
    conclude,
    confirm,
    deadline_passed,
    end,
    failed,
    forget_attempt_timers,
    out_of_time,
)
from interlock.machine.flow import enter, leave, open_body
from interlock.machine.names import DEADLINE, TimerKey, TimerKind
from interlock.machine.program import Program
from interlock.machine.state import Kept, RunState, StepState, StepStatus
from interlock.machine.transition import Transition
from interlock.machine.version import require_known
from interlock.workflows.spec import MapStep, ReviewStep, SubworkflowStep, WaitStep

MAX_SIGNALS = 1000
"""Signals a run takes in its life, and so how many it may keep: what a caller can make it hold is bounded."""


def advance(program: Program, state: RunState, event: Event) -> tuple[RunState, list[Command]]:
    """The state after `event`, and what the driver must do because of it."""
    handle = _HANDLERS.get(type(event))
    if handle is None or (state.over and not _is_second_chance(state, event)):
        return state, []
    transition = Transition(program, state, event.at)
    if not handle(transition, cast("Never", event)):  # the table gives the handler of its type
        return state, []
    while True:
        while transition.todo:
            what, name, failure = transition.todo.pop()
            if what == "enter":
                enter(transition, name)
            elif what == "leave":
                leave(transition, name)
            elif failure is not None:
                failed(transition, name, failure)
        if transition.failing or transition.ending is not None:
            conclude(transition)
        if not transition.todo:
            return transition.finish()


def fold(program: Program, journal: Iterable[Event], state: RunState | None = None) -> RunState:
    """The state after a journal: its events in order, upon `state` or from the beginning."""
    folded = state if state is not None else RunState()
    for event in journal:
        folded, _ = advance(program, folded, event)
    return folded


def pending(state: RunState) -> list[Command]:
    """Commands that a driver must issue again after a takeover: work without an outcome, timers not yet fired."""
    if state.over:
        return []
    commands: list[Command] = []
    for name in state.live:
        step = state.steps[name]
        if step.status is StepStatus.RUNNING:
            commands.append(ev.Perform(name, step.attempt))
        elif step.status is StepStatus.COMPENSATING:
            commands.append(ev.Compensate(name, step.compensation_attempt))
    commands.extend(ev.StartTimer(timer, due) for timer, due in state.timers.items())
    return commands


def _is_second_chance(state: RunState, event: Event) -> bool:
    return state.status is RunStatus.DEAD and isinstance(event, ev.DeadLetterRequeued | ev.DeadLetterDiscarded)


# -- outcomes of work ----------------------------------------------------------------------------------------------


def _run_started(transition: Transition, event: ev.RunStarted) -> bool:
    if transition.state.status is not RunStatus.QUEUED or transition.steps:
        return False
    require_known(event.machine)
    transition.seed, transition.input_facts, transition.machine = event.seed, event.facts, event.machine
    transition.status = RunStatus.RUNNING
    if transition.program.workflow.deadline is not None:
        transition.timer(DEADLINE, transition.at + transition.program.workflow.deadline)
    transition.todo.append(("enter", transition.program.root.steps[0], None))
    return True


def _step_succeeded(transition: Transition, event: ev.StepSucceeded) -> bool:
    name = event.step
    step = transition.current(name, StepStatus.RUNNING, event.attempt)
    if step is None:
        return False
    transition.use(event.usage)
    node = transition.program.node(name)
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
        if transition.blocked(name):
            transition.put(name, replace(step, status=StepStatus.FAILED, output=None))
        else:
            open_body(transition, name, step)
    elif is_turn and (wrong := wrong_calls(transition, name, event.calls)) is not None:
        attempt_failed(transition, name, replace(step, output=None, facts={}, calls=()), wrong)
    else:
        transition.succeed(name, step)
    return True


def _step_failed(transition: Transition, event: ev.StepFailed) -> bool:
    step = transition.current(event.step, StepStatus.RUNNING, event.attempt)
    if step is None:
        return False
    transition.use(event.usage)
    attempt_failed(transition, event.step, step, event.failure)
    return True


def _step_deferred(transition: Transition, event: ev.StepDeferred) -> bool:
    name = event.step
    step = transition.current(name, StepStatus.RUNNING, event.attempt)
    if step is None:
        return False
    if event.ambiguous:
        message = "it was cut off, and then had to wait"
        failure = Failure(FailureKind.RATE_LIMITED, "deferred", message, ambiguous=True)
        step = replace(step, failure=failure)
    if transition.blocked(name):
        transition.unlimit(name)
        if step.failure is not None and step.failure.ambiguous:
            confirm(transition, name, step)  # this attempt did nothing, but an earlier one may have
        else:
            transition.put(name, replace(step, status=StepStatus.FAILED))
        return True
    if step.expired:
        out_of_time(transition, name, step)
        return True
    step = replace(step, status=StepStatus.RETRYING, deferrals=step.deferrals + 1)
    transition.put(name, step)
    transition.timer(str(TimerKey.defer(name, step.attempt, step.deferrals)), transition.at + max(event.delay, 0.0))
    return True


def _compensation_succeeded(transition: Transition, event: ev.CompensationSucceeded) -> bool:
    step = transition.steps.get(event.step)
    if step is None or step.status is not StepStatus.COMPENSATING or step.compensation_attempt != event.attempt:
        return False
    transition.put(event.step, replace(step, status=StepStatus.COMPENSATED))
    return True


def _compensation_failed(transition: Transition, event: ev.CompensationFailed) -> bool:
    step = transition.steps.get(event.step)
    if step is None or step.status is not StepStatus.COMPENSATING or step.compensation_attempt != event.attempt:
        return False
    compensation_failed(transition, event.step, step, event.failure)
    return True


# -- people --------------------------------------------------------------------------------------------------------


def _review_decided(transition: Transition, event: ev.ReviewDecided) -> bool:
    name = event.step
    step = transition.steps.get(name)
    if step is None or event.at in step.decisions:
        return False
    if step.status is StepStatus.APPROVING:
        return act_decided(transition, event, step)
    if step.status is StepStatus.CONFIRMING:
        _doubt_settled(transition, event, step)
        return True
    if step.status is not StepStatus.REVIEWING:
        return False
    spec = transition.program.node(name).step
    step = replace(step, output=event.output, facts={**event.facts, "approved": event.approved})
    if event.approved or (isinstance(spec, ReviewStep) and spec.on_reject == "continue"):
        transition.succeed(name, step)
    else:
        transition.fail(name, step, Failure(FailureKind.DENIED, REJECTED, f'review "{name}" was rejected'))
    return True


def _doubt_settled(transition: Transition, event: ev.ReviewDecided, step: StepState) -> None:
    if event.approved:
        transition.succeed(event.step, replace(step, output=event.output, facts=event.facts, failure=None))
        return
    step = replace(step, failure=None, facts={}, decisions=(*step.decisions, event.at))
    if transition.blocked(event.step):
        transition.put(event.step, replace(step, status=StepStatus.FAILED))
        transition.unlimit(event.step)
    elif step.expired:
        out_of_time(transition, event.step, step)
    else:
        transition.perform(event.step, replace(step, attempt=step.attempt + 1, tries=step.tries + 1))


def _cancel_requested(transition: Transition, event: ev.CancelRequested) -> bool:
    return end(transition, RunStatus.CANCELLED, f"cancelled: {event.reason}")


def _pause_requested(transition: Transition, event: ev.PauseRequested) -> bool:  # noqa: ARG001  every handler gets the event
    if transition.paused or transition.ending is not None:
        return False
    transition.paused = True
    return True


def _resume_requested(transition: Transition, event: ev.ResumeRequested) -> bool:  # noqa: ARG001
    if not transition.paused:
        return False
    transition.paused = False
    for name in list(transition.live):
        if (step := transition.steps[name]).status is StepStatus.PAUSED:
            transition.perform(name, step)
    return True


def _dead_letter_requeued(transition: Transition, event: ev.DeadLetterRequeued) -> bool:
    step = transition.steps.get(event.step)
    if step is None or step.status not in {StepStatus.HELD, StepStatus.COMPENSATION_FAILED}:
        return False
    transition.commands.append(ev.CloseDeadLetter(event.step))
    if step.status is StepStatus.HELD:
        fresh = replace(
            step,
            attempt=step.attempt + 1,
            variant=0,
            tries=1,
            deferrals=0,
            failure=None,
            asked=0,
            override=event.input if event.input is not None else step.override,
            expired=False,
            begun=step.attempt + 1,
        )
        transition.perform(event.step, fresh)
        transition.limit(event.step, getattr(transition.program.node(event.step).step, "deadline", None))
        agent = transition.agent_of(event.step)
        if agent is not None:  # its time stood still
            around = transition.steps[agent]
            transition.put(agent, replace(around, begun=around.begun + 1))
            transition.limit(agent, getattr(transition.program.node(agent).step, "deadline", None))
        return True
    if transition.status is RunStatus.DEAD:
        transition.status = RunStatus.COMPENSATING
    compensate(transition, event.step, step)
    return True


def _dead_letter_discarded(transition: Transition, event: ev.DeadLetterDiscarded) -> bool:
    step = transition.steps.get(event.step)
    if step is None or step.status not in {StepStatus.HELD, StepStatus.COMPENSATION_FAILED}:
        return False
    transition.commands.append(ev.CloseDeadLetter(event.step))
    if step.status is StepStatus.COMPENSATION_FAILED:
        transition.put(event.step, replace(step, status=StepStatus.COMPENSATION_ABANDONED))
        return True
    transition.put(event.step, replace(step, status=StepStatus.FAILED))
    message = step.failure.message if step.failure is not None else "it was discarded"
    return end(transition, RunStatus.FAILED, f'step "{event.step}": {message}')


def _signal_received(transition: Transition, event: ev.SignalReceived) -> bool:
    if (
        event.signal_id in transition.received
        or transition.ending is not None
        or len(transition.received) >= MAX_SIGNALS
    ):
        return False
    transition.received |= {event.signal_id}
    for name in transition.live:
        step = transition.steps[name]
        spec = transition.program.node(name).step if step.status is StepStatus.WAITING else None
        if isinstance(spec, WaitStep) and spec.signal == event.name:
            transition.timers.pop(str(TimerKey.wait(name)))
            transition.succeed(name, replace(step, output=event.payload, facts={**event.facts, "received": True}))
            return True
    kept = Kept(event.signal_id, event.payload, event.facts)
    transition.signals = {**transition.signals, event.name: (*transition.signals.get(event.name, ()), kept)}
    return True


# -- time ----------------------------------------------------------------------------------------------------------


def _timer_fired(transition: Transition, event: ev.TimerFired) -> bool:
    if transition.timers.pop(event.timer) is None:
        return False
    if event.timer == DEADLINE:
        return end(
            transition, RunStatus.PARTIAL, f"the run's deadline of {transition.program.workflow.deadline:g} s passed"
        )
    key = TimerKey.parse(event.timer)
    name, step = key.instance, transition.steps[key.instance]
    match key.kind:
        case TimerKind.RETRY:
            transition.perform(name, replace(step, attempt=step.attempt + 1, tries=step.tries + 1, deferrals=0))
        case TimerKind.DEFER:
            transition.perform(name, step)
        case TimerKind.COMPENSATE:
            compensate(transition, name, step)
        case TimerKind.WAIT:
            _wait_over(transition, name, step)
        case _:
            _limit_passed(transition, name, step)
    return True


def _wait_over(transition: Transition, name: str, step: StepState) -> None:
    spec = transition.program.node(name).step
    if isinstance(spec, WaitStep) and spec.signal is not None:
        if spec.on_timeout == "fail":
            message = f'no signal "{spec.signal}" came within {spec.timeout:g} s'
            transition.fail(name, step, Failure(FailureKind.PERMANENT, "timeout", message))
            return
        step = replace(step, facts={"received": False})
    transition.succeed(name, step)


def _limit_passed(transition: Transition, name: str, step: StepState) -> None:
    match step.status:
        case StepStatus.RUNNING | StepStatus.CONFIRMING:
            transition.put(name, replace(step, expired=True))  # an effect may be happening: its outcome is awaited
        case StepStatus.RETRYING | StepStatus.PAUSED:
            forget_attempt_timers(transition, name, step)
            out_of_time(transition, name, step)
        case StepStatus.APPROVING:
            transition.commands.append(ev.CloseReview(name))
            out_of_time(transition, name, step)
        case StepStatus.REVIEWING:
            transition.commands.append(ev.CloseReview(name))
            transition.fail(name, step, deadline_passed(transition, name))
        case StepStatus.OPEN:
            transition.fail(name, step, deadline_passed(transition, name))
        case _:
            pass


_HANDLERS: dict[type[Event], Callable[[Transition, Never], bool]] = {
    ev.RunStarted: _run_started,
    ev.StepSucceeded: _step_succeeded,
    ev.StepFailed: _step_failed,
    ev.StepDeferred: _step_deferred,
    ev.ApprovalNeeded: approval_needed,
    ev.ReviewDecided: _review_decided,
    ev.TimerFired: _timer_fired,
    ev.CompensationSucceeded: _compensation_succeeded,
    ev.CompensationFailed: _compensation_failed,
    ev.CancelRequested: _cancel_requested,
    ev.SignalReceived: _signal_received,
    ev.PauseRequested: _pause_requested,
    ev.ResumeRequested: _resume_requested,
    ev.DeadLetterRequeued: _dead_letter_requeued,
    ev.DeadLetterDiscarded: _dead_letter_discarded,
}
