"""Checks of literals and references against the schemas of what they are compared with or bound to.

Only what is certainly wrong is a fault: a schema that says nothing about a type, or whose types overlap, lets everything through.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import jsonschema_rs

from interlock.base.json import sentence
from interlock.base.wording import kind_of, shown
from interlock.workflows.bindings import Reference, parse, references, resolve
from interlock.workflows.facts import fact_fields
from interlock.workflows.schemas import validator_for
from interlock.workflows.spec import JsonSchema

_TOKEN = re.compile(
    r"""\s*(?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|\s*(?P<field>[A-Za-z_]\w*\.[A-Za-z_]\w*)(?![\w.(])|"""
    r"""\s*(?P<number>-?\d+(?:\.\d+)?)(?![\w.])|\s*(?P<flag>true|false)\b|\s*(?P<other>==|!=|\w+|\S)"""
)
_NAMES = {
    "string": "a string",
    "number": "a number",
    "boolean": "true or false",
    "object": "an object",
    "array": "a list",
    "null": "null",
}
_LISTED = 200  # characters of an enum's values in a message

SchemaAt = Callable[[Reference], JsonSchema]


# -- conditions ----------------------------------------------------------------------------------------------------------


def comparison_faults(expression: str, schemas: Mapping[str, JsonSchema]) -> Iterator[str]:
    """Comparisons of a fact with a literal that it can never equal, such as a misspelt value of an enum.

    Args:
        schemas: name → schema of its facts.
    """
    tokens = [(str(match.lastgroup), match[str(match.lastgroup)]) for match in _TOKEN.finditer(expression)]
    for (left, one), (_, operator), (right, other) in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if operator in {"==", "!="} and "field" in {left, right} and left != right:
            field, (kind, literal) = (one, (right, other)) if left == "field" else (other, (left, one))
            if kind in {"string", "number", "flag"}:
                yield from _never_equal(field, _value(kind, literal), schemas)


def _value(kind: str, literal: str) -> object:
    if kind == "flag":
        return literal == "true"
    if kind == "number":
        return float(literal)
    return re.sub(r"\\(.)", r"\1", literal[1:-1])


def _never_equal(field: str, literal: object, schemas: Mapping[str, JsonSchema]) -> Iterator[str]:
    name, _, key = field.partition(".")
    schema = schemas.get(name, {})
    kind = fact_fields(schema).get(key)
    values = enum_values(schema, key)
    if values is not None and literal not in values:
        known = sentence(", ".join(json.dumps(value, ensure_ascii=False) for value in values), _LISTED)
        yield f'"{field}" is never {json.dumps(literal, ensure_ascii=False)}; its values are {known}'
    elif kind in {"bool", "number"} and isinstance(literal, str):
        must = "true or false" if kind == "bool" else "a number"
        yield f'"{field}" is {must} and is compared with the string {json.dumps(literal, ensure_ascii=False)}'


def enum_values(schema: JsonSchema, key: str) -> Sequence[object] | None:
    """The values of a field that is declared as an enum in place; None for every other field."""
    properties = schema.get("properties")
    field = properties.get(key) if isinstance(properties, Mapping) else None
    if not isinstance(field, Mapping) or fact_fields(schema).get(key) not in {"enum", "number"}:
        return None
    values = field.get("enum") if "enum" in field else [field["const"]] if "const" in field else None
    return values if isinstance(values, list) else None


# -- bindings ------------------------------------------------------------------------------------------------------------


def binding_faults(
    tree: object, schema: JsonSchema, schema_at: SchemaAt
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Places in a binding tree, and why what is bound there does not fit the schema of what takes it.

    Args:
        schema_at: the schema of a reference's target, `{}` if it is not known.
    """
    wanted = types_of(schema)
    if not any(True for _ in references(tree)):
        yield from _literal_faults(tree, schema)
    elif isinstance(tree, dict | list) and wanted and not wanted & {"object" if isinstance(tree, dict) else "array"}:
        yield (), f"is {kind_of(tree)}; must be {' or '.join(sorted(_NAMES[one] for one in wanted))}"
    elif isinstance(tree, dict):
        for name, value in tree.items():
            inner = _inside(schema.get("properties"), name)
            yield from (((name, *path), said) for path, said in binding_faults(value, inner, schema_at))
    elif isinstance(tree, list):
        items = schema.get("items")
        for index, value in enumerate(tree):
            inner = items if isinstance(items, dict) else {}
            yield from (((index, *path), said) for path, said in binding_faults(value, inner, schema_at))
    elif (reference := parse(tree)) is not None and reference.root != "last":  # that is null in the first iteration
        yield from _reference_faults(reference, schema, schema_at(reference))


def _literal_faults(tree: object, schema: JsonSchema) -> Iterator[tuple[tuple[str | int, ...], str]]:
    value = resolve(tree, _no_reference)  # type: ignore[arg-type]  # of a YAML file, so JSON
    try:
        fault = next(iter(validator_for(schema).iter_errors(value)), None)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError):
        return  # a part of a schema that refers to another part
    if fault is None:
        return
    where = f"{fault.place[1:]}: " if fault.place else ""
    message = fault.message
    if fault.keyword == "type":
        message = message.replace(kind_of(fault.given), shown(fault.given), 1)
    yield (), f"{where}{message}"


def _no_reference(reference: Reference) -> None:
    raise AssertionError(reference)


def _reference_faults(
    reference: Reference, schema: JsonSchema, source: JsonSchema
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    given, wanted = types_of(_of_root(reference) or source), types_of(schema)
    if given and wanted and not given & wanted:
        must = " or ".join(sorted(_NAMES[one] for one in wanted))
        yield (), f'"{reference.text}" is {" or ".join(sorted(_NAMES[one] for one in given))}; must be {must}'


def _of_root(reference: Reference) -> JsonSchema | None:
    if reference.root == "run":
        return {"type": "string"}
    return {"type": "integer"} if reference.root == "index" else None


def types_of(schema: JsonSchema) -> frozenset[str]:
    """JSON types that a schema admits by its `type`, `enum` or `const`; empty if it does not say. `integer` is a number."""
    kinds = schema.get("type")
    if isinstance(kinds, str):
        kinds = [kinds]
    if isinstance(kinds, list):
        return frozenset(
            "number" if kind == "integer" else kind for kind in kinds if kind in _NAMES or kind == "integer"
        )
    values = schema.get("enum") if "enum" in schema else [schema["const"]] if "const" in schema else None
    by_word = {words: kind for kind, words in _NAMES.items()}
    return frozenset(by_word[kind_of(value)] for value in values) if isinstance(values, list) else frozenset()


def _inside(properties: object, name: str) -> JsonSchema:
    found = properties.get(name) if isinstance(properties, Mapping) else None
    return found if isinstance(found, dict) else {}
