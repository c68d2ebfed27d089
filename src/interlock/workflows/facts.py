"""Facts: the enum, boolean and number fields of a result, and the only input of control flow.

Free text is never a fact, so text written by a model or an attacker cannot control a branch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Protocol

import cel

from interlock.base.errors import InvalidSpec

MAX_CONDITION = 2000
"""Maximum characters of a condition. CEL recurses in native code, where a deep expression (about 12,000 terms) ends the process."""
MAX_NESTING = 50
"""Maximum nesting of brackets in a condition or a policy, for the same reason."""

Facts = dict[str, Any]
"""The facts of one step: `bool`, `int`, `float` or `str`, as its schema says."""


class CompiledCondition(Protocol):
    """A condition compiled by the CEL library; `holds` evaluates it."""

    @property
    def source(self) -> str: ...
    def variables(self) -> Iterable[str]: ...
    def execute(self, context: dict[str, Facts], /) -> object: ...


def fact_fields(schema: Mapping[str, object]) -> dict[str, str]:
    """Top-level fields of an object schema that are facts, with their kind: `bool`, `number` or `enum`."""
    fields: dict[str, str] = {}
    properties = schema.get("properties")
    for name, field in properties.items() if isinstance(properties, Mapping) else ():
        if not isinstance(field, Mapping):
            continue
        kind = field.get("type")
        if kind == "boolean":
            fields[name] = "bool"
        elif kind in ("integer", "number"):  # a tuple: `type` may be a list, such as [string, "null"]
            fields[name] = "number"
        elif all(isinstance(value, str | int | float | bool) for value in field.get("enum", [field.get("const")])):
            fields[name] = "enum"
    return fields


def facts_of(schema: Mapping[str, object], value: object) -> Facts:
    """The facts of a value that fits `schema`."""
    if not isinstance(value, Mapping):
        return {}
    return {name: value[name] for name in fact_fields(schema) if name in value}


@lru_cache(maxsize=4096)  # compilation takes a hundred times as long as an evaluation, and its result is constant
def compile_condition(expression: str) -> CompiledCondition:
    """A compiled CEL program.

    Raises:
        InvalidSpec: the parser's reason, first line; or it is longer or nested deeper than CEL's recursion can take.
    """
    if len(expression) > MAX_CONDITION or nesting(expression) > MAX_NESTING:
        raise InvalidSpec(
            f"condition {expression[:60]!r}… has more than {MAX_CONDITION} characters or is nested more than {MAX_NESTING} levels "
            "deep; let a step compute it"
        )
    try:
        compiled: CompiledCondition = cel.compile(expression)
    except ValueError as error:
        raise InvalidSpec(f"condition {expression!r} is not CEL: {str(error).splitlines()[0]}") from error
    return compiled


def nesting(text: str) -> int:
    """Depth of nested brackets in a text, those in its literals included."""
    depth = deepest = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    return deepest


def holds(program: CompiledCondition, facts: Mapping[str, Facts]) -> bool:
    """Evaluates a condition.

    Raises:
        InvalidSpec: it reads a missing fact, or its result is not boolean.
    """
    try:
        result = program.execute(dict(facts))
    except Exception as error:
        raise InvalidSpec(
            f"condition {program.source!r} cannot be evaluated: {error}; guard optional steps with has()"
        ) from error
    if not isinstance(result, bool):
        raise InvalidSpec(
            f"condition {program.source!r} gave {type(result).__name__}, not true or false; compare it with something"
        )
    return result
