"""An agent's conversation, put together from its stored pieces: the turns so far and what became of their calls."""

from __future__ import annotations

from typing import Any

from interlock.base.error_detail import ErrorDetail
from interlock.base.errors import IntegrityError
from interlock.base.labels import NEUTRAL, Labels
from interlock.definitions.agent_schemas import instructions, results_message, said
from interlock.execution.run import StepExecution
from interlock.machine.names import InstanceName, call_of, enclosing, turn_of
from interlock.machine.state import StepStatus
from interlock.workflows.spec import AgentStep


async def conversation(execution: StepExecution, agent: AgentStep) -> tuple[list[tuple[str, str]], Labels]:
    """Messages after the prompt's own: (role, content) in order, and the labels of all of them."""
    program, state = execution.run.version.program, execution.state
    messages = [("system", instructions(program, agent))]
    labels = NEUTRAL
    turn = InstanceName.parse(enclosing(execution.name))
    for earlier in range(1, turn.number or 1):
        frame = str(turn.numbered(earlier))
        asked = state.steps[turn_of(frame)]
        assert asked.output is not None
        results, joined = await _results(execution, frame, asked.calls)
        labels = labels.join(asked.output.labels).join(joined)
        messages += [("assistant", said(await execution.run.value(asked.output))), ("user", results_message(results))]
    return messages, labels


async def _results(execution: StepExecution, frame: str, calls: tuple[str, ...]) -> tuple[list[dict[str, Any]], Labels]:
    results, labels = [], NEUTRAL
    for number, tool in enumerate(calls, start=1):
        call = execution.state.steps[call_of(frame, number)]
        if call.status is StepStatus.SUCCEEDED and call.output is not None:
            labels = labels.join(call.output.labels)
            results.append({"tool": tool, "result": await execution.run.value(call.output)})
            continue
        result = {"tool": tool, "error": call.failure.message if call.failure is not None else "it did not work"}
        if call.failure is not None and call.failure.error_detail is not None:
            detail = ErrorDetail.from_json(await execution.run.value(call.failure.error_detail))
            if detail.message is not None:
                labels = labels.join(call.failure.error_detail.labels)
                result["detail"] = detail.message
        results.append(result)
    return results, labels


async def asked_for(execution: StepExecution) -> tuple[dict[str, Any], Labels]:
    """The arguments that the model gave for this call.

    Raises:
        IntegrityError: the turn is not what the machine took it for.
    """
    asked = execution.state.steps[turn_of(enclosing(execution.name))]
    number = InstanceName.parse(execution.name).number
    if asked.output is None or number is None:
        raise IntegrityError(f'the turn that asked for "{execution.name}" is gone')
    call = (await execution.run.value(asked.output))["calls"][number - 1]
    return dict(call["arguments"]), asked.output.labels
