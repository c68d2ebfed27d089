"""Execution of tool calls: arguments that fit the contract in, a value that fits it out, in a fresh sandbox."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from interlock.base.clock import Clock
from interlock.base.errors import ContractViolation, FailureKind, ToolError
from interlock.base.json import InvalidJson, Json, accept_json
from interlock.base.labels import Trust
from interlock.execution.call import CallResult, ToolCall
from interlock.sandbox.environment import SandboxResult
from interlock.telemetry import names
from interlock.tools.registry import Function, Tools, error_of
from interlock.workflows.contracts import ToolContract
from interlock.workflows.schemas import check_value

_CLOCKS_APART = 60.0  # seconds by which the clock of a far side may be ahead


class ToolExecutor:
    """Executes tool calls."""

    span_name = names.TOOL_CALL

    def __init__(self, tools: Tools, clock: Clock) -> None:
        self._tools = tools
        self._clock = clock

    async def fetch(self, call: ToolCall) -> None:
        """Makes sure that the tool's code is at hand."""
        await self._tools.fetch(call.tool)

    async def plan(self, call: ToolCall) -> Json:
        """Plan of a tool with an explicit commit: the result of its `run`, which changes nothing."""
        result = await self._call(call, "run", call.arguments, key=None)
        planned: Json = result.output
        return planned

    async def execute(
        self, call: ToolCall, *, key: str | None = None, plan: Json = None, until: float | None = None
    ) -> CallResult:
        """The call. With an explicit commit it is `commit` with the plan; else `run` with the arguments."""
        if call.tool.contract.commit:
            result = await self._call(call, "commit", {"plan": plan}, key=key, until=until)
        else:
            result = await self._call(call, "run", call.arguments, key=key, until=until)
        return self._result(call, result.output, result.start_seconds)

    async def probe(self, call: ToolCall, key: str) -> CallResult | None:
        """Asks the tool whether the effect with this key happened: None if not, else what it gave.

        Raises:
            ContractViolation: it happened, and the tool cannot say what it gave.
        """
        result = await self._call(call, "probe", {"input": call.arguments}, key=key)
        if not isinstance(result.output, dict) or not isinstance(result.output.get("happened"), bool):
            raise ToolError(
                f'tool "{call.tool.contract.name}": probe must return {{"happened": true|false, "output": …}}',
                kind=FailureKind.PERMANENT,
            )
        if not result.output["happened"]:
            return None
        return self._result(call, result.output.get("output"), result.start_seconds)

    async def compensate(self, call: ToolCall, output: Json, *, key: str) -> None:
        """Undoes a completed call, which gave `output`."""
        await self._call(call, "compensate", {"input": call.arguments, "output": output}, key=key)

    async def _call(
        self,
        call: ToolCall,
        function: Function,
        arguments: Mapping[str, Json],
        *,
        key: str | None,
        until: float | None = None,
    ) -> SandboxResult:
        context: dict[str, Json] = {"run_id": call.caller.run_id, "step": call.name, "attempt": call.attempt}
        if key is not None:
            context["idempotency_key"] = key
        result = await self._tools.call(
            call.tool, function, arguments, context=context, allowed=call.allow, until=until
        )
        if result.ending != "ok":
            raise error_of(call.tool.contract, result)
        try:
            accept_json(result.output)
        except InvalidJson as error:
            raise ContractViolation(f'tool "{call.tool.contract.name}": its answer: {error.message}') from error
        return result

    def _result(self, call: ToolCall, output: Json, start_seconds: float) -> CallResult:
        contract = call.tool.contract
        check_value(call.checks, output, what=f'tool "{contract.name}": its answer')
        now = self._clock.now()
        as_of = _as_of(contract, output, now)
        labels = call.labels.passed(call.source, Trust.TOOL)
        # As old as the tool says, else as the call: how old its arguments were was looked at when it was made.
        labels = replace(labels, as_of=as_of)
        if call.max_age is not None and now - as_of > call.max_age:
            raise ToolError(
                f'tool "{contract.name}": its answer is {now - as_of:.0f} s old, and as a fallback it may be {call.max_age:g} s',
                kind=FailureKind.PERMANENT,
            )
        return CallResult(
            output,
            contract.output,
            labels,
            attributes={
                names.GEN_AI_TOOL_NAME: contract.name,
                names.TOOL_EFFECT: contract.effect,
                names.TOOL_SANDBOX: self._tools.sandbox_name,
                names.TOOL_START_MS: round(start_seconds * 1000, 3),
            },
        )


def _as_of(contract: ToolContract, output: Json, now: float) -> float:
    """When the answer was true, seconds since the epoch: as the tool says, else now."""
    said = output.get(contract.as_of) if contract.as_of is not None and isinstance(output, Mapping) else None
    if isinstance(said, str):
        try:
            moment: datetime | None = datetime.fromisoformat(said)
        except ValueError:
            moment = None
        when = moment.timestamp() if moment is not None and moment.tzinfo is not None else 0.0
    elif isinstance(said, int | float) and not isinstance(said, bool):
        when = float(said)
    else:
        when = now if contract.as_of is None else 0.0
    # What says no moment, or one to come (milliseconds, say), is older than anything may be, not fresh for ever.
    return min(when, now) if when <= now + _CLOCKS_APART else 0.0
