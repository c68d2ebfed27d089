"""What the oracle stands on: green threads, the regions that may fail by themselves, and who sees whose facts."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

Wait = tuple[str, str, int]
"""(what, instance, attempt); `oracle.Oracle.waiting` says which there are."""


@dataclass(frozen=True)
class Answer:
    """What the world answers to one wait.

    Attributes:
        ok: it worked; for reviews: approved; for letters: requeued.
        kind: of a failure; "deferred" if nothing was tried, "unapproved" if a person has to approve it first.
        ambiguous: the effect may have happened all the same.
        facts: of the result.
        calls: of an agent's turn, the tools it wants.
    """

    ok: bool = True
    kind: str = ""
    ambiguous: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    calls: tuple[str, ...] = ()


class Over(Exception):
    """This thread has nothing more to do: the run, or something around it, is ending."""


DROPPED = Answer(ok=False, kind="dropped")
EXPIRED = Answer(ok=False, kind="expired")
TIMER = Answer(kind="timer")
Thread = Generator[Any, Answer, Any]
IDLE = {
    "retry",
    "defer",
    "paused",
    "approve",
    "approve_act",
    "review_limit",
    "agent_limit",
    "wait",
    "signal",
    "dead_letter",
    "deadline",
}


class Region:
    """Something that may fail without the run failing. `failure` is why it did; `alive` while a thread is in it."""

    def __init__(self, name: str, around: Region | None) -> None:
        self.name, self.around = name, around
        self.failed, self.alive = False, True
        self.thread: Thread | None = None

    def chain(self) -> Iterator[Region]:
        region: Region | None = self
        while region is not None:
            yield region
            region = region.around

    def inside(self, other: Region) -> bool:
        return other in self.chain()


@dataclass(eq=False)
class Fork:
    """Yielded by a thread that waits for others: (thread, region) pairs, at most `width` at once."""

    children: Iterator[tuple[Thread, Region]]
    width: int = 1 << 30
    running: int = 0
    parent: Thread | None = None


class Home:
    """One use of a workflow: the facts of its input, and the bodies that each of its steps stands in."""

    def __init__(self, facts: dict[str, Any], steps: list[Any]) -> None:
        self.facts = facts
        self.bodies: dict[str, tuple[str, ...]] = {}
        self._note(steps, ())

    def _note(self, steps: list[Any], bodies: tuple[str, ...]) -> None:
        for step in steps:
            self.bodies[step["id"]] = bodies
            if step["kind"] in {"map", "loop"}:
                self._note(step["steps"], (*bodies, step["id"]))
            for part in parts(step):
                self._note(part, bodies)


class Frame:
    """One item or round; the workflow itself is the outermost. Steps in it have their facts here."""

    def __init__(self, home: Home, up: Frame | None = None, body: str = "") -> None:
        self.home, self.up, self.body = home, up, body
        self.facts: dict[str, dict[str, Any]] = {}
        self.last: dict[str, Frame] = {}

    def open(self, body: str) -> Frame:
        self.last[body] = Frame(self.home, self, body)
        return self.last[body]

    def see(self, name: str) -> dict[str, Any]:
        """The facts that a condition here sees: of its own item or round, else of the last one."""
        if name == "input":
            return self.home.facts
        ours: list[Frame] = [self]
        while ours[0].up is not None:
            ours.insert(0, ours[0].up)
        found: Frame | None = ours.pop(0)
        for body in self.home.bodies[name]:
            if ours and ours[0].body == body:
                found = ours.pop(0)
            else:
                ours = []
                found = found.last.get(body) if found is not None else None
        return found.facts.get(name, {}) if found is not None else {}


@dataclass(frozen=True)
class Place:
    """Where a step is interpreted: what its name begins with, whose facts it sees, what fails with it."""

    space: str
    frame: Frame
    region: Region


def parts(step: dict[str, Any]) -> list[list[Any]]:
    """Branches and cases: steps inside that are named like their siblings."""
    return [
        *step.get("branches", {}).values(),
        *(case["steps"] for case in step.get("cases", [])),
        step.get("otherwise", []),
    ]
