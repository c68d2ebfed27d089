"""Hostile answers of models and tools among the faults: every effect once, and no text of theirs in the clear."""

from __future__ import annotations

import pytest

from chaos.conftest import Run, clean, struck
from interlock.chaos import evidence

HOSTILE = ("misled", "garbled")


async def test_hostile_answers_lose_nothing_and_are_kept_encrypted(drill: Run) -> None:
    report = await struck(drill, runs=20, seconds=6, faults=("kill",), kinds=HOSTILE)
    clean(report)
    assert report.resolved["person"] >= 1, "a mutating tool whose answer cannot be kept leaves a question"


async def test_the_search_finds_what_is_kept_in_the_clear(drill: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the beginning of the ids of runs, which rows and logs have."""
    monkeypatch.setattr(evidence, "CANARY", "run_0")
    report = await drill(runs=2, seconds=2, faults=("kill",), kinds=HOSTILE)
    found = [one for one in report.violations if "in the clear" in one]
    assert any("table journal" in one for one in found)
    assert any("log worker1" in one for one in found)
    assert report.exit_code != 0
