"""Output of commands: consoles and common formats."""

from __future__ import annotations

import json
import os
import re
import stat
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, ConsoleDimensions
from rich.text import Text

from interlock.base.json import JsonObject
from interlock.services.views.base import Cost, View

# Output may come from models, tools and unknown people: control characters could control the terminal, and bidi marks
# could reverse lines.
_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


_PIPE_COLUMNS = 240
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class _Plain(Console):
    """Console that prints strings unchanged: no markup, no emoji codes, and no control characters.

    Without a terminal the width is not limited to 80 columns: a table in a pipe or a log is not wrapped.
    """

    @property  # type: ignore[misc]  # read-only here
    def size(self) -> ConsoleDimensions:
        width_known = self.is_terminal or "COLUMNS" in os.environ
        return super().size if width_known else ConsoleDimensions(_PIPE_COLUMNS, 25)

    def render_str(self, text: str, **keywords: Any) -> Text:
        return super().render_str(visible(text), **keywords)


out = _Plain(highlight=False, markup=False, emoji=False)
errors = _Plain(stderr=True, highlight=False, markup=False, emoji=False)

_STYLES = {
    "succeeded": "green", "approved": "green", "allow": "green",
    "partial": "yellow", "waiting": "yellow", "open": "yellow", "rejected": "yellow", "cancelled": "yellow",
    "running": "cyan", "queued": "dim", "compensating": "magenta", "compensated": "magenta",
    "failed": "red", "dead": "red", "deny": "red", "unknown": "red",
}  # fmt: skip


def detach_from_terminal() -> None:
    """Discards all later output: the terminal is closed, and writing to it would fail."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):
            os.dup2(null, descriptor)
    os.close(null)


def visible(text: str) -> str:
    """The text with every control character escaped."""
    return _COMMANDS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def status(name: str) -> Text:
    """A status word in its colour."""
    return Text(name, style=_STYLES.get(name, ""))


def seconds(start: datetime | None, end: datetime | None) -> str:
    """Seconds between two moments; empty if one is missing."""
    return f"{(end - start).total_seconds():.1f}" if start and end else ""


def moment(at: datetime | None) -> str:
    """A moment in local time, with its date, to the second; empty for None."""
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S}" if at else ""


def short(path: Path) -> str:
    """A short path: relative to the working directory or to the home directory."""
    for base, prefix in ((Path.cwd(), ""), (Path.home(), "~/")):
        if path.is_relative_to(base) and path != base:
            return prefix + path.relative_to(base).as_posix()
    return str(path)


def usd(cost: Cost) -> str:
    """Cost of a run or a step in USD: the sum of the priced calls, and the number of unpriced calls."""
    if not cost.unpriced_calls:
        return str(cost.usd)
    calls = "1 unpriced call" if cost.unpriced_calls == 1 else f"{cost.unpriced_calls} unpriced calls"
    return calls if cost.usd_priced == "0" else f"{cost.usd_priced} + {calls}"


def _plain(value: object) -> object:
    return value.to_json() if isinstance(value, View) else value


def print_next_page(option: str, last: str | int | None) -> None:
    """Says on standard error how to list what follows a page that is not the last."""
    if last is not None:
        errors.print(f"more with {option} {last}", style="dim", soft_wrap=True)


def print_answer(answer: View | JsonObject, text: str, *, as_json: bool) -> None:
    """Prints what a command did: the answer as JSON, or a sentence."""
    if as_json:
        print_json(answer)
    else:
        out.print(text, soft_wrap=True)


def print_next_worker(url: str | None) -> None:
    """Says when a run continues that no server, and so no worker of it, continues now."""
    if url is None:
        errors.print("no server runs here; the run continues with the next `interlock dev` or `interlock worker`")


def print_json(value: object) -> None:
    """Machine-readable output: indented JSON on standard output, never wrapped."""
    shown = [_plain(one) for one in value] if isinstance(value, list) else _plain(value)
    # The escapes of `visible` are JSON escapes, so the value stays the same.
    out.print(json.dumps(shown, indent=2, ensure_ascii=False, default=str), soft_wrap=True)
