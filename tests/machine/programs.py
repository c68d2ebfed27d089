"""Random programs and what the world will say to them."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from interlock.machine.program import Program, compile_program
from interlock.workflows.contracts import ToolContract
from interlock.workflows.spec import Workflow

from .oracle import Answer, Oracle

ANYTHING: dict[str, Any] = {"type": "object"}
CONTRACTS = {
    "look": ToolContract(name="look", description="", effect="pure", input=ANYTHING, output=ANYTHING),
    "send": ToolContract(name="send", description="", effect="mutating", input=ANYTHING, output=ANYTHING),
    "book": ToolContract(
        name="book", description="", effect="mutating", compensate=True, input=ANYTHING, output=ANYTHING
    ),
}
MUTATING = {"send", "book"}

# Conditions in CEL, each with its meaning in Python. A missing fact is a LookupError, as is what is not boolean.
CONDITIONS: dict[str, tuple[str, Callable[[dict[str, Any]], bool]]] = {
    "number": ("{0}.n >= 2", lambda facts: facts["n"] >= 2),
    "flag": ("{0}.flag", lambda facts: facts["flag"]),
    "guarded": ("has({0}.n) && {0}.n >= 2", lambda facts: facts.get("n", 0) >= 2),
    "approved": ("{0}.approved", lambda facts: facts["approved"]),
    "case": ("has({0}.case) && {0}.case == 0", lambda facts: facts.get("case") == 0),
    "met": ("has({0}.met) && {0}.met", lambda facts: facts.get("met", False)),
    "count": ("has({0}.failed) && {0}.failed >= 1", lambda facts: facts.get("failed", 0) >= 1),
    "always": ("true", lambda facts: True),
    "never": ("false", lambda facts: False),
    "not_boolean": ("{0}.n", lambda facts: {}["no boolean"]),
}


@dataclass
class Scenario:
    """A workflow, the answers the world has ready, and when somebody meddles.

    Attributes:
        outcomes: `key_of` a step → answers to its attempts in order; afterwards `defaults`, or success without facts.
        undos: likewise for its compensation.
        confirms: a person's answers to "did it happen?"; afterwards yes.
        approvals: a person's answers to "may it be called like this?"; afterwards yes.
        reviews: step → approved.
        dead_letters: step → whether a dead letter is requeued; afterwards it is discarded.
        cancel_after: events before a cancellation, if there is one.
        meddling: how often, in percent of events, somebody pauses, resumes or sends a signal unasked.
    """

    workflow: dict[str, Any]
    subworkflows: dict[str, dict[str, Any]] = field(default_factory=dict)
    outcomes: dict[str, list[Answer]] = field(default_factory=dict)
    defaults: dict[str, Answer] = field(default_factory=dict)
    undos: dict[str, list[Answer]] = field(default_factory=dict)
    confirms: dict[str, list[Answer]] = field(default_factory=dict)
    dead_letters: dict[str, list[Answer]] = field(default_factory=dict)
    approvals: dict[str, list[Answer]] = field(default_factory=dict)
    reviews: dict[str, bool] = field(default_factory=dict)
    conditions: dict[str, tuple[str, str]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    cancel_after: int | None = None
    meddling: int = 0

    def program(self) -> Program:
        known = {name: Workflow.model_validate(one) for name, one in self.subworkflows.items()}
        return compile_program(Workflow.model_validate(self.workflow), CONTRACTS, known)

    def oracle(self) -> Oracle:
        return Oracle(
            self.workflow, self.subworkflows, truth=self._truth, undoable={"book"}, mutating=MUTATING, facts=self.facts
        )

    def _truth(self, text: str, see: Callable[[str], dict[str, Any]]) -> bool:
        kind, step = self.conditions[text]
        return CONDITIONS[kind][1](see(step) if "{0}" in CONDITIONS[kind][0] else {})


def key_of(name: str) -> str:
    """What the world's answers to an instance are kept under: its id, with the agent's before `turn` and `call`."""
    ids = re.sub(r"#\d+", "", name).split("/")
    return "/".join(ids[-2:]) if ids[-1] in {"turn", "call"} else ids[-1]


_FLAT = [*["tool"] * 6, "model", "review", "wait"]
_KINDS = [*_FLAT, *["parallel", "branch", "map", "loop", "subworkflow", "agent"] * 2]
_FACTS = [{}, {"n": 1, "flag": False}, {"n": 3, "flag": True}, {"flag": True}]
_FAILURES = [
    *[Answer(ok=False, kind=kind) for kind in ("transient", "rate_limited", "deferred")] * 5,
    *[Answer(ok=False, kind=kind) for kind in ("permanent", "permanent", "denied", "invalid", "budget")],
]
_COMPENSATION_FAILURES = [
    Answer(ok=False, kind=kind) for kind in ("transient", "rate_limited", "transient", "permanent")
]
_UNAPPROVED = [Answer(ok=False, kind="unapproved")] * 4
_DOUBTS = [Answer(ok=False, kind=kind, ambiguous=True) for kind in ("transient", "rate_limited", "permanent", "budget")]
SIGNALS = ["go", "stop"]


class _Maker:
    """Makes a scenario out of choices; where the choices come from is the caller's affair."""

    def __init__(self, pick: Callable[[int], int]) -> None:
        self._pick = pick
        self._numbers = itertools.count()
        self._size = 0
        self._seen: list[str] = []  # ids of the workflow being made
        self.made = Scenario({})

    def choice(self, options: list[Any]) -> Any:
        return options[self._pick(len(options))]

    def one_in(self, number: int) -> bool:
        return self._pick(number) == number - 1

    def scenario(self) -> Scenario:
        made = self.made
        for name in ("child", "nested")[: self._pick(3)]:
            made.subworkflows[name] = {"name": name, "input": {}, "steps": self.steps(depth=2, least=1)}
            self._seen = []
        self._size = 0
        steps = self.steps(depth=0, least=1)
        budget = {"retries": self.choice([10, 10, 2, 1, 0])}
        made.facts = self.choice(_FACTS)
        made.workflow = {"name": "w", "input": {}, "steps": steps, "budget": budget}
        made.workflow["on_failure"] = self.choice(["compensate", "compensate", "hold"])
        if self.one_in(3):
            made.workflow["deadline"] = 600.0
        if self.one_in(4):
            made.cancel_after = self._pick(16)
        made.meddling = self.choice([0, 0, 10, 30])
        return made

    def steps(self, depth: int, least: int = 0) -> list[Any]:
        count = least + self._pick(5 if depth == 0 else 3)
        return [self.step(depth) for number in range(count) if self._size < 14 or number < least]

    def step(self, depth: int) -> dict[str, Any]:
        self._size += 1
        step: dict[str, Any] = {"id": f"s{next(self._numbers)}"}
        self._seen.append(step["id"])
        kinds = _KINDS if depth < 4 else _FLAT
        kind = step["kind"] = self.choice(kinds)
        if kind == "subworkflow" and not self.made.subworkflows:
            kind = step["kind"] = "tool"
        if self.one_in(4):
            step["on_failure"] = "continue"
        getattr(self, "_" + kind)(step, depth)
        return step

    # -- leaves ------------------------------------------------------------------------------------------------

    def _tool(self, step: dict[str, Any], depth: int) -> None:
        step["tool"] = self.choice(["look", "send", "book", "book"])
        fallbacks = [{"tool": "book"}, {"tool": "look"}, {"value": {}}, {"last_good": True, "max_age": 9}]
        self._work(step, fallbacks, mutating=step["tool"] in MUTATING)

    def _model(self, step: dict[str, Any], depth: int) -> None:
        step |= {"prompt": "p", "output": {"type": "object"}}
        self._work(step, [{"model": "other"}, {"value": {}}])

    def _work(self, step: dict[str, Any], fallbacks: list[Any], *, mutating: bool = False) -> None:
        step["retry"] = {"max_attempts": 1 + self._pick(4), "backoff": self.choice([0.5, 30.0]), "max_backoff": 40.0}
        step["fallback"] = [self.choice(fallbacks) for _ in range(self.choice([0, 0, 0, 1, 2]))]
        if self.one_in(4):
            step["deadline"] = self.choice([1.0, 40.0])
        self._script(step["id"], self._answers(mutating=mutating), self.choice(_FACTS))

    def _answers(self, *, mutating: bool) -> list[Answer]:
        failures = _FAILURES + _DOUBTS + _DOUBTS + _UNAPPROVED if mutating else _FAILURES
        return [self.choice(failures) for _ in range(self.choice([0, 0, 0, 0, 1, 1, 2, 4]))]

    def _script(self, key: str, answers: list[Answer], facts: dict[str, Any]) -> None:
        made = self.made
        made.outcomes[key] = [*answers, Answer(facts=facts)]
        made.undos[key] = [self.choice(_COMPENSATION_FAILURES) for _ in range(self.choice([0, 0, 0, 1, 1, 2, 3]))]
        made.confirms[key] = [Answer(ok=self._pick(2) == 0, facts=self.choice(_FACTS)) for _ in range(self._pick(3))]
        made.approvals[key] = [Answer(ok=self._pick(3) > 0) for _ in range(self._pick(3))]
        made.dead_letters[key] = [Answer(ok=self.one_in(2)) for _ in range(self._pick(3))]

    def _review(self, step: dict[str, Any], depth: int) -> None:
        step |= {"title": "?", "on_reject": self.choice(["fail", "continue"])}
        self.made.reviews[step["id"]] = self._pick(6) > 0
        if self.one_in(3):
            step["deadline"] = 20.0

    def _wait(self, step: dict[str, Any], depth: int) -> None:
        what = self.choice(["duration", "until", "signal", "signal"])
        if what == "duration":
            step["duration"] = 20.0
        elif what == "until":
            told = [f"$steps.{name}.n" for name in self._seen]
            step["until"] = self.choice(["1970-01-01T00:20:00Z", "1970-01-01T00:20:00", "$input.n", *told])
        else:
            step |= {"signal": self.choice(SIGNALS), "on_timeout": self.choice(["fail", "continue"])}
            if self.one_in(2):
                step["timeout"] = 20.0

    # -- containers --------------------------------------------------------------------------------------------

    def _parallel(self, step: dict[str, Any], depth: int) -> None:
        step["branches"] = {f"b{number}": self.steps(depth + 1) for number in range(1 + self._pick(3))}

    def _branch(self, step: dict[str, Any], depth: int) -> None:
        step["cases"] = [{"when": self._condition(), "steps": self.steps(depth + 1)} for _ in range(1 + self._pick(2))]
        step["otherwise"] = self.steps(depth + 1)

    def _map(self, step: dict[str, Any], depth: int) -> None:
        step |= {"items": "$input.items", "max_items": 3, "concurrency": 1 + self._pick(3)}
        step["on_item_failure"] = self.choice(["fail", "continue", "continue"])
        step["steps"] = self.steps(depth + 1, least=1)
        self._script(step["id"], self._failed_look_ups(), {"count": self._pick(4)})
        self.made.outcomes[step["id"]].append(self.choice([Answer(), Answer(facts={"count": 4})]))
        self.made.defaults[step["id"]] = Answer(facts={"count": 2})

    def _failed_look_ups(self) -> list[Answer]:
        failures = [Answer(ok=False, kind=kind) for kind in ("deferred", "permanent", "transient")]
        return [self.choice(failures)] if self.one_in(6) else []

    def _loop(self, step: dict[str, Any], depth: int) -> None:
        step |= {"max_iterations": 1 + self._pick(3), "on_limit": self.choice(["fail", "continue"])}
        step["steps"] = self.steps(depth + 1, least=1)
        step["until"] = self._condition()

    def _subworkflow(self, step: dict[str, Any], depth: int) -> None:
        step["workflow"] = self.choice(list(self.made.subworkflows))
        self._script(step["id"], self._failed_look_ups(), self.choice(_FACTS))

    def _agent(self, step: dict[str, Any], depth: int) -> None:
        step |= {"prompt": "p", "output": {"type": "object"}, "tools": ["look", "send", "book"]}
        step |= {"max_turns": 1 + self._pick(4), "max_calls": 3}
        self._work(step, [{"model": "other"}, {"value": {}}])
        self._script(f"{step['id']}/call", [*self._answers(mutating=True), *self._answers(mutating=True)], {})
        key = f"{step['id']}/turn"
        self._script(key, self._answers(mutating=False), {})
        wanted = [
            [self.choice(["look", "send", "book"]) for _ in range(1 + self._pick(3))] for _ in range(self._pick(3))
        ]
        if self.one_in(8):
            wanted.append(self.choice([["look"] * 4, ["unheard_of"]]))
        asked = [Answer(calls=tuple(one)) for one in wanted]
        self.made.outcomes[key] = [*self.made.outcomes[key][:-1], *asked, Answer(facts=self.choice(_FACTS))]

    def _condition(self) -> str:
        kind = self.choice([*CONDITIONS, *["guarded", "case", "always", "never", "met", "count"] * 3])
        # Any step made so far: an earlier one, one that encloses this one, one inside another body, one that runs beside it.
        step = self.choice(["input", *self._seen])
        text = CONDITIONS[kind][0].format(step)
        self.made.conditions[text] = (kind, step)
        return text


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    """Scenarios made of hypothesis' choices, so that a failing one shrinks."""
    return _Maker(lambda options: draw(st.integers(0, options - 1))).scenario()


def random_scenario(rng: random.Random) -> Scenario:
    """A scenario made of pseudo-random choices: the same distribution, a hundred times as fast."""
    return _Maker(rng.randrange).scenario()
