"""Random programs for the simulator: every kind of step inside every other, small enough to run thousands a second.

A seed gives the same program on every machine: choices come from `random.Random.random` alone, whose numbers are the same
in every version of Python, and never from the order of a set.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from interlock.machine.program import Program, compile_program
from interlock.workflows.contracts import ToolContract
from interlock.workflows.spec import (
    AgentStep,
    BranchCase,
    BranchStep,
    Budget,
    Fallback,
    JsonSchema,
    LoopStep,
    MapStep,
    ModelStep,
    ParallelStep,
    RetryPolicy,
    ReviewStep,
    Step,
    SubworkflowStep,
    ToolStep,
    WaitStep,
    Workflow,
)

T = TypeVar("T")
_OBJECT: JsonSchema = {"type": "object"}
LOOK, SEND, BOOK = "look", "send", "book"
CONTRACTS = {
    LOOK: ToolContract(name=LOOK, description="", effect="pure", input=_OBJECT, output=_OBJECT),
    SEND: ToolContract(name=SEND, description="", effect="mutating", input=_OBJECT, output=_OBJECT),
    BOOK: ToolContract(name=BOOK, description="", effect="mutating", compensate=True, input=_OBJECT, output=_OBJECT),
}
TOOLS = (LOOK, SEND, BOOK, BOOK)
SIGNALS = ("go", "stop")
MAX_ITEMS = 3
_MOST_STEPS, _DEEPEST = 8, 3
_CHILD = "child"

# One in so many conditions cannot be evaluated; the others hold, do not hold, or depend on a fact.
_CONDITIONS = (
    "true",
    "false",
    "has(input.n) && input.n >= 2",
    "has(input.flag) && input.flag",
    "!has(input.n)",
    "input.n",
)
_RETRIES = tuple(RetryPolicy(max_attempts=number, backoff=1.0, max_backoff=8.0) for number in (1, 2, 3))
_BUDGETS = tuple(Budget(retries=number) for number in (0, 1, 3, 10))
_TOOL_FALLBACKS = (Fallback(tool=BOOK), Fallback(tool=LOOK), Fallback(value={}), Fallback(last_good=True, max_age=60.0))
_MODEL_FALLBACKS = (Fallback(model="other"), Fallback(value={}))
_SOME_STEPS: list[Step] = [ToolStep(id="s", kind="tool", tool=LOOK)]
# Copied with other fields: building a model field by field, even unchecked, takes longer than running the program.
_TOOL = _SOME_STEPS[0]
_MODEL = ModelStep(id="s", kind="model", prompt="p", output=_OBJECT)
_AGENT = AgentStep(id="s", kind="agent", prompt="p", output=_OBJECT, tools=[LOOK, SEND, BOOK], max_calls=3)
_REVIEW = ReviewStep(id="s", kind="review", title="?")
_WAIT = WaitStep(id="s", kind="wait", duration=5.0)
_PARALLEL = ParallelStep(id="s", kind="parallel", branches={"b": []})
_CASE = BranchCase(when="true", steps=[])
_BRANCH = BranchStep(id="s", kind="branch", cases=[_CASE])
_MAP = MapStep(id="s", kind="map", items="$input.items", max_items=MAX_ITEMS, steps=_SOME_STEPS)
_LOOP = LoopStep(id="s", kind="loop", until="true", max_iterations=1, steps=_SOME_STEPS)
_SUBWORKFLOW = SubworkflowStep(id="s", kind="subworkflow", workflow=_CHILD)
_WORKFLOW = Workflow(name="simulated", input=_OBJECT, steps=_SOME_STEPS)


class Dice:
    """Choices that follow from a seed."""

    def __init__(self, seed: int) -> None:
        self.roll = random.Random(seed).random  # noqa: S311  to be repeated, not to be secret

    def below(self, number: int) -> int:
        return int(self.roll() * number)

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self.roll() * len(options))]


def random_program(dice: Dice) -> Program:
    """A compiled program; the workflow is its `workflow`."""
    maker = _Maker(dice)
    child = None
    if dice.below(4) == 0:
        child = _WORKFLOW.model_copy(update={"name": _CHILD, "steps": maker.steps(_DEEPEST - 1, least=1)})
    maker.child = child is not None
    steps = maker.steps(0, least=1)
    fields: dict[str, object] = {"steps": steps, "budget": dice.pick(_BUDGETS)}
    if dice.below(4) == 0:
        fields["deadline"] = 30.0
    if dice.below(4) == 0:
        fields["on_failure"] = "hold"
    workflow = _WORKFLOW.model_copy(update=fields)
    return compile_program(workflow, CONTRACTS, {_CHILD: child} if child is not None else {})


class _Maker:
    def __init__(self, dice: Dice) -> None:
        self._dice = dice
        self._made = 0
        self.child = False

    def steps(self, depth: int, least: int = 0) -> list[Step]:
        count = 1 + self._dice.below(4) if depth == 0 else max(least, self._dice.below(3))
        return [self._step(depth) for number in range(count) if number < least or self._made < _MOST_STEPS]

    def _step(self, depth: int) -> Step:
        self._made += 1
        fields: dict[str, object] = {"id": f"s{self._made}"}
        if self._dice.below(4) == 0:
            fields["on_failure"] = "continue"
        kind = self._dice.below(16 if depth < _DEEPEST else 9)
        if kind < 6:
            return self._tool(fields)
        if kind < 7:
            return _MODEL.model_copy(update=self._work(fields, _MODEL_FALLBACKS))
        if kind < 8:
            return self._review(fields)
        if kind < 9:
            return self._wait(fields)
        return self._container(fields, kind, depth + 1)

    def _tool(self, fields: dict[str, object]) -> Step:
        fields["tool"] = self._dice.pick(TOOLS)
        return _TOOL.model_copy(update=self._work(fields, _TOOL_FALLBACKS))

    def _work(self, fields: dict[str, object], fallbacks: Sequence[Fallback]) -> dict[str, object]:
        dice = self._dice
        fields["retry"] = dice.pick(_RETRIES)
        chance = dice.below(8)
        if chance < 2:
            fields["fallback"] = [dice.pick(fallbacks) for _ in range(chance + 1)]
        if dice.below(6) == 0:
            fields["deadline"] = 2.0
        return fields

    def _review(self, fields: dict[str, object]) -> Step:
        if self._dice.below(3) == 0:
            fields["deadline"] = 20.0
        fields["on_reject"] = self._dice.pick(("fail", "continue"))
        return _REVIEW.model_copy(update=fields)

    def _wait(self, fields: dict[str, object]) -> Step:
        kind = self._dice.below(4)
        if kind == 0:
            return _WAIT.model_copy(update=fields)
        fields["duration"] = None
        if kind == 1:
            fields["until"] = self._dice.pick(("$input.n", "1970-01-01T00:00:10Z"))
        else:
            fields |= {"signal": self._dice.pick(SIGNALS), "on_timeout": self._dice.pick(("fail", "continue"))}
            if kind == 2:
                fields["timeout"] = 5.0
        return _WAIT.model_copy(update=fields)

    def _container(self, fields: dict[str, object], kind: int, depth: int) -> Step:
        dice = self._dice
        match kind:
            case 9 | 10:
                fields["branches"] = {f"b{number}": self.steps(depth) for number in range(1 + dice.below(3))}
                return _PARALLEL.model_copy(update=fields)
            case 11:
                case = _CASE.model_copy(update={"when": self._condition(), "steps": self.steps(depth)})
                return _BRANCH.model_copy(update={**fields, "cases": [case], "otherwise": self.steps(depth)})
            case 12:
                fields["concurrency"] = 1 + dice.below(3)
                fields |= {"on_item_failure": dice.pick(("fail", "continue")), "steps": self.steps(depth, least=1)}
                return _MAP.model_copy(update=fields)
            case 13:
                fields |= {"until": self._condition(), "max_iterations": 1 + dice.below(3)}
                fields |= {"on_limit": dice.pick(("fail", "continue")), "steps": self.steps(depth, least=1)}
                return _LOOP.model_copy(update=fields)
            case 14 if self.child:
                return _SUBWORKFLOW.model_copy(update=fields)
            case _:
                fields["max_turns"] = 1 + dice.below(3)
                return _AGENT.model_copy(update=self._work(fields, _MODEL_FALLBACKS))

    def _condition(self) -> str:
        if self._made > 1 and self._dice.below(2):
            earlier = 1 + self._dice.below(self._made - 1)
            return f"has(s{earlier}.n) && s{earlier}.n >= 2"
        return self._dice.pick(_CONDITIONS)
