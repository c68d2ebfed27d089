"""Properties of a program that follow from its structure."""

from __future__ import annotations

from typing import Any

import pytest

from .programs import ANYTHING, Scenario

LOOK: dict[str, Any] = {"kind": "tool", "tool": "look"}
ASK: dict[str, Any] = {"kind": "model", "prompt": "p", "output": ANYTHING}
AGENT: dict[str, Any] = {"kind": "agent", "prompt": "p", "tools": ["look"], "output": ANYTHING}
FALLS_BACK: dict[str, Any] = {**ASK, "fallback": [{"value": {}}]}


def numbered(*kinds: dict[str, Any], prefix: str = "s") -> list[dict[str, Any]]:
    return [{"id": f"{prefix}{number}", **kind} for number, kind in enumerate(kinds)]


def parallel(*branches: list[dict[str, Any]]) -> dict[str, Any]:
    return {"kind": "parallel", "branches": {f"b{number}": branch for number, branch in enumerate(branches)}}


def mapped(*kinds: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "map", "items": "$input.items", "steps": numbered(*kinds, prefix="m")}


def concurrent(*kinds: dict[str, Any]) -> bool:
    inner = {"name": "inner", "input": ANYTHING, "allow": ["look"], "steps": numbered(AGENT)}
    workflow = {"name": "w", "input": ANYTHING, "allow": ["look"], "steps": numbered(*kinds)}
    return Scenario(workflow, {"inner": inner}).program().concurrent


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (ASK, False),
        (AGENT, False),
        (mapped(LOOK), False),
        (mapped(LOOK, ASK), True),
        (mapped({"kind": "subworkflow", "workflow": "inner", "input": {}}), True),
        (mapped(parallel([{"id": "p", **LOOK}], [{"id": "q", **FALLS_BACK}])), True),
        (parallel([{"id": "p", **LOOK}], [{"id": "q", **LOOK}]), False),
        (parallel([{"id": "p", **LOOK}], [{"id": "q", **ASK}, {"id": "r", **ASK}]), False),
        (parallel([{"id": "p", **ASK}], [{"id": "q", **AGENT}]), True),
        (parallel([{"id": "p", **ASK}], [{"id": "q", **mapped(LOOK)}]), False),
        (parallel([{"id": "p", **ASK}], [{"id": "q", "kind": "subworkflow", "workflow": "inner", "input": {}}]), True),
    ],
)
def test_model_calls_that_may_overlap(kind: dict[str, Any], expected: bool) -> None:
    """Only those need reservations that other workers see."""
    assert concurrent(ASK, kind, ASK) is expected
