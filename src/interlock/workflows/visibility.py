"""Visibility of earlier results at a place in a workflow, and checks of bindings and conditions against it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import jsonschema_rs

from interlock.base.errors import InvalidSpec
from interlock.workflows.bindings import Reference, references
from interlock.workflows.check_values import binding_faults, comparison_faults
from interlock.workflows.contracts import ToolContract
from interlock.workflows.facts import call_counts, compile_condition, fact_fields
from interlock.workflows.schemas import validator_for
from interlock.workflows.spec import (
    AgentStep,
    BranchStep,
    JsonSchema,
    LoopStep,
    MapStep,
    ModelStep,
    ReviewStep,
    Step,
    SubworkflowStep,
    ToolStep,
    WaitStep,
    Workflow,
)

ValuePath = tuple[str | int, ...]

_NUMBER: JsonSchema = {"type": "integer"}
_FLAG: JsonSchema = {"type": "boolean"}
_TEXT = re.compile(r"\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'")
_READ = re.compile(r"(?<![\w.])([A-Za-z_]\w*)\.([A-Za-z_]\w*)(?!\w*\s*\()")


def _fields_read(expression: str) -> set[tuple[str, str]]:
    """(name, field) of every `name.field` in a condition; quoted parts are text, and `name.size()` is not a field."""
    return set(_READ.findall(_TEXT.sub("''", expression)))


@dataclass(frozen=True, slots=True)
class Problem:
    """A fault at a place in the workflow file, with the correction."""

    path: ValuePath
    message: str


@dataclass(frozen=True, slots=True)
class Seen:
    """Schemas of an earlier step's value and, where different, of its facts."""

    value: JsonSchema
    facts: JsonSchema

    @classmethod
    def of(cls, schema: JsonSchema) -> Seen:
        return cls(schema, schema)


@dataclass(frozen=True, slots=True)
class Visible:
    """Values readable at one place.

    Attributes:
        input: schema of the workflow's input.
        before: steps finished by the time the current one starts.
        last: ids of the loop's body around it; None outside loops.
        item: schema of the map's item; None outside maps.
    """

    input: JsonSchema
    before: Mapping[str, Seen] = field(default_factory=dict)
    last: frozenset[str] | None = None
    item: JsonSchema | None = None

    def after(self, name: str, seen: Seen) -> Visible:
        return replace(self, before={**self.before, name: seen})

    def bindings(self, tree: object, path: ValuePath) -> Iterator[Problem]:
        """Faults of every reference in a binding tree."""
        try:
            found = list(references(tree))
        except ValueError as error:
            yield Problem(path, str(error))
            return
        for reference in found:
            message = self._reference(reference)
            if message:
                yield Problem(path, message)

    def condition(self, step_id: str, expression: str, path: ValuePath) -> Iterator[Problem]:
        try:
            program = compile_condition(expression)
        except InvalidSpec as error:
            yield Problem(path, f'step "{step_id}": {error.message}')
            return
        known = {"input", *self.before}
        for name in program.variables():
            if name not in known:
                message = f'step "{step_id}": condition reads "{name}", which is not an earlier step; {listed(known, "names")}'
                yield Problem(path, message)
        for name, read in sorted(_fields_read(expression)):
            schema = self.input if name == "input" else self.before[name].facts if name in self.before else {}
            facts = fact_fields(schema)
            if schema and read not in facts:
                message = (
                    f'step "{step_id}": condition reads "{name}.{read}", which is not a fact; {listed(facts, "facts")}, '
                    "and only numbers, booleans and enums are facts"
                )
                yield Problem(path, message)
        schemas = {"input": self.input, **{name: seen.facts for name, seen in self.before.items()}}
        for fault in comparison_faults(expression, schemas):
            yield Problem(path, f'step "{step_id}": {fault}')

    def fitting(self, what: str, tree: object, schema: JsonSchema, path: ValuePath) -> Iterator[Problem]:
        """Faults of a binding tree whose references are sound: what is bound, and does not fit the schema of what takes it."""
        for inner, message in binding_faults(tree, schema, self.schema_at):
            yield Problem((*path, *inner), f"{what}: {message}")

    def schema_at(self, reference: Reference) -> JsonSchema:
        """The schema of a reference's target; `{}` if it is not known."""
        match reference.root:
            case "input":
                schema = self.input
            case "item":
                schema = self.item or {}
            case "steps":
                seen = self.before.get(str(reference.step))
                schema = seen.value if seen is not None else {}
            case _:
                schema = {}
        for part in reference.path:
            inner = schema.get("items") if part.isdigit() else schema.get("properties", {}).get(part)
            if not isinstance(inner, dict):
                return {}
            schema = inner
        return schema

    def is_number(self, reference: Reference) -> bool:
        """True if a reference certainly points to a number fact."""
        if len(reference.path) != 1 or reference.root not in {"input", "steps"}:
            return False
        known = self.before.get(str(reference.step))
        schema = self.input if reference.root == "input" else (known.facts if known else {})
        return fact_fields(schema).get(reference.path[0]) == "number"

    def _reference(self, reference: Reference) -> str | None:
        match reference.root:
            case "input":
                return _field_problem(reference, self.input, "the input")
            case "run":
                return None if reference.path == ("id",) else f'"{reference.text}": a run has only $run.id'
            case "item":
                if self.item is None:
                    return f'"{reference.text}": there is no item outside a map step'
                return _field_problem(reference, self.item, "the item")
            case "index":
                outside = self.item is None and self.last is None
                return f'"{reference.text}": there is no index outside map and loop steps' if outside else None
            case "last":
                return self._last(reference)
            case _:
                return self._step(reference)

    def _last(self, reference: Reference) -> str | None:
        if self.last is None:
            return f'"{reference.text}": there is no previous iteration outside a loop step; use $steps'
        if reference.step not in self.last:
            return f'"{reference.text}": the loop has no step "{reference.step}"; {listed(self.last, "steps")}'
        return None

    def _step(self, reference: Reference) -> str | None:
        step = str(reference.step)
        if step not in self.before:
            return f'"{reference.text}": "{step}" is not an earlier step; {listed(self.before, "steps")}'
        return _field_problem(reference, self.before[step].value, f'step "{step}"')


