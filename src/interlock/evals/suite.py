"""Eval cases: an input and the expected result of the run. `evals/*.yaml` in a project."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from pydantic import Field

from interlock.base.errors import ContractViolation, InvalidSpec
from interlock.base.files import read_text, why_unreadable
from interlock.base.json import Json, JsonField, JsonObject
from interlock.machine.events import RunStatus
from interlock.machine.names import path_of
from interlock.workflows.schemas import check_value, validator_for
from interlock.workflows.source import parse_yaml, validate
from interlock.workflows.spec import Identifier, Part, Workflow
from interlock.workflows.walk import every


class StepFacts(TypedDict):
    id: str
    facts: JsonObject


class EvaluatedRun(TypedDict):
    """The parts of a run that are compared."""

    status: str
    output: Json
    steps: Sequence[StepFacts]


Run = Callable[[str, Json], Awaitable[EvaluatedRun]]
"""(workflow, input) → the finished run."""


class Expectation(Part):
    """Expected values; only named fields are compared."""

    status: RunStatus = RunStatus.SUCCEEDED
    output: dict[str, JsonField] = Field(
        default_factory=dict, description="fields the output must have, with these values"
    )
    facts: dict[str, dict[str, JsonField]] = Field(default_factory=dict, description="step → facts it must have")


class EvalCase(Part):
    name: str
    input: JsonField
    expect: Expectation = Expectation()


class Suite(Part):
    """One file of cases for one workflow."""

    workflow: Identifier
    cases: list[EvalCase] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class EvalReport:
    """Result of one case."""

    case: str
    workflow: str
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.problems


def read_suites(directory: Path, workflows: Mapping[str, Workflow] | None = None) -> list[Suite]:
    """The suites of a directory.

    Args:
        workflows: of the project, against which workflow, steps and inputs of the cases are checked.

    Raises:
        InvalidSpec: there are no cases, or a file is not valid; names file and line.
    """
    paths = sorted(path for path in directory.glob("*.y*ml") if not path.name.startswith("."))
    if not paths:
        raise InvalidSpec(f"{directory}: holds no eval cases; add NAME.yaml with workflow and cases")
    suites, faults = [], []
    for path in paths:
        name = f"{directory.name}/{path.name}"
        try:
            source = parse_yaml(read_text(path), name)
            suite = validate(Suite, source)
            suites.append(suite)
            if workflows is not None:
                faults += [source.complaint(place, said) for place, said in _misfits(suite, workflows)]
        except InvalidSpec as error:
            faults.append(error.message)
        except (OSError, UnicodeDecodeError) as error:
            faults.append(f"{name}: cannot be read: {why_unreadable(error)}")
    if faults:
        raise InvalidSpec("\n".join(faults))
    return suites


def has_suites(directory: Path) -> bool:
    """True if there is a file of cases."""
    return any(not path.name.startswith(".") for path in directory.glob("*.y*ml"))


def _misfits(suite: Suite, workflows: Mapping[str, Workflow]) -> Iterator[tuple[list[str | int], str]]:
    """Places where a suite does not fit the project's workflows."""
    workflow = workflows.get(suite.workflow)
    if workflow is None:
        yield (
            ["workflow"],
            f'workflow "{suite.workflow}" does not exist; known workflows: {", ".join(sorted(workflows))}',
        )
        return
    validator, steps = validator_for(workflow.input), {step.id for step in every(workflow.steps)}
    for index, case in enumerate(suite.cases):
        try:
            check_value(validator, case.input, what="the case's input", to_sender=True)
        except ContractViolation as error:
            yield ["cases", index, "input"], error.message
        for step in case.expect.facts:
            if path_of(step).split("/")[0] not in steps:
                yield ["cases", index, "expect", "facts", step], f'the workflow has no step "{step}"'
        for name in case.expect.output:
            if workflow.output and name not in workflow.output:
                known = ", ".join(sorted(workflow.output))
                yield (
                    ["cases", index, "expect", "output", name],
                    f'the output has no field "{name}"; known fields: {known}',
                )


async def run_case(run: Run, suite: Suite, case: EvalCase) -> EvalReport:
    """Runs one case and compares its result."""
    result = await run(suite.workflow, case.input)
    expect = case.expect
    problems = []
    if result["status"] != expect.status:
        problems.append(f"status is {result['status']}, not {expect.status}")
    output = result["output"]
    problems += _differences("output", expect.output, output if isinstance(output, dict) else {})
    facts = {step["id"]: step["facts"] for step in result["steps"]}
    for step, wanted in expect.facts.items():
        problems += _differences(step, wanted, facts.get(step, {}))
    return EvalReport(case.name, suite.workflow, tuple(problems))


def _differences(place: str, wanted: JsonObject, got: JsonObject) -> list[str]:
    return [
        f"{place}.{name} is {got.get(name)!r}, not {value!r}"
        for name, value in wanted.items()
        if not _same(value, got.get(name))
    ]


def _same(wanted: Json, got: Json) -> bool:
    """Equality of JSON values: 1 equals 1.0, but unlike in Python 1 does not equal true."""
    if isinstance(wanted, bool) or isinstance(got, bool):
        return wanted is got
    if isinstance(wanted, dict) and isinstance(got, dict):
        return wanted.keys() == got.keys() and all(_same(value, got[name]) for name, value in wanted.items())
    if isinstance(wanted, list) and isinstance(got, list):
        return len(wanted) == len(got) and all(map(_same, wanted, got))
    return bool(wanted == got)
