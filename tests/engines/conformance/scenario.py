"""Scenarios: read from `scenarios/*.yaml`, told as events, and journals put into a form that can be compared."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from interlock.base.errors import FailureKind
from interlock.base.refs import Ref
from interlock.base.usage import Usage
from interlock.machine import events as ev
from interlock.machine.events import Failure

DIRECTORY = Path(__file__).with_name("scenarios")

OUTCOMES = {"succeed", "fail", "defer", "lacks", "undone", "undo_fails"}
"""Verbs that answer work under way."""

TOLD = {"approve", "reject", "signal", "cancel", "pause", "resume", "requeue", "discard", "again"}
"""Verbs that tell the run something from outside."""

TOLD_TYPES = {
    *("review_decided", "signal_received", "cancel_requested", "pause_requested", "resume_requested"),
    *("dead_letter_requeued", "dead_letter_discarded"),
}
"""Types of the events that tell the run something from outside."""

VERBS = OUTCOMES | TOLD | {"timer", "expect"}
_FIELDS = {"name", "about", "workflow", "workflows", "given", "before", "script", "journal", "status", "reason"}
_FIELDS |= {"reviews", "dead_letters", "effects", "output"}
_ENDINGS = {"succeeded", "partial", "failed", "cancelled", "dead"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a script: what happens next.

    Attributes:
        target: of what it is said: a step, a signal's name, a timer's key.
        options: the rest of the line.
        ignored: the machine takes no notice of it, so it is in no journal.
    """

    verb: str
    target: Any
    options: dict[str, Any]
    ignored: bool = False

    @classmethod
    def read(cls, data: dict[str, Any]) -> Entry:
        verbs = VERBS & data.keys()
        assert len(verbs) == 1, f"a line of a script has one verb of {sorted(VERBS)}: {data}"
        (verb,) = verbs
        options = {name: value for name, value in data.items() if name != verb}
        return cls(verb, data[verb], options, options.pop("ignored", False))

    def __str__(self) -> str:
        return f"{self.verb} {self.target}"


@dataclass(frozen=True, slots=True)
class Scenario:
    """A program, what the world does, and what is to come of it; `README.md` says what each field means."""

    topic: str
    name: str
    about: str
    workflow: dict[str, Any]
    script: list[Entry]
    journal: list[str]
    status: str
    before: list[Entry] = field(default_factory=list)
    workflows: dict[str, Any] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None
    reviews: list[str] = field(default_factory=list)
    dead_letters: list[str] = field(default_factory=list)
    effects: dict[str, str] | None = None
    output: dict[str, Any] | None = None

    @property
    def id(self) -> str:
        return f"{self.topic}-{self.name}"

    @property
    def workflow_name(self) -> str:
        return f"{self.topic}_{self.name}"


@dataclass(slots=True)
class Record:
    """What an engine made of a scenario.

    Attributes:
        events: the journal, normalised.
        works: what was performed and compensated, sorted: an engine that does work twice, or some other, is found out.
        reviews, dead_letters: rows that people see: `step purpose status`.
        effects: step → status, of an engine that has a ledger; `output` likewise.
    """

    events: list[dict[str, Any]]
    status: str
    reason: str | None
    works: list[str]
    reviews: list[str]
    dead_letters: list[str]
    effects: dict[str, str] | None = None
    output: dict[str, Any] | None = None

    @property
    def journal(self) -> list[str]:
        return [line(event) for event in self.events]


def read_scenarios() -> list[Scenario]:
    """All of them, by file and place in it."""
    files = sorted(DIRECTORY.glob("*.yaml"))
    return [_scenario(path.stem, data) for path in files for data in YAML(typ="safe").load(path)]


def _scenario(topic: str, data: dict[str, Any]) -> Scenario:
    place = f"{topic}: {data.get('name')}"
    assert not data.keys() - _FIELDS, f"{place}: unknown {sorted(data.keys() - _FIELDS)}"
    assert data["status"] in _ENDINGS, f"{place}: a scenario ends with its run, so status is one of {sorted(_ENDINGS)}"
    scripts = {name: [Entry.read(one) for one in data.get(name, [])] for name in ("before", "script")}
    return Scenario(topic=topic, **{**data, **scripts})


