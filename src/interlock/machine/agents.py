"""Turns and tool calls of an agent step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from interlock.base.errors import FailureKind
from interlock.machine.events import Failure
from interlock.machine.names import call_of, frame_of, turn_of, unnumbered
from interlock.machine.state import OVER, StepState, StepStatus
from interlock.machine.transition import Transition
from interlock.workflows.facts import Facts, call_counts
from interlock.workflows.spec import AgentStep

_COUNTS_CALLS = 2
"""Machine version from which an agent step has facts about its calls."""


def next_turn(transition: Transition, name: str) -> None:
    """An agent's next model call, or its failure if it has had all its turns."""
    state, step = transition.steps[name], transition.program.node(name).step
    assert isinstance(step, AgentStep)
    if state.iteration >= step.max_turns:
        message = f"no answer after {step.max_turns} turns"
        transition.fail(name, state, Failure(FailureKind.PERMANENT, "turns_exhausted", message))
        return
    transition.put(name, replace(state, iteration=state.iteration + 1))
    frame = frame_of(name, state.iteration + 1)
    transition.put(frame, StepState(StepStatus.OPEN))
    # What a person put in the place of the prompt's values holds for the turns that follow, too.
    before = transition.steps.get(turn_of(frame_of(name, state.iteration)))
    transition.perform(turn_of(frame), StepState(StepStatus.RUNNING, override=before.override if before else None))


def next_calls(transition: Transition, frame: str) -> None:
    """Starts what may start of the calls of a turn; with none left, the next turn, and with none wanted, the answer."""
    agent = unnumbered(frame)
    asked = transition.steps[turn_of(frame)]
    if not asked.calls:
        transition.put(frame, replace(transition.steps[frame], status=StepStatus.SUCCEEDED))
        answered = transition.steps[agent]
        facts = (
            asked.facts
            if transition.machine < _COUNTS_CALLS
            else {**asked.facts, **_counted(transition, agent, answered)}
        )
        transition.succeed(agent, replace(answered, output=asked.output, facts=facts))
        return
    waiting = False  # a call named earlier is not over
    for number, tool in enumerate(asked.calls, start=1):
        name = call_of(frame, number)
        state = transition.steps.get(name)
        if state is not None and state.status in OVER:
            continue
        alone = transition.program.mutates(tool)
        if state is None and not (alone and waiting):
            transition.perform(name, StepState(StepStatus.RUNNING, tool=tool))
        waiting = True
        if alone:
            return
    if not waiting:
        transition.put(frame, replace(transition.steps[frame], status=StepStatus.SUCCEEDED))
        next_turn(transition, agent)


def _counted(transition: Transition, agent: str, state: StepState) -> Facts:
    """Facts about the calls of an agent that has answered."""
    step = transition.program.node(agent).step
    assert isinstance(step, AgentStep)
    counts = call_counts(step.tools)
    for turn in range(1, state.iteration + 1):
        frame = frame_of(agent, turn)
        for number, tool in enumerate(transition.steps[turn_of(frame)].calls, start=1):
            outcome = _outcome(transition.steps[call_of(frame, number)])
            counts["calls"] += 1
            counts[f"{outcome}_{tool}"] += 1
            if outcome != "succeeded":
                counts[f"{outcome}_calls"] += 1
    return dict(counts)


def _outcome(call: StepState) -> str:
    if call.status is StepStatus.SUCCEEDED:
        return "succeeded"
    return "denied" if call.failure is not None and call.failure.kind is FailureKind.DENIED else "failed"


def wrong_calls(transition: Transition, name: str, calls: Iterable[str]) -> Failure | None:
    """Failure of a turn that names tools the agent does not have, or too many; normally the kernel has refused it."""
    step = transition.program.node(name).agent
    wanted = list(calls)
    if not wanted or (step is not None and set(wanted) <= set(step.tools) and len(wanted) <= step.max_calls):
        return None
    return Failure(FailureKind.INVALID, "unknown_tool", "the model asked for tools that this step does not have")
