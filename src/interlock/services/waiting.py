"""How a run stands, in words a person can act on: what it waits for, by which way its steps were done, and why it is partial."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType

from interlock.machine.names import TimerKey
from interlock.machine.program import Program
from interlock.machine.state import RunState, StepState, StepStatus, limit_key
from interlock.services.views.runs import (
    DeadLetterWait,
    PausedWait,
    QuotaWait,
    ReviewWait,
    SignalWait,
    TimedWait,
    Wait,
    WorkerWait,
)
from interlock.workflows.spec import ModelStep, ToolStep, WaitStep

_DEAD_LETTERS = {StepStatus.HELD, StepStatus.COMPENSATION_FAILED}


def waits_for(
    program: Program,
    state: RunState,
    reviews: Mapping[str, str],
    dead_letters: Mapping[str, str],
    *,
    needs_worker: bool = False,
    quotas: Mapping[str, str] = MappingProxyType({}),
    run_quota: str | None = None,
) -> list[Wait]:
    """Lists what has to happen before the run can go on.

    Args:
        reviews: step → id of its open review; `dead_letters` likewise, with '' for the run itself.
        needs_worker: True if the run is due and no worker is there.
        quotas: tool → its quota, in words.
        run_quota: quota of the workflow or the organisation that a queued run is subject to.
    """
    found: list[Wait] = [PausedWait()] if state.paused else []
    if needs_worker:
        found.append(WorkerWait())
    elif run_quota is not None:
        found.append(QuotaWait(quota=run_quota))
    for name in state.live:
        one = _wait_of(program, state, name, state.steps[name], reviews, dead_letters, quotas)
        if one is not None:
            found.append(one)
    if "" in dead_letters and not state.over:
        found.append(DeadLetterWait(dead_letter_id=dead_letters[""]))
    return found


def _wait_of(
    program: Program,
    state: RunState,
    name: str,
    step: StepState,
    reviews: Mapping[str, str],
    dead_letters: Mapping[str, str],
    quotas: Mapping[str, str],
) -> Wait | None:
    if step.status in _DEAD_LETTERS:
        return DeadLetterWait(step=name, dead_letter_id=dead_letters.get(name))
    match step.status:
        case StepStatus.REVIEWING | StepStatus.APPROVING:
            until = state.timers.get(limit_key(name, step))
            return ReviewWait(step=name, for_="review", review_id=reviews.get(name), until=_moment(until))
        case StepStatus.CONFIRMING:
            return ReviewWait(step=name, for_="confirm", review_id=reviews.get(name))
        case StepStatus.WAITING:
            spec, until = program.node(name).step, state.timers.get(str(TimerKey.wait(name)))
            if isinstance(spec, WaitStep) and spec.signal is not None:
                return SignalWait(step=name, name=spec.signal, until=_moment(until))
            return TimedWait(step=name, for_="timer", until=_moment(until))
        case StepStatus.RETRYING:
            later = (TimerKey.retry(name, step.attempt), TimerKey.defer(name, step.attempt, step.deferrals))
            due = [state.timers[str(key)] for key in later if str(key) in state.timers]
            work = program.work(name, step.variant, step.tool)
            if str(later[1]) in state.timers and isinstance(work, ToolStep) and work.tool in quotas:
                return QuotaWait(step=name, quota=quotas[work.tool], until=_moment(min(due, default=None)))
            return TimedWait(step=name, for_="retry", until=_moment(min(due, default=None)))
        case StepStatus.COMPENSATION_RETRYING:
            until = state.timers.get(str(TimerKey.compensate(name, step.compensation_attempt)))
            return TimedWait(step=name, for_="retry", until=_moment(until))
        case _:
            return None


def way_of(program: Program, name: str, step: StepState) -> str | None:
    """The fallback that took a step's place, in words; None for the step itself."""
    fallback = program.fallback(name, step.variant)
    if fallback is None:
        return None
    execution = program.work(name, step.variant, step.tool)
    if fallback.tool is not None and isinstance(execution, ToolStep):
        return f"tool {execution.tool}"
    if fallback.model is not None and isinstance(execution, ModelStep):
        return f"model {execution.model}"
    return "last good result" if fallback.last_good else "fixed answer"


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
