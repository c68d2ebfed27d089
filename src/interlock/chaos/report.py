"""Verdict of a chaos run: the counter's records against the expectations, and the consistency of journal and ledger."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import NotRequired, TypedDict

from rich.table import Table

from interlock.chaos.counter import Records
from interlock.chaos.faults import Strike
from interlock.chaos.project import KINDS

OK, VIOLATED, TOO_FEW = 0, 9, 7  # exit codes: integrity and step_failed, as in base/errors.py


_HIT = {"provider": "requests", "tool": "requests", "timeout": "requests", "signals": "signals"}  # all others: runs


class JournalLine(TypedDict):
    """The fields of a journal's event that are checked."""

    type: str
    step: NotRequired[str]
    attempt: NotRequired[int]


@dataclass(slots=True)
class FaultOutcome:
    """One run: its kind, and the final status of the run and its effects.

    Attributes:
        ledger: status of every row of the effect ledger, by step.
        journal: its events in order.
        gaps: True if a number is missing in its journal.
    """

    run_id: str
    kind: str
    order: str
    status: str
    ledger: dict[str, str] = field(default_factory=dict)
    journal: list[JournalLine] = field(default_factory=list)
    gaps: bool = False


@dataclass(slots=True)
class ChaosReport:
    """Report of `interlock chaos`.

    Attributes:
        strikes: by fault: how often it hit work in progress.
        hits: by fault: number of runs whose worker it hit, or of requests.
        recovery_p50: seconds from the last fault that hit a run's worker to that run's next journal entry.
        resolved: unknown outcomes that were resolved: by a repeated `key`, by `probe`, by a `person`.
        objects: files of large values, each referred to by a row.
        violations: one sentence each; must be empty.
        missing: requested faults with too few hits.
        spared: boundaries at which no worker was killed; a longer run covers more of them.
        skipped: faults that are not possible here, with the reason.
    """

    runs_started: int
    runs_finished: int
    seconds: float
    strikes: dict[str, int]
    hits: dict[str, int]
    boundaries: dict[str, int]
    duplicate_effects: int
    lost_effects: int
    effects: int
    reversals: int
    resolved: dict[str, int]
    recoveries: int
    recovery_p50: float
    recovery_p99: float
    longest_stall: float
    audit_entries: int
    objects: int
    violations: list[str]
    missing: list[str]
    spared: list[str]
    skipped: dict[str, str]

    @property
    def exit_code(self) -> int:
        """0 if there is no violation and every fault had enough hits."""
        if self.violations:
            return VIOLATED
        return TOO_FEW if self.missing else OK

    def to_json(self) -> dict[str, object]:
        return {"ok": self.exit_code == OK, "exit_code": self.exit_code, **asdict(self)}

    def table(self) -> Table:
        """Table for a terminal."""
        table = Table("", "", box=None, pad_edge=False, show_header=False)
        table.add_row("runs", f"{self.runs_finished} of {self.runs_started} finished in {self.seconds:.0f} s")
        for fault, count in self.strikes.items():
            table.add_row(f"fault {fault}", f"struck {count} times, hit {self.hits[fault]} {_HIT.get(fault, 'runs')}")
        for fault, reason in self.skipped.items():
            table.add_row(f"fault {fault}", f"skipped: {reason}")
        if self.boundaries:
            met = ", ".join(f"{name} {count}" for name, count in sorted(self.boundaries.items()))
            table.add_row("boundaries", met)
        if self.spared:
            table.add_row("never killed at", ", ".join(self.spared))
        table.add_row("effects", f"{self.effects} at the counter, {self.reversals} reversed")
        table.add_row("duplicate effects", str(self.duplicate_effects))
        table.add_row("lost effects", str(self.lost_effects))
        resolved = ", ".join(f"{count} by {name}" for name, count in self.resolved.items())
        table.add_row("unknown outcomes resolved", resolved)
        table.add_row(
            "recovery",
            f"p50 {self.recovery_p50:.1f} s, p99 {self.recovery_p99:.1f} s after a fault ({self.recoveries} measured)",
        )
        table.add_row("longest stall", f"{self.longest_stall:.1f} s")
        table.add_row("audit", f"{self.audit_entries} entries verified")
        table.add_row("large values", f"{self.objects} objects, each referred to by a row")
        for violation in self.violations:
            table.add_row("VIOLATION", violation)
        for fault in self.missing:
            table.add_row("TOO FEW", f"fault {fault} struck {self.strikes.get(fault, 0)} times: this run proves little")
        return table


@dataclass(slots=True)
class ChaosVerdict:
    """Result of the comparison of the runs with the counter."""

    duplicates: int = 0
    lost: int = 0
    violations: list[str] = field(default_factory=list)


