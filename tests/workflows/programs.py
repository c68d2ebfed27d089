"""Random programs and what the world will say to them."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from interlock.workflows.contracts import ToolContract
from interlock.workflows.program import Program, compile_program
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
    "always": ("true", lambda facts: True),
    "never": ("false", lambda facts: False),
    "not_boolean": ("{0}.n", lambda facts: {}["no boolean"]),
}


@dataclass
class Scenario:
    """A workflow, the answers the world has ready, and when somebody cancels it.

    Attributes:
        outcomes: step → answers to its attempts in order; afterwards it succeeds without facts.
        undos: step → likewise for its compensation.
        confirms: step → a person's answers to "did it happen?"; afterwards yes.
        reviews: step → approved.
        cancel_after: events before a cancellation, if there is one.
    """

    workflow: dict[str, Any]
    outcomes: dict[str, list[Answer]] = field(default_factory=dict)
    undos: dict[str, list[Answer]] = field(default_factory=dict)
    confirms: dict[str, list[Answer]] = field(default_factory=dict)
    reviews: dict[str, bool] = field(default_factory=dict)
    conditions: dict[str, tuple[str, str]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    cancel_after: int | None = None

    def program(self) -> Program:
        return compile_program(Workflow.model_validate(self.workflow), CONTRACTS)

    def oracle(self) -> Oracle:
        undoable = {step["id"] for step in self.work if step.get("tool") == "book"}
        return Oracle(self.workflow, truth=self._truth, undoable=undoable, facts=self.facts)

    @property
    def work(self) -> list[dict[str, Any]]:
        """Every model and tool step."""
        return [step for step in _flat(self.workflow["steps"]) if step["kind"] in {"tool", "model"}]

    def _truth(self, text: str, facts: dict[str, dict[str, Any]]) -> bool:
        kind, step = self.conditions[text]
        return CONDITIONS[kind][1](facts[step])


def _flat(steps: list[Any]) -> list[dict[str, Any]]:
    found = []
    for step in steps:
        parts = [*step.get("branches", {}).values(), *(case["steps"] for case in step.get("cases", []))]
        found += [step, *itertools.chain.from_iterable(_flat(part) for part in [*parts, step.get("otherwise", [])])]
    return found


_KINDS = ["tool", "tool", "tool", "model", "review", "parallel", "branch"]
_FACTS = [{}, {"n": 1, "flag": False}, {"n": 3, "flag": True}, {"flag": True}]
_FAILURES = [
    *[Answer(ok=False, kind=kind) for kind in ("transient", "rate_limited")] * 5,
    *[Answer(ok=False, kind=kind) for kind in ("permanent", "denied", "invalid", "budget")],
]
_DOUBTS = [Answer(ok=False, kind=kind, ambiguous=True) for kind in ("transient", "rate_limited", "permanent", "budget")]


class _Maker:
    """Makes a scenario out of choices; where the choices come from is the caller's affair."""

    def __init__(self, pick: Callable[[int], int]) -> None:
        self._pick = pick
        self._ids = (f"s{number}" for number in itertools.count())
        self._size = 0
        self.made = Scenario({})

    def choice(self, options: list[Any]) -> Any:
        return options[self._pick(len(options))]

    def scenario(self) -> Scenario:
        made = self.made
        steps = self.steps(depth=0, least=1)
        budget = {"retries": self.choice([0, 1, 2, 10])}
        made.facts = self.choice(_FACTS)
        made.workflow = {"name": "w", "input": {}, "steps": steps, "budget": budget}
        if self._pick(3) == 0:
            made.workflow["deadline"] = 600.0
        if self._pick(4) == 0:
            made.cancel_after = self._pick(12)
        return made

    def steps(self, depth: int, least: int = 0) -> list[Any]:
        count = least + self._pick(5 if depth == 0 else 4)
        return [self.step(depth) for _ in range(count) if self._size < 14 or count == least]

    def step(self, depth: int) -> dict[str, Any]:
        self._size += 1
        step: dict[str, Any] = {"id": next(self._ids)}
        kind = step["kind"] = self.choice(_KINDS if depth < 3 else _KINDS[:5])
        if kind in {"tool", "model"}:
            self._work(step, kind)
        elif kind == "review":
            step |= {"title": "?", "on_reject": self.choice(["fail", "continue"])}
            self.made.reviews[step["id"]] = self._pick(6) > 0
        elif kind == "parallel":
            step["branches"] = {f"b{number}": self.steps(depth + 1) for number in range(1 + self._pick(3))}
        else:
            step["cases"] = [
                {"when": self._condition(step["id"]), "steps": self.steps(depth + 1)} for _ in range(1 + self._pick(2))
            ]
            step["otherwise"] = self.steps(depth + 1)
        return step

    def _work(self, step: dict[str, Any], kind: str) -> None:
        name = step["id"]
        step["retry"] = {"max_attempts": 1 + self._pick(4), "backoff": self.choice([0.5, 30.0]), "max_backoff": 40.0}
        failures = _FAILURES
        if kind == "tool":
            step["tool"] = self.choice(["look", "send", "book", "book"])
            if step["tool"] in MUTATING:
                failures = _FAILURES + _DOUBTS + _DOUBTS
        else:
            step |= {"prompt": "p", "output": {"type": "object"}}
        self.made.outcomes[name] = [self.choice(failures) for _ in range(self.choice([0, 0, 0, 0, 1, 1, 2, 4]))]
        self.made.outcomes[name].append(Answer(facts=self.choice(_FACTS)))
        self.made.undos[name] = [self.choice(_FAILURES) for _ in range(self.choice([0, 0, 0, 1, 1, 2, 3]))]
        self.made.confirms[name] = [
            Answer(ok=self._pick(2) == 0, facts=self.choice(_FACTS)) for _ in range(self._pick(3))
        ]

    def _condition(self, own_id: str) -> str:
        kind = self.choice([*CONDITIONS, *["guarded", "case", "always", "never"] * 4])
        # Any step made so far: an earlier one, one that encloses this one, one that runs beside it.
        step = self.choice(["input", *(f"s{number}" for number in range(int(own_id[1:])))])
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
