"""Runs the health check of a tool in a sandbox, for the poller."""

from __future__ import annotations

from typing import Any

from interlock.admission.tool_health import Check, HealthVerdict
from interlock.base.errors import InterlockError
from interlock.telemetry import names
from interlock.telemetry.logs import log, scrub
from interlock.tools.registry import Tool, Tools, error_of
from interlock.workflows.contracts import ToolContract


class HealthChecks:
    """Asks tools how they are. A check is no step: it has no run, no user's data and no budget, only the tool's egress."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    async def ask(self, check: Check) -> HealthVerdict | None:
        """The tool's verdict on itself; None if it could not be asked (no sandbox, no bundle). Raises nothing.

        A check that raises, hangs, crashes or answers something else is a bad one: a tool that cannot say that it is
        healthy is not.
        """
        try:
            contract = ToolContract.model_validate(check.contract)
            result = await self._tools.call(
                Tool(contract, check.bundle),
                "health",
                {},
                context={"tool": check.tool},
                allowed=frozenset({check.tool}),
            )
        except Exception as error:  # noqa: BLE001  what went wrong on our side says nothing about the tool
            level = "warning" if isinstance(error, InterlockError) else "error"
            log(names.LOG_HEALTH_UNKNOWN, str(error), level=level, tool=check.tool)
            return None
        if result.ending != "ok":
            return HealthVerdict(False, error_of(contract, result).message)
        return verdict_of(check.tool, result.output)


def verdict_of(tool: str, output: Any) -> HealthVerdict:
    """Parses the untrusted result of `health`."""
    if not isinstance(output, dict) or not isinstance(output.get("healthy"), bool):
        return HealthVerdict(False, f'tool "{tool}": health must return {{"healthy": true|false, "detail": "…"}}')
    detail = output.get("detail", "")
    # PostgreSQL takes no NUL, and no half of a surrogate pair.
    text = detail.replace("\0", " ").encode("utf-8", "replace").decode() if isinstance(detail, str) else ""
    return HealthVerdict(output["healthy"], scrub(text))