# -- events --------------------------------------------------------------------------------------------------------


def outcome_event(
    entry: Entry, attempt: int, began: float, now: float, output: Ref, act: tuple[str, str] = ("", "")
) -> Any:
    """The event of a line that answers work.

    Args:
        output: the result, or the arguments of an act that lacks an approval.
        act: digest and policy of that act.
    """
    step, options, times = str(entry.target), entry.options, (began, now)
    usage = Usage(**options["usage"]) if "usage" in options else None
    match entry.verb:
        case "succeed":
            facts, calls = options.get("facts", {}), tuple(options.get("calls", ()))
            return ev.StepSucceeded(step, attempt, *times, output, facts, usage, calls)
        case "fail":
            return ev.StepFailed(step, attempt, *times, _failure(options), usage)
        case "defer":
            return ev.StepDeferred(step, attempt, *times, options.get("delay", 0.02))
        case "lacks":
            return ev.ApprovalNeeded(step, attempt, *times, act[0], output, act[1])
        case "undone":
            return ev.CompensationSucceeded(step, attempt, *times)
        case _:
            return ev.CompensationFailed(step, attempt, *times, _failure(options))


def _failure(options: dict[str, Any]) -> Failure:
    return Failure(
        FailureKind(options.get("kind", "transient")),
        options.get("code", "broken"),
        "it broke",
        options.get("retry_after"),
        options.get("ambiguous", False),
    )


def told_event(entry: Entry, now: float, seal: Callable[[Any], Ref], digest: str = "") -> Any:
    """The event of a line that tells the run something; `digest` is of the act that a person decides about."""
    target, options = entry.target, entry.options
    match entry.verb:
        case "approve" | "reject":
            facts = options.get("facts", {})
            approved = entry.verb == "approve"
            return ev.ReviewDecided(str(target), now, approved, seal(options.get("value")), facts, digest)
        case "signal":
            facts = options.get("facts", {})
            return ev.SignalReceived(str(target), options["id"], now, seal({"signal": target, **facts}), facts)
        case "cancel":
            return ev.CancelRequested(now, str(target))
        case "pause":
            return ev.PauseRequested(now, str(target))
        case "resume":
            return ev.ResumeRequested(now)
        case "requeue":
            edited = options.get("input")
            return ev.DeadLetterRequeued(str(target), now, seal(edited) if edited is not None else None)
        case _:
            return ev.DeadLetterDiscarded(str(target), now)


# -- journals ------------------------------------------------------------------------------------------------------


def normalised(event: dict[str, Any]) -> dict[str, Any]:
    """An event of the journal without what differs from run to run: times, the seed, digests and sizes.

    Of `began` it stays whether there is a moment at all, and whether it is before the outcome's; usage stays as it is.
    """
    kept = {name: value for name, value in event.items() if name not in {"at", "seed", "digest", "policy"}}
    if "began" in kept:
        kept["began"] = 0 < kept["began"] <= event["at"]
    for name in ("output", "payload", "input", "request"):
        if name in kept and kept[name] is not None:
            kept[name] = "ref"
    return kept


def line(event: dict[str, Any]) -> str:
    """An event in short: its type, what it is about, and what matters of it."""
    return " ".join(str(word) for word in (event["type"], *_words(event)) if word != "")


def _words(event: dict[str, Any]) -> Iterator[Any]:
    match event["type"]:
        case "review_decided":
            yield from (event["step"], "yes" if event["approved"] else "no")
        case "timer_fired":
            yield event["timer"]
        case "cancel_requested" | "pause_requested":
            yield event["reason"]
        case "signal_received":
            yield from (event["name"], event["signal_id"])
        case "dead_letter_requeued":
            yield from (event["step"], "edited" if event["input"] else "")
        case "dead_letter_discarded":
            yield event["step"]
        case "run_started" | "resume_requested":
            pass
        case _:
            yield from (event["step"], event["attempt"])
    if failure := event.get("failure"):
        yield from (failure["kind"], "" if failure["code"] == "broken" else failure["code"])
        yield "ambiguous" if failure["ambiguous"] else ""
    for name, value in sorted(event.get("facts", {}).items()):
        yield f"{name}={json.dumps(value)}"
    if event.get("calls"):
        yield "calls=" + ",".join(event["calls"])
