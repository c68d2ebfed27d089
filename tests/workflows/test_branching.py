"""Alternatives of a schema multiply: by the schema alone and along a value. Neither may stop or end the process."""

from __future__ import annotations

from typing import Any

import pytest

from interlock.base.errors import ContractViolation
from interlock.workflows.schemas import check_value, validator_for


def doubling(levels: int, reference: str = "#/$defs/a{}") -> dict[str, Any]:
    """Each level is two alternatives, and both are the next level."""
    names = {f"a{number}": {"anyOf": [{"$ref": reference.format(number + 1)}] * 2} for number in range(levels)}
    return {"$ref": reference.format(0), "$defs": {**names, f"a{levels}": {"type": "string"}}}


def anchored(levels: int) -> dict[str, Any]:
    schema = doubling(levels, "#a{}")
    for name, part in schema["$defs"].items():
        part["$anchor"] = name
    return schema


def identified(levels: int) -> dict[str, Any]:
    schema = doubling(levels, "https://example.org/a{}")
    for name, part in schema["$defs"].items():
        part["$id"] = f"https://example.org/{name}"
    return schema


def inside(levels: int) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"x": {"type": "array", "items": doubling(levels, "#/properties/x/items/$defs/a{}")}},
    }


@pytest.mark.parametrize("make", [doubling, anchored, identified, inside])
def test_alternatives_that_multiply_at_one_place(make: Any) -> None:
    with pytest.raises(ValueError, match="multiply to more than 1000 at one place; use fewer levels"):
        validator_for(make(18))
    validator_for(make(6))


TWICE = {"anyOf": [{"type": "object", "properties": {"x": {"$ref": "#"}}, "required": [name]} for name in ("y", "z")]}


def chain(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"x": value}
    return value


@pytest.mark.parametrize(
    ("levels", "sentence"),
    [
        (3, 'input: does not meet "anyOf" of its schema'),
        (14, "input: does not meet its schema"),
        (
            40,
            "input: the alternatives of its schema multiply to more than 2,000,000 comparisons; send a value with fewer levels",
        ),
        (
            99,
            "input: the alternatives of its schema multiply to more than 2,000,000 comparisons; send a value with fewer levels",
        ),
    ],
)
def test_alternatives_that_multiply_along_a_value(levels: int, sentence: str) -> None:
    with pytest.raises(ContractViolation) as caught:
        check_value(validator_for(TWICE), chain(levels), what="input")
    assert caught.value.message == sentence


def test_alternatives_without_recursion_that_multiply_along_a_value() -> None:
    levels = {f"a{n}": {"anyOf": [{"properties": {"x": {"$ref": f"#/$defs/a{n + 1}"}}}] * 2} for n in range(40)}
    schema = {"$ref": "#/$defs/a0", "$defs": {**levels, "a40": {"type": "string"}}}
    with pytest.raises(ContractViolation, match="multiply to more than 2,000,000 comparisons"):
        check_value(validator_for(schema), chain(60), what="input")
    check_value(validator_for(schema), chain(8), what="input")


def test_ordinary_schemas_are_not_in_the_way() -> None:
    tree = {
        "type": "object",
        "properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}, "n": {"type": "integer"}},
        "additionalProperties": False,
    }
    value: Any = {"n": 0}
    for _ in range(12):
        value = {"left": value, "right": value, "n": 1}
    check_value(validator_for(tree), value, what="input")
    kinds = [
        {
            "type": "object",
            "properties": {"op": {"const": op}, "left": {"$ref": "#"}, "right": {"$ref": "#"}},
            "required": ["op"],
        }
        for op in ("add", "mul", "sub", "div")
    ]
    expression: Any = {"op": "add"}
    for _ in range(5):
        expression = {"op": "div", "left": expression, "right": {"op": "mul"}}
    check_value(validator_for({"anyOf": kinds}), expression, what="input")
    many = {"type": "array", "items": {"anyOf": [{"const": number} for number in range(100)]}}
    check_value(validator_for(many), [number % 100 for number in range(20_000)], what="input")
    with pytest.raises(ContractViolation, match='input: 7: does not meet "anyOf" of its schema'):
        check_value(validator_for(many), [1, 2, 3, 4, 5, 6, 7, "x"], what="input")
    for itself in ({"$ref": "#"}, {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}):
        check_value(validator_for(itself), 1, what="input")
