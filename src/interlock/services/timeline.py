"""When steps were worked on and what they used, from the journal: by the database's clock, and complete after a crash.

Spans are kept by the host that did the work: its clock may be off, and those of the last moments are lost with a killed
process. So wherever the journal has an attempt, its times come from there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypedDict

from interlock.base.json import Json, JsonObject
from interlock.base.usage import Usage, cost_json
from interlock.machine import events as ev
from interlock.machine.names import path_of
from interlock.store.database import Row
from interlock.telemetry import names

_NANO = 10**9
_Outcome = ev.StepSucceeded | ev.StepFailed | ev.StepDeferred | ev.CompensationSucceeded | ev.CompensationFailed
_Key = tuple[str, str, int]
"""Name of the span, instance, attempt."""


class TimedSpan(TypedDict):
    """A span of a run; times in nanoseconds since the epoch."""

    span_id: str
    parent_id: str | None
    name: str
    start_ns: int
    end_ns: int
    ok: bool
    attributes: JsonObject


@dataclass(frozen=True, slots=True)
class StepTimes:
    """One instance of a step.

    Attributes:
        began, ended: of the last attempt on record, seconds since the epoch.
        usage: of all its attempts; None if none of them asked a model.
    """

    began: float
    ended: float
    usage: Usage | None

    def to_json(self) -> dict[str, Json]:
        return {
            "began_at": datetime.fromtimestamp(self.began, UTC).isoformat(),
            "seconds": round(self.ended - self.began, 6),
            "usage": usage_json(self.usage),
        }


def usage_json(usage: Usage | None) -> dict[str, str | int | None] | None:
    """A usage as views show it: counts, and cost as decimal strings of USD."""
    if usage is None:
        return None
    counts = {name: value for name, value in usage.to_json().items() if name not in {"known_cost", "unpriced"}}
    return {**counts, **cost_json(usage.known_cost, usage.unpriced)}


def step_times(events: Iterable[ev.Event]) -> dict[str, StepTimes]:
    """Instances with an attempt on record."""
    found: dict[str, StepTimes] = {}
    for event in events:
        if not isinstance(event, ev.StepSucceeded | ev.StepFailed | ev.StepDeferred):
            continue
        usage = found[event.step].usage if event.step in found else None
        new = event.usage if not isinstance(event, ev.StepDeferred) else None
        total = new if usage is None else usage + new if new is not None else usage
        found[event.step] = StepTimes(event.began, event.at, total)
    return found


def timed_spans(spans: list[Row], events: Iterable[ev.Event], root: str) -> list[TimedSpan]:
    """A run's spans in order of their start, those of attempts at the times of the journal.

    What lies within an attempt's span is moved with it. An attempt whose span was lost gets one, without the parts inside.

    Args:
        spans: as kept; times in nanoseconds since the epoch.
        events: the run's journal.
        root: id of the run's own span.
    """
    timed = [_kept(span) for span in spans]
    inside: dict[str | None, list[TimedSpan]] = defaultdict(list)
    candidates: dict[_Key, list[TimedSpan]] = defaultdict(list)
    for span in timed:
        inside[span["parent_id"]].append(span)
        candidates[_key(span)].append(span)
    for number, event in enumerate(events, start=1):
        if not isinstance(event, _Outcome):
            continue
        same = candidates[_name(event), event.step, event.attempt]
        start, end = round(event.began * _NANO), round(event.at * _NANO)
        if same:  # of several the nearest: one attempt may have been deferred, or lost in a crash and done again
            span = min(same, key=lambda one: abs(one["start_ns"] - start))
            same.remove(span)
            _move(inside, span, start - span["start_ns"])
            span["end_ns"] = max(end, start)
        else:
            timed.append(_span_of(event, f"journal-{number}", root, start, max(end, start)))
    return sorted(timed, key=lambda span: (span["start_ns"], span["span_id"]))


def _kept(row: Row) -> TimedSpan:
    return {
        "span_id": row["span_id"],
        "parent_id": row["parent_id"],
        "name": row["name"],
        "start_ns": row["start_ns"],
        "end_ns": row["end_ns"],
        "ok": row["ok"],
        "attributes": row["attributes"],
    }


def _key(span: TimedSpan) -> _Key:
    attributes = span["attributes"]
    attempt = attributes.get(names.STEP_ATTEMPT)
    return (span["name"], str(attributes.get(names.STEP_ID)), attempt if isinstance(attempt, int) else 0)


def _name(event: _Outcome) -> str:
    undoing = isinstance(event, ev.CompensationSucceeded | ev.CompensationFailed)
    return f"{names.COMPENSATION if undoing else names.STEP} {path_of(event.step)}"


def _move(inside: Mapping[str | None, list[TimedSpan]], span: TimedSpan, by: int) -> None:
    """Moves a span and all that lies within it by some nanoseconds."""
    left, seen = [span], set[str]()
    while left:
        one = left.pop()
        if one["span_id"] in seen:
            continue
        seen.add(one["span_id"])
        one["start_ns"] += by
        one["end_ns"] += by
        left += inside.get(one["span_id"], [])


def _span_of(event: _Outcome, span_id: str, parent_id: str, start: int, end: int) -> TimedSpan:
    failure = event.failure if isinstance(event, ev.StepFailed | ev.CompensationFailed) else None
    attributes: dict[str, str | int] = {names.STEP_ID: event.step, names.STEP_ATTEMPT: event.attempt}
    if failure is not None:
        attributes[names.ERROR_TYPE] = failure.code
    return {
        "span_id": span_id,
        "parent_id": parent_id,
        "name": _name(event),
        "start_ns": start,
        "end_ns": end,
        "ok": failure is None,
        "attributes": attributes,
    }
