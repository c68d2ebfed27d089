"""The orchestrator: `advance(program, state, event) -> (state, commands)`. No I/O, no clock, no randomness.

Total: an event that does not fit the state (a stale attempt, a decision nobody asked for, anything after the
end) gives back the very same state and no commands. So duplicated and reordered deliveries are harmless.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from interlock.base.errors import FailureKind, InvalidSpec
from interlock.workflows import events as ev
from interlock.workflows.events import Command, Failure, RunStatus, Spent
from interlock.workflows.facts import holds
from interlock.workflows.program import Node, Program, Scope
from interlock.workflows.retry import RETRYABLE, backoff
from interlock.workflows.spec import BranchStep, ModelStep, ParallelStep, ReviewStep, ToolStep
from interlock.workflows.state import BUSY, Ending, RunState, StepState, StepStatus

DEADLINE = "deadline"


def advance(program: Program, state: RunState, event: Any) -> tuple[RunState, list[Command]]:
    """The state after `event`, and what the driver must do because of it."""
    if state.over:
        return state, []
    turn = _Turn(program, state, event.at)
    match event:
        case ev.RunStarted():
            accepted = turn.start(event)
        case ev.StepSucceeded():
            accepted = turn.step_succeeded(event)
        case ev.StepFailed():
            accepted = turn.step_failed(event)
        case ev.ReviewDecided():
            accepted = turn.review_decided(event)
        case ev.TimerFired():
            accepted = turn.timer_fired(event)
        case ev.CompensationSucceeded():
            accepted = turn.compensation_succeeded(event)
        case ev.CompensationFailed():
            accepted = turn.compensation_failed(event)
        case ev.CancelRequested():
            accepted = turn.end(RunStatus.CANCELLED, f"cancelled: {event.reason}")
        case _:
            accepted = False
    return turn.close() if accepted else (state, [])


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


class _Turn:
    """One event's worth of work on a private copy of the state."""

    def __init__(self, program: Program, state: RunState, at: float) -> None:
        self.program = program
        self.state = state
        self.at = at
        self.steps = dict(state.steps)
        self.timers = dict(state.timers)
        self.completed = list(state.completed)
        self.retries = state.retries
        self.spent = state.spent
        self.ending = state.ending
        self.status = state.status
        self.reason = state.reason
        self.commands: list[Command] = []
        self.ahead: list[str] = []  # steps to enter, last first; a row of 500 empty branches would need a deep stack

    # -- events ------------------------------------------------------------------------------------------------

    def start(self, event: ev.RunStarted) -> bool:
        if self.state.status is not RunStatus.QUEUED:
            return False
        self.state = replace(self.state, seed=event.seed, input_facts=event.facts)
        self.status = RunStatus.RUNNING
        if self.program.workflow.deadline is not None:
            self._timer(DEADLINE, self.at + self.program.workflow.deadline)
        self._enter_scope(self.program.root)
        return True

    def step_succeeded(self, event: ev.StepSucceeded) -> bool:
        step = self._current(event.step, StepStatus.RUNNING, event.attempt)
        if step is None:
            return False
        self._spend(event.spent)
        self._succeed(event.step, replace(step, output=event.output, facts=event.facts, failure=None))
        return True

    def step_failed(self, event: ev.StepFailed) -> bool:
        step = self._current(event.step, StepStatus.RUNNING, event.attempt)
        if step is None:
            return False
        self._spend(event.spent)
        failure = event.failure
        if failure.kind is FailureKind.BUDGET and not failure.ambiguous:
            self.steps[event.step] = replace(step, status=StepStatus.FAILED, failure=failure)
            self.end(RunStatus.PARTIAL, failure.message)
        elif self._may_retry(event.step, step, failure):
            self._schedule_retry(event.step, step, failure)
        elif failure.ambiguous:
            self._confirm(event.step, replace(step, failure=failure))
        else:
            self.steps[event.step] = replace(step, status=StepStatus.FAILED, failure=failure)
            self.end(RunStatus.FAILED, f'step "{event.step}": {failure.message}')
        return True

    def review_decided(self, event: ev.ReviewDecided) -> bool:
        step = self.steps.get(event.step)
        if step is None or step.status not in {StepStatus.REVIEWING, StepStatus.CONFIRMING}:
            return False
        if step.status is StepStatus.CONFIRMING:
            if event.at in step.denials:
                return False  # the answer to an earlier question, delivered again
            if event.approved:
                self._succeed(event.step, replace(step, output=event.output, facts=event.facts, failure=None))
            elif self.ending is None:
                self._perform(
                    event.step, StepState(StepStatus.RUNNING, step.attempt + 1, denials=(*step.denials, event.at))
                )
            else:
                self.steps[event.step] = replace(step, status=StepStatus.FAILED)
            return True
        spec = self.program.nodes[event.step].step
        facts = {**event.facts, "approved": event.approved}
        if event.approved or (isinstance(spec, ReviewStep) and spec.on_reject == "continue"):
            self._succeed(event.step, replace(step, output=event.output, facts=facts))
        else:
            self.steps[event.step] = replace(step, status=StepStatus.FAILED, output=event.output, facts=facts)
            self.end(RunStatus.FAILED, f'review "{event.step}" was rejected')
        return True

    def timer_fired(self, event: ev.TimerFired) -> bool:
        if self.timers.pop(event.timer, None) is None:
            return False
        if event.timer == DEADLINE:
            return self.end(RunStatus.PARTIAL, f"the run's deadline of {self.program.workflow.deadline:g} s passed")
        kind, name, _ = event.timer.split(":")
        step = self.steps[name]
        if kind == "retry":
            self._perform(name, StepState(StepStatus.RUNNING, step.attempt + 1, denials=step.denials))
        else:
            self._undo(name, step)
        return True

    def compensation_succeeded(self, event: ev.CompensationSucceeded) -> bool:
        step = self.steps.get(event.step)
        if step is None or step.status is not StepStatus.UNDOING or step.undo_attempt != event.attempt:
            return False
        self.steps[event.step] = replace(step, status=StepStatus.UNDONE)
        return True

    def compensation_failed(self, event: ev.CompensationFailed) -> bool:
        step = self.steps.get(event.step)
        if step is None or step.status is not StepStatus.UNDOING or step.undo_attempt != event.attempt:
            return False
        policy = self._policy(event.step)
        # Undoing is not charged to the run's retry budget: a run out of retries must still clean up.
        if event.failure.kind in RETRYABLE and event.attempt < policy.max_attempts:
            wait = backoff(
                policy,
                attempt=event.attempt,
                seed=self.state.seed,
                key=f"undo:{event.step}",
                retry_after=event.failure.retry_after,
            )
            self.steps[event.step] = replace(step, status=StepStatus.UNDO_RETRYING, failure=event.failure)
            self._timer(f"undo:{event.step}:{event.attempt}", self.at + wait)
        else:
            self.steps[event.step] = replace(step, status=StepStatus.UNDO_FAILED, failure=event.failure)
        return True

    def end(self, status: RunStatus, reason: str) -> bool:
        """Nothing new starts from here; what only waits is dropped, what works is awaited."""
        if self.ending is not None:
            return False
        self.ending = Ending(status, reason)
        self.timers = {key: due for key, due in self.timers.items() if key.startswith("undo:")}
        for name, step in list(self.steps.items()):
            if step.status is StepStatus.RETRYING and step.failure is not None and step.failure.ambiguous:
                self._confirm(name, step)
            elif step.status is StepStatus.REVIEWING:
                self.commands.append(ev.CloseReview(name))
                self.steps[name] = replace(step, status=StepStatus.FAILED)
            elif step.status in {StepStatus.RETRYING, StepStatus.OPEN}:
                self.steps[name] = replace(step, status=StepStatus.FAILED)
        return True

    # -- the end of a turn -------------------------------------------------------------------------------------

    def close(self) -> tuple[RunState, list[Command]]:
        while self.ahead and self.ending is None:
            self._enter(self.ahead.pop())
        if self.ending is not None and not self._busy():
            self._finish_ending(self.ending)
        if self.status not in ev.TERMINAL and self.status is not RunStatus.COMPENSATING and self.steps:
            working = any(step.status in {StepStatus.RUNNING, StepStatus.UNDOING} for step in self.steps.values())
            self.status = RunStatus.RUNNING if working else RunStatus.WAITING
        if self.status in ev.TERMINAL:
            self.timers = {}
            self.commands.append(ev.Finish(self.status, self.reason))
        state = replace(
            self.state,
            status=self.status,
            steps=self.steps,
            completed=tuple(self.completed),
            timers=self.timers,
            retries=self.retries,
            spent=self.spent,
            ending=self.ending,
            reason=self.reason,
        )
        return state, self.commands

    def _busy(self) -> bool:
        return any(step.status in BUSY for step in self.steps.values())

    def _finish_ending(self, ending: Ending) -> None:
        undo = ending.status in {RunStatus.FAILED, RunStatus.CANCELLED}
        remaining = [name for name in reversed(self.completed) if self.steps[name].status is StepStatus.SUCCEEDED]
        if undo and remaining:
            self.status = RunStatus.COMPENSATING
            self._undo(remaining[0], self.steps[remaining[0]])
            return
        stuck = sorted(name for name, step in self.steps.items() if step.status is StepStatus.UNDO_FAILED)
        if stuck:
            self.status, self.reason = RunStatus.DEAD, f"{ending.reason}; could not undo {', '.join(stuck)}"
        else:
            self.status, self.reason = ending.status, ending.reason

    # -- moving through the program ----------------------------------------------------------------------------

    def _enter_scope(self, scope: Scope) -> None:
        if scope.steps:
            self.ahead.append(scope.steps[0])
        else:
            self._scope_done(scope)

    def _enter(self, name: str) -> None:
        step = self.program.nodes[name].step
        match step:
            case ModelStep() | ToolStep():
                self._perform(name, StepState(StepStatus.RUNNING))
            case ReviewStep():
                self.steps[name] = StepState(StepStatus.REVIEWING)
                self.commands.append(ev.OpenReview(name, "approve"))
            case ParallelStep():
                self.steps[name] = StepState(StepStatus.OPEN)
                for scope in reversed(self.program.scopes[name]):  # the first is entered first
                    self._enter_scope(scope)
            case BranchStep():
                self._branch(name)

    def _branch(self, name: str) -> None:
        facts = self.state.facts(self.program.nodes)
        facts |= {key: value.facts for key, value in self.steps.items()}
        try:
            verdicts = (holds(condition, facts) for condition in self.program.conditions[name])
            taken = next((index for index, verdict in enumerate(verdicts) if verdict), None)
        except InvalidSpec as error:
            failure = Failure(FailureKind.PERMANENT, error.code, error.message)
            self.steps[name] = StepState(StepStatus.FAILED, failure=failure)
            self.end(RunStatus.FAILED, f'step "{name}": {error.message}')
            return
        scopes = self.program.scopes[name]
        self.steps[name] = StepState(StepStatus.OPEN, facts={"case": -1 if taken is None else taken})
        self._enter_scope(scopes[-1] if taken is None else scopes[taken])

    def _succeed(self, name: str, step: StepState) -> None:
        self.steps[name] = replace(step, status=StepStatus.SUCCEEDED)
        if name in self.program.undoable:
            self.completed.append(name)
        if self.ending is not None:
            return
        node: Node = self.program.nodes[name]
        if node.next is not None:
            self.ahead.append(node.next)
        else:
            self._scope_done(node.scope)

    def _scope_done(self, scope: Scope) -> None:
        if scope.owner is None:
            self.status = RunStatus.SUCCEEDED
            return
        owner = self.steps[scope.owner]
        if isinstance(self.program.nodes[scope.owner].step, ParallelStep):
            scopes = self.program.scopes[scope.owner]
            if owner.status is not StepStatus.OPEN or not all(self._done(one) for one in scopes):
                return
        self._succeed(scope.owner, owner)

    def _done(self, scope: Scope) -> bool:
        last = self.steps.get(scope.steps[-1]) if scope.steps else None
        return not scope.steps or (last is not None and last.status is StepStatus.SUCCEEDED)

    # -- work, retries, compensation ---------------------------------------------------------------------------

    def _perform(self, name: str, step: StepState) -> None:
        self.steps[name] = step
        self.commands.append(ev.Perform(name, step.attempt))

    def _confirm(self, name: str, step: StepState) -> None:
        # An effect may have happened; until a person has said which, the run can neither go on nor undo.
        self.steps[name] = replace(step, status=StepStatus.CONFIRMING)
        self.commands.append(ev.OpenReview(name, "confirm"))

    def _undo(self, name: str, step: StepState) -> None:
        attempt = step.undo_attempt + 1
        self.steps[name] = replace(step, status=StepStatus.UNDOING, undo_attempt=attempt)
        self.commands.append(ev.Compensate(name, attempt))

    def _timer(self, key: str, due: float) -> None:
        # Keys name the attempt: a timer delivered twice must not cut the next wait short.
        self.timers[key] = due
        self.commands.append(ev.StartTimer(key, due))

    def _policy(self, name: str) -> Any:
        step = self.program.nodes[name].step
        assert isinstance(step, ModelStep | ToolStep)
        return step.retry

    def _may_retry(self, name: str, step: StepState, failure: Failure) -> bool:
        return (
            self.ending is None
            and failure.kind in RETRYABLE
            and step.attempt < self._policy(name).max_attempts
            and self.retries < self.program.workflow.budget.retries
        )

    def _schedule_retry(self, name: str, step: StepState, failure: Failure) -> None:
        self.retries += 1
        wait = backoff(
            self._policy(name), attempt=step.attempt, seed=self.state.seed, key=name, retry_after=failure.retry_after
        )
        self.steps[name] = replace(step, status=StepStatus.RETRYING, failure=failure)
        self._timer(f"retry:{name}:{step.attempt}", self.at + wait)

    def _current(self, name: str, status: StepStatus, attempt: int) -> StepState | None:
        step = self.steps.get(name)
        return step if step is not None and step.status is status and step.attempt == attempt else None

    def _spend(self, spent: Spent) -> None:
        self.spent = Spent(
            self.spent.input_tokens + spent.input_tokens,
            self.spent.output_tokens + spent.output_tokens,
            self.spent.usd + spent.usd,
        )
