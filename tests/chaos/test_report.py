"""The verdict: whatever the counter shows that must not be is a violation, and a run without faults proves nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from interlock.chaos.project import KINDS
from interlock.chaos.report import (
    OK,
    TOO_FEW,
    VIOLATED,
    ChaosReport,
    FaultOutcome,
    judge,
    percentile,
    resolved_of,
    unmatched,
)

GOOD = ChaosReport(
    runs_started=1,
    runs_finished=1,
    seconds=1.0,
    strikes={"kill": 1},
    hits={"kill": 1},
    boundaries={},
    duplicate_effects=0,
    lost_effects=0,
    effects=1,
    reversals=0,
    resolved={},
    recoveries=1,
    recovery_p50=1.0,
    recovery_p99=1.0,
    longest_stall=1.0,
    audit_entries=1,
    objects=1,
    violations=[],
    missing=[],
    spared=[],
    skipped={},
)


def outcome(kind: str, **changes: Any) -> FaultOutcome:
    status = "succeeded" if KINDS[kind].reject is None else "compensated"
    ledger = dict.fromkeys(KINDS[kind].items, status)
    given = FaultOutcome("run_1", kind, "o-1", KINDS[kind].end, ledger, [{"type": "run_started"}])
    return replace(given, **changes)


def book(*effects: str, reversals: tuple[int, ...] = ()) -> dict[str, list[dict[str, Any]]]:
    return {
        "effects": [{"effect": number, "business": name} for number, name in enumerate(effects, 1)],
        "reversals": [{"effect": number} for number in reversals],
        "requests": [],
    }


def test_objects_and_rows_must_match() -> None:
    assert unmatched({"a", "b"}, {"a", "b"}) == []
    leaked, missing = unmatched({"a", "b"}, {"b", "c"})
    assert leaked == "1 objects are referred to by no row, such as a"
    assert missing == "1 objects are missing that rows refer to, such as c"


def test_nothing_wrong() -> None:
    assert judge([outcome("keyed")], book("o-1/pay")).violations == []
    undone = judge([outcome("undone")], book("o-1/one", "o-1/two", reversals=(2, 1)))
    assert (undone.violations, undone.duplicates, undone.lost) == ([], 0, 0)
    forward = judge([outcome("undone")], book("o-1/one", "o-1/two", reversals=(1, 2)))
    assert "reversed in the order o-1/one, o-1/two" in forward.violations[0]


@pytest.mark.parametrize(
    ("kind", "seen", "duplicates", "lost", "says"),
    [
        ("keyed", book("o-1/pay", "o-1/pay"), 1, 0, "happened 2 times"),
        ("keyed", book(), 0, 1, "never happened"),
        ("keyed", book("o-1/pay", "o-2/pay"), 1, 0, "belongs to no run"),
        ("keyed", book("o-1/pay", reversals=(1,)), 1, 0, "reversed 1 times, not 0"),
        ("undone", book("o-1/one", "o-1/two", reversals=(1,)), 0, 1, "reversed 0 times, not 1"),
        ("undone", book("o-1/one", "o-1/two", reversals=(1, 2, 2)), 1, 0, "reversed 2 times, not 1"),
    ],
)
def test_what_the_counter_must_not_show(kind: str, seen: Any, duplicates: int, lost: int, says: str) -> None:
    verdict = judge([outcome(kind)], seen)
    assert (verdict.duplicates, verdict.lost) == (duplicates, lost)
    assert says in verdict.violations[0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"status": "running"}, "is running, not succeeded"),
        ({"gaps": True}, "a number is missing"),
        ({"journal": []}, "it started 0 times"),
        ({"journal": [{"type": "run_started"}] * 2}, "it started 2 times"),
        ({"ledger": {"pay": "executing"}}, "still says"),
        ({"ledger": {}}, "its ledger does not say that pay succeeded"),
        ({"ledger": {"pay": "failed"}}, "its ledger does not say that pay succeeded"),
        (
            {"journal": [{"type": "run_started"}, *[{"type": "step_failed", "step": "pay", "attempt": 1}] * 2]},
            "an attempt ended twice",
        ),
        (
            {
                "journal": [
                    {"type": "run_started"},
                    {"type": "step_succeeded", "step": "pay", "attempt": 1},
                    {"type": "step_succeeded", "step": "pay", "attempt": 2},
                ]
            },
            "pay: step_succeeded 2 times",
        ),
    ],
)
def test_what_the_record_must_not_say(changes: dict[str, Any], says: str) -> None:
    (violation,) = judge([outcome("keyed", **changes)], book("o-1/pay")).violations
    assert says in violation


def test_exit_codes() -> None:
    assert GOOD.exit_code == OK == 0
    assert replace(GOOD, violations=["effect o-1/pay happened 2 times"], missing=["kill"]).exit_code == VIOLATED != 0
    assert replace(GOOD, missing=["kill"]).exit_code == TOO_FEW != 0
    assert replace(GOOD, missing=["kill"]).to_json()["ok"] is False


def test_how_doubt_was_resolved() -> None:
    seen = {
        "requests": [
            {"method": "POST", "path": "/honours/effects", "key": "a", "struck": "drop"},
            {"method": "POST", "path": "/honours/effects", "key": "a", "struck": None},
            {"method": "POST", "path": "/honours/effects", "key": "b", "struck": None},
            {"method": "GET", "path": "/effects?key=c", "key": None, "struck": "refuse"},
            {"method": "GET", "path": "/effects?key=c", "key": None, "struck": None},
        ]
    }
    assert resolved_of(seen, 4) == {"key": 1, "probe": 1, "person": 4}


def test_percentiles_are_nearest_rank() -> None:
    assert percentile([], 0.99) == 0
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([float(number) for number in range(1, 101)], 0.99) == 99.0
