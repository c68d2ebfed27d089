"""Runs the health check of a tool in a sandbox, for the poller."""

from __future__ import annotations

from interlock.admission.tool_health import Check, HealthVerdict
from interlock.base.errors import InterlockError
from interlock.telemetry import names
from interlock.telemetry.logs import log, scrub
from interlock.tools.registry import Tool, Tools, error_of
from interlock.workflows.contracts import ToolContract


class HealthChecks:
    """Executes health checks of tools. A check is not a step: it has no run, no user data and no budget, only the tool's egress."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    async def ask(self, check: Check) -> HealthVerdict | None:
        """Result of the tool's check; None if it could not run (no sandbox, no bundle). Raises nothing.

        A check that raises, hangs, crashes or returns another value counts as bad: only a correct answer shows that a tool is
        healthy.
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
        except Exception as error:  # noqa: BLE001  an error on our side says nothing about the tool
            level = "warning" if isinstance(error, InterlockError) else "error"
            log(names.LOG_HEALTH_UNKNOWN, str(error), level=level, tool=check.tool)
            return None
        if result.ending != "ok":
            return HealthVerdict(False, error_of(contract, result).message)
        return verdict_of(check.tool, result.output)


def verdict_of(tool: str, output: object) -> HealthVerdict:
    """Parses the untrusted result of `health`."""
    if not isinstance(output, dict) or not isinstance(output.get("healthy"), bool):
        return HealthVerdict(False, f'tool "{tool}": health must return {{"healthy": true|false, "detail": "…"}}')
    detail = output.get("detail", "")
    # PostgreSQL text can contain neither NUL nor a lone surrogate.
    text = detail.replace("\0", " ").encode("utf-8", "replace").decode() if isinstance(detail, str) else ""
    return HealthVerdict(output["healthy"], scrub(text))
