"""Tool registry: tools by name for one workflow version, and the only call into the sandbox."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from interlock.base.error_detail import ErrorDetail
from interlock.base.errors import Denied, FailureKind, NothingHappened, ToolError
from interlock.base.json import JsonObject
from interlock.sandbox.environment import Job, Sandbox, SandboxLimits, SandboxResult
from interlock.tools.batches import ToolBatches
from interlock.tools.output import OnOutput, ToolOutput
from interlock.workflows.contracts import MIB, ToolContract

Function = Literal["run", "commit", "compensate", "probe", "health"]
Locate = Callable[[str], Awaitable[Path]]
"""Bundle digest → unpacked directory."""

_MAX_CLASS_NAME = 60


@dataclass(frozen=True, slots=True)
class Tool:
    """A pinned tool: its contract and the digest of its code."""

    contract: ToolContract
    bundle: str


class Tools:
    """Calls tools in sandboxes and reports their results in one vocabulary.

    Args:
        on_output: called after each call of a tool that printed something or raised, before its result is used.
    """

    def __init__(self, sandbox: Sandbox, locate: Locate, on_output: OnOutput | None = None) -> None:
        self._sandbox = sandbox
        self._on_output = on_output
        self._batches = ToolBatches(sandbox)
        self._locate = locate

    @property
    def sandbox_name(self) -> str:
        return self._sandbox.name

    async def fetch(self, tool: Tool) -> None:
        """Fetches a tool's code unless it is on this host; raises as `locate` does."""
        await self._locate(tool.bundle)

    async def call(
        self,
        tool: Tool,
        function: Function,
        arguments: JsonObject,
        *,
        context: JsonObject,
        allowed: frozenset[str],
        until: float | None = None,
    ) -> SandboxResult:
        """Makes one call in a fresh sandbox; no byte of it is sent after `until` (see `Job`).

        If the contract declares `batch`, a call of `run` shares its sandbox with others of the same run (see `ToolBatches`).

        Raises:
            Denied: the tool is not in the workflow's allowlist.
            SandboxError: no sandbox could be started; the tool was not called.
        """
        contract = tool.contract
        if contract.name not in allowed:
            raise Denied(f'tool "{contract.name}" is not in this workflow\'s allow list')
        job = Job(
            bundle=await self._locate(tool.bundle),
            tool=contract.name,
            function=function,
            arguments=arguments,
            context=context,
            allowed_tools=allowed,
            egress=tuple(contract.egress),
            until=until,
            limits=SandboxLimits(
                timeout=contract.timeout,
                cpu_seconds=contract.limits.cpu_seconds,
                memory_bytes=contract.limits.memory_mib * MIB,
                disk_bytes=contract.limits.disk_mib * MIB,
                processes=contract.limits.processes,
            ),
        )
        batch = contract.batch if function == "run" else None
        result = await (self._sandbox.run(job) if batch is None else self._batches.run(job, batch))
        if self._on_output is not None and (result.printed or result.traceback):
            await self._on_output(ToolOutput(contract.name, function, context, result.traceback, result.printed))
        return result


_CONNECTION_ERRORS = frozenset({
    *("ClientConnectorError", "ConnectError", "ConnectTimeout", "ConnectionError", "ConnectionRefusedError", "MaxRetryError"),
    *("NewConnectionError", "OSError", "ProxyError", "URLError", "gaierror"),
})  # fmt: skip
"""Exceptions of Python's own and of common HTTP libraries for a connection that was not made."""


def error_of(contract: ToolContract, result: SandboxResult) -> ToolError:
    """The error of a failed call. The kernel decides whether the outcome of its effect is unknown."""
    sentences = {
        "raised": f"failed ({_class_name(result.error)})",
        "crashed": "crashed",
        "timeout": f"did not answer within {contract.timeout:g} s and was killed",
        "out_of_memory": f"needed more than its {contract.limits.memory_mib} MiB of memory (limits.memory_mib)",
        "too_many_files": f"made more files than its {contract.limits.disk_mib} MiB of disk allow (limits.disk_mib)",
        "garbage": f"answered with something that is not JSON{', or not what run_batch must return' if contract.batch else ''}",
        "too_large": "answered with more than the limit allows",
    }
    message = f'tool "{contract.name}" {sentences[result.ending]}'
    if not contract.egress and result.ending == "raised" and _class_name(result.error) in _CONNECTION_ERRORS:
        message += "; it may reach no address: add HOST:PORT to egress in tool.yaml"
    error_detail = ErrorDetail(result.error, result.traceback, result.printed)
    if result.nothing_happened:
        return NothingHappened(message, kind=FailureKind.PERMANENT, error_detail=error_detail)
    if result.ending == "raised" and not result.retryable:
        return ToolError(message, kind=FailureKind.PERMANENT, error_detail=error_detail)
    if result.ending in {"garbage", "too_large", "out_of_memory", "too_many_files"}:
        return ToolError(message, kind=FailureKind.PERMANENT, error_detail=error_detail)
    kind = FailureKind.RATE_LIMITED if result.retry_after else FailureKind.TRANSIENT
    return ToolError(message, kind=kind, retry_after=result.retry_after, error_detail=error_detail)


def _class_name(error: str | None) -> str:
    """The exception's class in `Class: text`; the text is dropped, because it may contain the tool's arguments."""
    name = (error or "").partition(":")[0]
    return name if name.isidentifier() and len(name) <= _MAX_CLASS_NAME else "an exception"
