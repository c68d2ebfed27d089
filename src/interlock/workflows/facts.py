"""Facts: the enum, boolean and number fields of a result, and the only input of control flow.

Free text is never a fact, so text written by a model or an attacker cannot control a branch.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import cel

from interlock.base.errors import InvalidSpec

Facts = dict[str, Any]


def fact_fields(schema: Mapping[str, Any]) -> dict[str, str]:
    """Top-level fields of an object schema that are facts, with their kind: `bool`, `number` or `enum`."""
    fields: dict[str, str] = {}
    for name, field in schema.get("properties", {}).items():
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


def facts_of(schema: Mapping[str, Any], value: Any) -> Facts:
    """The facts of a value that fits `schema`."""
    if not isinstance(value, Mapping):
        return {}
    return {name: value[name] for name in fact_fields(schema) if name in value}


@lru_cache(maxsize=4096)  # compilation takes a hundred times as long as an evaluation, and its result is constant
def compile_condition(expression: str) -> Any:
    """A compiled CEL program with `.variables` and `.execute(context)`.

    Raises:
        InvalidSpec: the parser's reason, first line.
    """
    try:
        return cel.compile(expression)
    except ValueError as error:
        raise InvalidSpec(f"condition {expression!r} is not CEL: {str(error).splitlines()[0]}") from error


def holds(program: Any, facts: Mapping[str, Facts]) -> bool:
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
