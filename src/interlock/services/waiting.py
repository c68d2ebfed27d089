"""How a run stands, in words a person can act on: what it waits for, by which way its steps were done, and why it is partial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from interlock.machine.names import TimerKey
from interlock.machine.program import Program
from interlock.machine.state import RunState, StepState, StepStatus
from interlock.workflows.spec import ModelStep, ToolStep, WaitStep

_DEAD_LETTERS = {StepStatus.HELD, StepStatus.COMPENSATION_FAILED}


def waits_for(
    program: Program, state: RunState, reviews: Mapping[str, str], dead_letters: Mapping[str, str]
) -> list[dict[str, Any]]:
    """What has to happen before the run can go on, each as `for` and what belongs to it.

    `review`, `confirm` and `dead_letter` carry `review_id` or `dead_letter_id`; `signal` its `name`, and `until` if it gives
    up then; `timer` and `retry` the moment, `until`, in seconds since the epoch. `paused` is for the whole run.

    Args:
        reviews: step → id of its open review; `dead_letters` likewise, with '' for the run itself.
    """
    found: list[dict[str, Any]] = [{"for": "paused"}] if state.paused else []
    for name in state.live:
        step = state.steps[name]
        one = _wait_of(program, state, name, step)
        if one is None:
            continue
        if one["for"] in {"review", "confirm"}:
            one["review_id"] = reviews.get(name)
        elif one["for"] == "dead_letter":
            one["dead_letter_id"] = dead_letters.get(name)
        found.append({"step": name, **one})
    if "" in dead_letters and not state.over:
        found.append({"for": "dead_letter", "dead_letter_id": dead_letters[""]})
    return found


def _wait_of(program: Program, state: RunState, name: str, step: StepState) -> dict[str, Any] | None:
    if step.status in _DEAD_LETTERS:
        return {"for": "dead_letter"}
    match step.status:
        case StepStatus.REVIEWING:
            return {"for": "review"}
        case StepStatus.CONFIRMING:
            return {"for": "confirm"}
        case StepStatus.WAITING:
            spec, until = program.node(name).step, state.timers.get(str(TimerKey.wait(name)))
            if isinstance(spec, WaitStep) and spec.signal is not None:
                return {"for": "signal", "name": spec.signal, "until": until}
            return {"for": "timer", "until": until}
        case StepStatus.RETRYING:
            later = (TimerKey.retry(name, step.attempt), TimerKey.defer(name, step.attempt, step.deferrals))
            due = [state.timers[str(key)] for key in later if str(key) in state.timers]
            return {"for": "retry", "until": min(due, default=None)}
        case StepStatus.COMPENSATION_RETRYING:
            return {
                "for": "retry",
                "until": state.timers.get(str(TimerKey.compensate(name, step.compensation_attempt))),
            }
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
