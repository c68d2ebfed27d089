"""Where commands print, and how the same things always look."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

out = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

_STYLES = {
    "succeeded": "green", "approved": "green", "allow": "green",
    "partial": "yellow", "waiting": "yellow", "open": "yellow", "rejected": "yellow", "cancelled": "yellow",
    "running": "cyan", "queued": "dim", "compensating": "magenta", "compensated": "magenta",
    "failed": "red", "dead": "red", "deny": "red", "unknown": "red",
}  # fmt: skip


def status(name: str) -> Text:
    """A status word in its colour."""
    return Text(name, style=_STYLES.get(name, ""))


def seconds(start: str | None, end: str | None) -> str:
    """Seconds between two ISO timestamps; empty while either is missing."""
    if not start or not end:
        return ""
    return f"{(datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds():.1f}"


def short(path: Path) -> str:
    """A path as a person would type it here: relative to where they are, or to their home."""
    for base, prefix in ((Path.cwd(), ""), (Path.home(), "~/")):
        if path.is_relative_to(base) and path != base:
            return prefix + path.relative_to(base).as_posix()
    return str(path)


def usd(amount: float) -> str:
    """Money; what costs nothing is shown as nothing."""
    return f"{amount:.4f}" if amount else "0"


def print_json(value: Any) -> None:
    """Machine-readable output: indented JSON on standard output, never wrapped."""
    out.print(json.dumps(value, indent=2, ensure_ascii=False, default=str), markup=False, soft_wrap=True)
