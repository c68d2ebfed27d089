"""Output of tools for the terminal of their author, past the guard gate."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from interlock.base.json import JsonObject
from interlock.guard.gate import Stage, inspect


@dataclass(frozen=True, slots=True)
class ToolOutput:
    """Output of one call of a tool, for its author; `context` names the run, the step and the attempt."""

    tool: str
    function: str
    context: JsonObject
    traceback: str
    printed: str


OnOutput = Callable[[ToolOutput], Awaitable[None]]
OnToolOutput = Callable[[str, str, str], None]
"""Receives the tool, the place (run, step and attempt) and the text."""


def redacted_output(show: OnToolOutput) -> OnOutput:
    """Makes a receiver of tool output that redacts it like every text of a tool that people read.

    The calls of a batch share one output, which is shown once.
    """
    last: tuple[str, object, str] | None = None

    async def receive(output: ToolOutput) -> None:
        nonlocal last
        text = (
            output.printed + ("\n" if output.printed and not output.printed.endswith("\n") else "") + output.traceback
        )
        run = output.context.get("run_id")
        if last == (output.tool, run, text):
            return
        last = (output.tool, run, text)
        shown = await inspect(text, Stage.HUMAN_TEXT, "")
        place = f"{run or output.function} {output.context.get('step', '')}".rstrip()
        attempt = output.context.get("attempt")
        show(output.tool, f"{place} attempt {attempt}" if attempt not in {None, 1} else place, str(shown.value))

    return receive