def schema_problems(schema: JsonSchema, path: ValuePath) -> Iterator[Problem]:
    """Problems of an invalid schema."""
    try:
        validator_for(schema)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        line = str(getattr(error, "message", error)).splitlines()[0]
        yield Problem(path, f"is not valid JSON Schema: {line}; correct it")


def listed(names: Iterable[str], what: str) -> str:
    """The available names, for the end of a message."""
    known = ", ".join(sorted(names))
    return f"known {what}: {known}" if known else f"there are no {what} yet"


def _field_problem(reference: Reference, schema: JsonSchema, owner: str) -> str | None:
    """Problem of a path whose first field cannot exist; a schema without properties allows every field."""
    if not reference.path or "properties" not in schema:
        return None
    properties = schema["properties"]
    if reference.path[0] in properties or schema.get("additionalProperties", True) is not False:
        return None if reference.path[0] in properties or properties == {} else _unknown(reference, properties, owner)
    return _unknown(reference, properties, owner)


def _unknown(reference: Reference, properties: Iterable[str], owner: str) -> str:
    return f'"{reference.text}": {owner} has no field "{reference.path[0]}"; {listed(properties, "fields")}'


def seen_of(step: Step, tools: Mapping[str, ToolContract], workflows: Mapping[str, Workflow]) -> Seen:
    """Schemas of what later steps see of this one."""
    match step:
        case ModelStep():
            return Seen.of(_sound(step.output))
        case AgentStep():
            output, counts = _sound(step.output), dict.fromkeys(call_counts(step.tools), _NUMBER)
            return Seen(output, {**output, "properties": {**properties_of(output), **counts}})
        case ToolStep():
            return Seen.of(tools[step.tool].output if step.tool in tools else {})
        case ReviewStep():
            return Seen.of(_object(approved=_FLAG, by={"type": "string"}, note={"type": "string"}))
        case WaitStep():
            return _received(step)
        case BranchStep():
            return Seen.of(_object(case=_NUMBER))
        case LoopStep():
            return Seen.of(_object(iterations=_NUMBER, met=_FLAG))
        case MapStep():
            return Seen({"type": "array"}, _object(count=_NUMBER, succeeded=_NUMBER, failed=_NUMBER))
        case SubworkflowStep():
            child = workflows.get(step.workflow)
            return Seen.of(_object(**{name: {} for name in child.output}) if child is not None else {})
        case _:
            return Seen.of(_object())


def _sound(schema: JsonSchema) -> JsonSchema:
    """The schema; that of every value if it is faulty."""
    return {} if any(schema_problems(schema, ())) else schema


def properties_of(schema: JsonSchema) -> dict[str, JsonSchema]:
    """The declared properties of an object; none if the schema is faulty."""
    found = schema.get("properties")
    return found if isinstance(found, dict) and not any(schema_problems(schema, ())) else {}


def _received(step: WaitStep) -> Seen:
    """Schema of a signal's payload; any value if it is not declared."""
    known = properties_of(step.payload)
    seen = _object(**(known | {"received": _FLAG})) if step.signal else _object()
    return Seen.of(seen) if known or step.signal is None else Seen({}, seen)


def _object(**properties: JsonSchema) -> JsonSchema:
    return {"type": "object", "properties": properties, "additionalProperties": False}
