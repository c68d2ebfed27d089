"""What the tests of batched model calls share."""

from __future__ import annotations

from typing import Any

from engines.harness import think

PACE = {"gather_seconds": 0.6, "check_seconds": 0.2, "max_check_seconds": 0.4}
WORDS = "{words: $steps.think.words}"


def batched(step: str = "think", *, extra: str = "", **changes: Any) -> str:
    """A model step through a batch API, as YAML."""
    return think(step, **changes) + "  batch: true\n" + extra


def config(pin: str, **pace: float) -> dict[str, Any]:
    """Settings for one model, at a quick pace."""
    return {"models": {"default": pin}, "batch": {**PACE, **pace}, "worker": {"concurrency": 40, "lease_seconds": 1}}
