"""Admission of calls: breakers and tool health, checked before a call and updated after it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from interlock.admission.breakers import Admission, Breakers, Reported
from interlock.admission.tool_health import ToolHealth
from interlock.base.errors import ContractViolation, Deferred, FailureKind, SandboxError, StepError

T = TypeVar("T")


class CallGate:
    """Admits calls to working targets, and reports their outcomes."""

    def __init__(self, breakers: Breakers, tools: ToolHealth) -> None:
        self._breakers = breakers
        self._tools = tools
        self._leaving: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Waits until all admissions have been returned."""
        await asyncio.gather(*self._leaving, return_exceptions=True)

    async def admit(
        self, org_id: str, target: str, tool: tuple[str, str] | None = None, *, seconds: float = 0.0
    ) -> Admission:
        """Admits one call; follow it with `watch`, or with `leave` if the call is not made.

        Args:
            tool: name and bundle, if the target is one.
            seconds: maximum duration of the call.

        Raises:
            ToolUnhealthy: the tool's last two health checks were bad.
            TargetDown: the target's breaker is open; `retry_after` in seconds.
        """
        if tool is not None:
            self._tools.check(org_id, *tool)  # first, because this check uses no probe
        return await self._breakers.admit(org_id, target, seconds=seconds)

    async def watch(self, admission: Admission | None, call: Awaitable[T]) -> T:
        """Awaits the call and reports how it ended; raises what the call raises and nothing else."""
        try:
            result = await call
        except Exception as error:
            if admission is not None:
                await self._breakers.report(admission, verdict(error))
            raise
        if admission is not None:
            await self._breakers.report(admission, "answered")
        return result

    async def ask(self, admission: Admission | None, question: Awaitable[T]) -> T:
        """Like `watch`, for a question to the target before the call (a plan or a probe). An answer says nothing about the
        call itself; a failure does."""
        try:
            return await question
        except Exception as error:
            if admission is not None and verdict(error) == "failed":
                await self._breakers.report(admission, "failed")
            raise

    def leave(self, admission: Admission | None) -> None:
        """Returns an unused admission. Does not wait, because its caller may be cancelled at this moment."""
        if admission is None or not admission.probe:
            return
        task = asyncio.get_running_loop().create_task(self._breakers.report(admission, "unused"))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)


def verdict(error: Exception) -> Reported:
    """Classification of a failed call for the target's breaker.

    Only unavailability counts against it: a timeout, a crash, a broken connection, a 5xx. A refusal, a requested pause or
    an answer that violates the contract shows that the target is up; a failure on our side shows nothing.
    """
    if isinstance(error, ContractViolation):
        return "answered"
    if isinstance(error, Deferred):  # no outcome itself; the deferred call may have one
        return verdict(error.__cause__) if isinstance(error.__cause__, StepError) else "unused"
    if not isinstance(error, StepError) or isinstance(error, SandboxError) or not error.counts_against_breaker:
        return "unused"
    return "failed" if error.kind is FailureKind.TRANSIENT else "answered"
