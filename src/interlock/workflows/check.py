"""Whether the parts of a definition fit each other: names, slots, bindings, conditions, schemas.

What pydantic checks is the shape of one file; this checks one workflow against its prompts and tools.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema_rs

from interlock.base.errors import InvalidSpec
from interlock.workflows.bindings import Reference, references
from interlock.workflows.contracts import ToolContract
from interlock.workflows.facts import compile_condition, fact_fields
from interlock.workflows.prompts import Prompt
from interlock.workflows.spec import (
    MAX_STEPS,
    BranchStep,
    JsonSchema,
    ModelStep,
    ParallelStep,
    ReviewStep,
    Step,
    ToolStep,
    Workflow,
)

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """A fault at a place in the workflow file: what is wrong, and the mend."""

    path: Path
    message: str


def check_workflow(
    workflow: Workflow, *, prompts: Mapping[str, Prompt], tools: Mapping[str, ToolContract], models: Iterable[str]
) -> list[Problem]:
    """Every fault found, in the order of the file; empty means it can be deployed."""
    return list(_Checker(workflow, prompts, tools, frozenset(models)).run())


class _Checker:
    def __init__(
        self,
        workflow: Workflow,
        prompts: Mapping[str, Prompt],
        tools: Mapping[str, ToolContract],
        models: frozenset[str],
    ) -> None:
        self.workflow = workflow
        self.prompts = prompts
        self.tools = dict(tools)
        self.input = workflow.input
        self.models = models
        self.seen: dict[str, Path] = {}
        self.before: dict[str, JsonSchema] = {}  # steps finished by the time the current one starts → output schema

    def run(self) -> Iterator[Problem]:
        workflow = self.workflow
        broken = list(_schema_problems(workflow.input, ("input",)))
        if broken:
            yield from broken
            self.input = {}  # nothing more can be said about it
        faults = {name: self._without_faults(name) for name in self.tools}
        for index, name in enumerate(workflow.allow):
            path: Path = ("allow", index)
            if name not in self.tools:
                yield Problem(path, f'tool "{name}" does not exist; {_known(self.tools, "tools")}')
            yield from (Problem(path, fault) for fault in faults.get(name, ()))
        if workflow.subject is not None:
            yield from self._bindings(workflow.subject, ("subject",))
        yield from self._steps(workflow.steps, ("steps",))
        if len(self.seen) > MAX_STEPS:
            yield Problem(
                ("steps",), f"{len(self.seen)} steps are more than the {MAX_STEPS} a workflow may have; split it"
            )
        yield from self._bindings(workflow.output, ("output",))

    def _without_faults(self, name: str) -> list[str]:
        """What is wrong with a tool's schemas; the rest of the check goes on without those."""
        contract, faults = self.tools[name], []
        for part, schema in (("input", contract.input), ("output", contract.output)):
            for problem in _schema_problems(schema, ()):
                faults.append(f'tool "{name}": {part} {problem.message}')
                self.tools[name] = self.tools[name].model_copy(update={part: {}})
        return faults

    def _steps(self, steps: list[Step], path: Path) -> Iterator[Problem]:
        for index, step in enumerate(steps):
            here = (*path, index)
            if step.id in self.seen:
                yield Problem((*here, "id"), f'step id "{step.id}" is used twice; ids are unique in a workflow')
            self.seen[step.id] = here
            yield from self._step(step, here)
            self.before[step.id] = self._output_schema(step)

    def _step(self, step: Step, path: Path) -> Iterator[Problem]:
        match step:
            case ModelStep():
                yield from self._model(step, path)
            case ToolStep():
                yield from self._tool(step, path)
            case ReviewStep():
                yield from self._bindings(step.show, (*path, "show"))
            case ParallelStep():
                outer = dict(self.before)
                after = dict(outer)
                for name, branch in step.branches.items():
                    self.before = dict(outer)  # branches run at once: none may read another's results
                    yield from self._steps(branch, (*path, "branches", name))
                    after |= self.before
                self.before = after
            case BranchStep():
                yield from self._branch(step, path)

    def _model(self, step: ModelStep, path: Path) -> Iterator[Problem]:
        if step.model not in self.models:
            yield Problem(
                (*path, "model"),
                f'step "{step.id}": model "{step.model}" is not in the settings; {_known(self.models, "models")}',
            )
        yield from _schema_problems(step.output, (*path, "output"))
        if step.output.get("type") != "object":
            yield Problem((*path, "output"), f'step "{step.id}": the output schema must have type: object')
        prompt = self.prompts.get(step.prompt)
        if prompt is None:
            message = f'step "{step.id}": prompt "{step.prompt}" does not exist; {_known(self.prompts, "prompts")}'
            yield Problem((*path, "prompt"), message)
            return
        for slot in sorted(prompt.spec.slots.keys() - step.values.keys()):
            yield Problem(
                (*path, "values"), f'step "{step.id}": prompt "{step.prompt}" needs slot "{slot}"; bind it in values'
            )
        for slot in sorted(step.values.keys() - prompt.spec.slots.keys()):
            message = (
                f'step "{step.id}": prompt "{step.prompt}" has no slot "{slot}"; {_known(prompt.spec.slots, "slots")}'
            )
            yield Problem((*path, "values", slot), message)
        yield from self._bindings(step.values, (*path, "values"))

    def _tool(self, step: ToolStep, path: Path) -> Iterator[Problem]:
        contract = self.tools.get(step.tool)
        if contract is None:
            message = f'step "{step.id}": tool "{step.tool}" does not exist; {_known(self.tools, "tools")}'
            yield Problem((*path, "tool"), message)
            return
        if step.tool not in self.workflow.allow:
            message = f'step "{step.id}" uses tool "{step.tool}", which is not in allow; add it or remove the step'
            yield Problem((*path, "tool"), message)
        properties = contract.input.get("properties", {})
        for name in sorted(set(contract.input.get("required", [])) - step.input.keys()):
            yield Problem(
                (*path, "input"), f'step "{step.id}": tool "{step.tool}" needs argument "{name}"; bind it in input'
            )
        if contract.input.get("additionalProperties") is False:
            for name in sorted(step.input.keys() - properties.keys()):
                message = (
                    f'step "{step.id}": tool "{step.tool}" has no argument "{name}"; {_known(properties, "arguments")}'
                )
                yield Problem((*path, "input", name), message)
        yield from self._bindings(step.input, (*path, "input"))

    def _branch(self, step: BranchStep, path: Path) -> Iterator[Problem]:
        outer = dict(self.before)
        after = dict(outer)
        parts: list[tuple[list[Step], Path]] = [
            (case.steps, (*path, "cases", index, "steps")) for index, case in enumerate(step.cases)
        ]
        parts.append((step.otherwise, (*path, "otherwise")))
        for index, case in enumerate(step.cases):
            yield from self._condition(step.id, case.when, (*path, "cases", index, "when"))
        for steps, place in parts:
            self.before = dict(outer)
            yield from self._steps(steps, place)
            after |= self.before
        self.before = after

    def _condition(self, step_id: str, expression: str, path: Path) -> Iterator[Problem]:
        try:
            program = compile_condition(expression)
        except InvalidSpec as error:
            yield Problem(path, f'step "{step_id}": {error.message}')
            return
        known = {name: fact_fields(schema) for name, schema in self.before.items()}
        known["input"] = fact_fields(self.input)
        for name in program.variables():
            if name not in known:
                yield Problem(
                    path,
                    f'step "{step_id}": condition reads "{name}", which is no earlier step; {_known(known, "names")}',
                )

    def _bindings(self, tree: Any, path: Path) -> Iterator[Problem]:
        try:
            found = list(references(tree))
        except ValueError as error:
            yield Problem(path, str(error))
            return
        for reference in found:
            message = self._reference(reference)
            if message:
                yield Problem(path, message)

    def _reference(self, reference: Reference) -> str | None:
        if reference.root == "input":
            return _field_problem(reference, self.input, "the input")
        if reference.root == "run":
            return None if reference.path == ("id",) else f'"{reference.text}": a run has only $run.id'
        step = str(reference.step)
        if step not in self.before:
            return f'"{reference.text}": "{step}" is no earlier step; {_known(self.before, "steps")}'
        return _field_problem(reference, self.before[step], f'step "{step}"')

    def _output_schema(self, step: Step) -> JsonSchema:
        match step:
            case ModelStep():
                return {} if any(_schema_problems(step.output, ())) else step.output
            case ToolStep():
                return self.tools[step.tool].output if step.tool in self.tools else {}
            case ReviewStep():
                properties = {"approved": {"type": "boolean"}, "by": {"type": "string"}, "note": {"type": "string"}}
                return {"type": "object", "properties": properties, "additionalProperties": False}
            case BranchStep():
                return {"type": "object", "properties": {"case": {"type": "integer"}}, "additionalProperties": False}
            case _:
                return {"type": "object", "properties": {}, "additionalProperties": False}


def _field_problem(reference: Reference, schema: JsonSchema, owner: str) -> str | None:
    """Whether the first field of a path can exist; a schema that says nothing about its fields allows all."""
    if not reference.path or "properties" not in schema:
        return None
    properties = schema["properties"]
    if reference.path[0] in properties or schema.get("additionalProperties", True) is not False:
        return None if reference.path[0] in properties or properties == {} else _unknown(reference, properties, owner)
    return _unknown(reference, properties, owner)


def _unknown(reference: Reference, properties: Mapping[str, Any], owner: str) -> str:
    return f'"{reference.text}": {owner} has no field "{reference.path[0]}"; {_known(properties, "fields")}'


def _schema_problems(schema: JsonSchema, path: Path) -> Iterator[Problem]:
    try:
        jsonschema_rs.validator_for(schema, offline=True)  # a definition must not make the checker open a connection
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        yield Problem(path, f"is not valid JSON Schema: {_first_line(error)}; correct it")


def _first_line(error: Exception) -> str:
    return str(getattr(error, "message", error)).splitlines()[0]


def _known(names: Iterable[str], what: str) -> str:
    listed = ", ".join(sorted(names))
    return f"known {what}: {listed}" if listed else f"there are no {what} yet"