def judge(outcomes: list[FaultOutcome], book: Records) -> ChaosVerdict:
    """Compares every run with the expectations of its kind and with the counter's book."""
    verdict = ChaosVerdict()
    business = {effect["effect"]: effect["business"] for effect in book["effects"]}
    done = Counter(business.values())
    compensated = Counter(business[reversal["effect"]] for reversal in book["reversals"])
    expected: set[str] = set()
    for outcome in outcomes:
        kind = KINDS[outcome.kind]
        if outcome.status != kind.end:
            verdict.violations.append(f"{outcome.run_id} ({outcome.kind}) is {outcome.status}, not {kind.end}")
        for item in kind.items:
            name = f"{outcome.order}/{item}"
            expected.add(name)
            _judge_item(verdict, name, done[name], compensated[name], reversed_=kind.reject is not None)
        if kind.reject is not None:
            verdict.violations += _order(outcome, book, business)
        verdict.violations += _story(outcome)
    for name in sorted(done.keys() - expected):
        verdict.duplicates += done[name]
        verdict.violations.append(f"effect {name} belongs to no run")
    return verdict


def unmatched(files: set[str], referenced: set[str]) -> list[str]:
    """Compares the objects of large values with the rows that refer to them."""
    problems = []
    for names, sentence in (
        (files - referenced, "objects are referred to by no row"),
        (referenced - files, "objects are missing that rows refer to"),
    ):
        if names:
            problems.append(f"{len(names)} {sentence}, such as {min(names)}")
    return problems


def _judge_item(verdict: ChaosVerdict, name: str, done: int, compensated: int, *, reversed_: bool) -> None:
    if done > 1:
        verdict.duplicates += done - 1
        verdict.violations.append(f"effect {name} happened {done} times")
    if done < 1:
        verdict.lost += 1
        verdict.violations.append(f"effect {name} never happened")
    wanted = done if reversed_ else 0
    if compensated > wanted:
        verdict.duplicates += compensated - wanted
        verdict.violations.append(f"effect {name} was reversed {compensated} times, not {wanted}")
    if compensated < wanted:
        verdict.lost += wanted - compensated
        verdict.violations.append(f"effect {name} was reversed {compensated} times, not {wanted}")


def _order(outcome: FaultOutcome, book: Records, business: dict[int, str]) -> list[str]:
    """Checks that effects were compensated in reverse order, by the counter's numbers."""
    mine = {number for number, name in business.items() if name.startswith(f"{outcome.order}/")}
    done = sorted(mine)
    compensated = [one["effect"] for one in book["reversals"] if one["effect"] in mine]
    if len(set(compensated)) == len(compensated) == len(done) and compensated != done[::-1]:
        names = ", ".join(business[number] for number in compensated)
        return [f"{outcome.run_id} ({outcome.kind}): reversed in the order {names}"]
    return []


def _story(outcome: FaultOutcome) -> list[str]:
    """Checks a journal by separate rules: no gap, one start, no attempt that ends twice, no step completed twice."""
    problems = []
    if outcome.gaps:
        problems.append("a number is missing in its journal")
    kinds = Counter(event["type"] for event in outcome.journal)
    if kinds["run_started"] != 1:
        problems.append(f"it started {kinds['run_started']} times")
    ends = Counter(
        (event["step"], event["attempt"], event["type"].startswith("comp"))
        for event in outcome.journal
        if event["type"].startswith(("step_", "comp"))
    )
    if any(count > 1 for count in ends.values()):
        problems.append("an attempt ended twice")
    for kind in ("step_succeeded", "compensation_succeeded"):
        steps = Counter(event["step"] for event in outcome.journal if event["type"] == kind)
        problems += [f"{step}: {kind} {count} times" for step, count in steps.items() if count > 1]
    open_ = {step: status for step, status in outcome.ledger.items() if status in {"intended", "executing", "unknown"}}
    promised = KINDS[outcome.kind]
    if outcome.status == promised.end:
        if open_:
            problems.append(f"it has ended and its ledger still says {open_}")
        wanted = "succeeded" if promised.reject is None else "compensated"
        wrong = [item for item in promised.items if outcome.ledger.get(item) not in {wanted, *open_.values()}]
        if wrong:
            problems.append(f"it has ended and its ledger does not say that {', '.join(wrong)} {wanted}")
    return [f"{outcome.run_id} ({outcome.kind}): {problem}" for problem in problems]


def resolved_of(book: Records, confirmed: int) -> dict[str, int]:
    """How unknown outcomes were resolved; keys and probes as recorded by the counter."""
    work = [one for one in book["requests"] if one["method"] == "POST" and one["path"].endswith("/effects")]
    honoured = Counter(one["key"] for one in work if one["path"].startswith("/honours/"))
    probes = [one for one in book["requests"] if one["method"] == "GET" and one["struck"] is None]
    return {
        "key": sum(count > 1 for count in honoured.values()),
        "probe": len({one["path"] for one in probes}),
        "person": confirmed,
    }


def percentile(values: list[float], share: float) -> float:
    """Percentile by nearest rank; 0 for no values."""
    if not values:
        return 0.0
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def counts_of(strikes: list[Strike], faults: list[str]) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """(strikes by fault, hits by fault, strikes by boundary)."""
    count = Counter(strike.fault for strike in strikes)
    hits: Counter[str] = Counter()
    for strike in strikes:
        hits[strike.fault] += strike.hits
    boundaries = Counter(f"{one.fault} {one.detail}" for one in strikes if one.fault in {"kill", "stop", "drain"})
    return {fault: count[fault] for fault in faults}, {fault: hits[fault] for fault in faults}, dict(boundaries)
