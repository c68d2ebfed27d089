"""What the tests of batched model calls share."""

from __future__ import annotations

import textwrap
from typing import Any

from engines.harness import BOOM, Observer, think, until

PACE = {"gather_seconds": 0.6, "check_seconds": 0.2, "max_check_seconds": 0.4}
WORDS = "{words: $steps.think.words}"


def batched(step: str = "think", *, extra: str = "", **changes: Any) -> str:
    """A model step through a batch API, as YAML."""
    return think(step, **changes) + "  batch: true\n" + extra


def config(pin: str, **pace: float) -> dict[str, Any]:
    """Settings for one model, at a quick pace."""
    return {"models": {"default": pin}, "batch": {**PACE, **pace}, "worker": {"concurrency": 40, "lease_seconds": 60}}


async def calls_in(seen: Observer, status: str, count: int) -> None:
    """Waits until so many calls have come so far."""
    query = "select count(*) from batched_calls where status = %s"
    await until(lambda: seen.rows(query, status) == [(count,)], lambda: str(seen.rows("select * from batched_calls")))


SLOW = {"gather_seconds": 60.0, "check_seconds": 60.0, "max_check_seconds": 60.0}  # never handed in within a test
LET_GO = (
    "- id: both\n  kind: parallel\n  on_failure: continue\n  branches:\n    a:\n"
    + textwrap.indent(batched("think"), "      ")
    + "    b:\n      - {id: pause, kind: wait, duration: 0.3}\n"
    + textwrap.indent(BOOM, "      ")
)
"""The call waits in one branch while the other fails, and takes it along."""
