"""Compilation of JSON Schemas, and validation of values.

What is said about a value that does not fit goes into journals, audit entries, logs and webhooks. It names declared properties
and rules of the schema, and repeats neither the value nor a property name that the schema does not declare.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import jsonschema_rs

from interlock.base.errors import ContractViolation
from interlock.base.json import MAX_PLACE, place, sentence
from interlock.base.wording import kind_of, shown
from interlock.workflows.branching import MAX_COMPARED, MAX_EXPLAINED, Branching
from interlock.workflows.spec import JsonSchema

MAX_MESSAGE = 200
"""Maximum characters of the message about one violated rule."""

# Rules whose message, with the value masked, contains only the schema.
_PLAIN = frozenset({
    *("const", "dependentRequired", "enum", "exclusiveMaximum", "exclusiveMinimum", "format", "maxItems", "maxLength"),
    *("maximum", "maxProperties", "minItems", "minLength", "minProperties", "minimum", "multipleOf", "pattern"),
    *("required", "type", "uniqueItems"),
})  # fmt: skip
_TOO_NESTED = (
    f"the alternatives of its schema multiply to more than {MAX_COMPARED:,} comparisons; send a value with fewer levels"
)
_CLOSED = frozenset({"additionalProperties", "unevaluatedProperties"})
_OF_ONE_VALUE = frozenset({
    *("const", "enum", "exclusiveMaximum", "exclusiveMinimum", "format", "maximum", "minimum", "multipleOf", "pattern"),
})  # fmt: skip
_TYPES = {
    "string": "a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "object": "an object",
    "array": "a list",
}


@dataclass(frozen=True, slots=True)
class Violation:
    """A violation: the place in the value and the violated rule.

    Attributes:
        place: as returned by `base.json.place`; "" for the value itself.
        keyword: the schema's keyword.
        message: one sentence about the rule.
        undeclared: the names that the rule refuses.
        given: the value at the place. Both are data of the value's sender, and may be shown only to the sender.
    """

    place: str
    keyword: str
    message: str
    undeclared: tuple[str, ...] = ()
    given: object = field(default=None, repr=False)


class Validator:
    """A compiled schema.

    Args:
        compiled: validator of `jsonschema_rs`, with values masked.
        schema: its source, for the names that it declares.
    """

    def __init__(self, compiled: jsonschema_rs.Validator, schema: JsonSchema) -> None:
        self._compiled = compiled
        self._branching = Branching(schema)
        self._declared = frozenset(_declared(schema))
        self._outermost = _names(schema)

    def iter_errors(self, value: object) -> Iterator[Violation]:
        """Violations of a value, in the order of the schema; only that there is one, if a search would take too long."""
        comparisons = self._branching.comparisons(value)
        if comparisons > MAX_EXPLAINED:
            if comparisons > MAX_COMPARED:
                yield Violation("", "alternatives", _TOO_NESTED)
            elif not self._compiled.is_valid(value):
                yield Violation("", "alternatives", "does not meet its schema")
            return
        for error in self._compiled.iter_errors(value):
            path = [str(part) for part in error.schema_path]
            keyword = path[-1] if path else "schema"
            if error.kind.name == "falseSchema":
                keyword = "false"  # else the path ends in the name of the property that it refuses
            given = _at(value, error.instance_path)
            said = _of_type(error.kind, kind_of(given)) if keyword == "type" else error.message
            yield Violation(
                place(error.instance_path, self._declared, value),
                keyword,
                self._message(keyword, path, said),
                _refused(error.kind) if keyword in _CLOSED else (),
                given,
            )

    def check(self, value: object, *, what: str, to_sender: bool = False) -> None:
        """Validates a value; raises as `check_value`."""
        if self._branching.comparisons(value) <= MAX_COMPARED and self._compiled.is_valid(value):
            return
        for error in self.iter_errors(value):
            where = f"{what}: {error.place[1:]}" if error.place else what
            message = error.message.replace("the value does not meet", "does not meet", 1)
            if to_sender and error.keyword == "type":
                message = message.replace(kind_of(error.given), shown(error.given), 1)
            elif to_sender and error.keyword in _OF_ONE_VALUE and shown(error.given) != kind_of(error.given):
                message += f"; it is {shown(error.given)}"
            if to_sender and error.undeclared:
                message += f"; the value has {sentence(', '.join(error.undeclared), MAX_PLACE)}"
            raise ContractViolation(f"{where}: {message}")

    def _message(self, keyword: str, path: list[str], said: str) -> str:
        if keyword in _CLOSED:
            return _closed(self._outermost if len(path) == 1 else [])
        if keyword in _PLAIN and "propertyNames" not in path:
            return sentence(said, MAX_MESSAGE)
        return sentence(f'the value does not meet "{keyword}" of its schema', MAX_MESSAGE)


def validator_for(schema: JsonSchema, *, formats: bool = False) -> Validator:
    """A validator that opens no connection, for any reference in the schema.

    Args:
        formats: enforce `format`.

    Raises:
        jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError: it is not a JSON Schema, or its alternatives
            multiply beyond `branching.MAX_ALTERNATIVES`.
    """
    compiled = jsonschema_rs.validator_for(schema, mask="the value", validate_formats=formats, offline=True)
    return Validator(compiled, schema)


def check_value(validator: Validator, value: object, *, what: str, to_sender: bool = False) -> None:
    """Validates against a compiled schema.

    Args:
        to_sender: the message goes only to the sender of the value, so it may contain undeclared names.

    Raises:
        ContractViolation: naming the first place; neither the value nor, but to its sender, an undeclared name is repeated.
    """
    validator.check(value, what=what, to_sender=to_sender)


def _at(value: object, path: Sequence[str | int]) -> object:
    for part in path:
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int):
            value = value[part]
    return value


def _of_type(kind: jsonschema_rs.ValidationErrorKind, is_now: str) -> str:
    types = kind.types if isinstance(kind, jsonschema_rs.ValidationErrorKind.Type) else []
    return f"is {is_now}; must be {' or '.join(_TYPES.get(one, one) for one in types)}"


def _refused(kind: jsonschema_rs.ValidationErrorKind) -> tuple[str, ...]:
    """The names that a closed object has and may not have."""
    kinds = jsonschema_rs.ValidationErrorKind
    return tuple(kind.unexpected) if isinstance(kind, kinds.AdditionalProperties | kinds.UnevaluatedProperties) else ()


def _closed(names: Collection[str]) -> str:
    said = "Additional properties are not allowed"
    return sentence(f"{said}; declared are {', '.join(names)}", MAX_MESSAGE) if names else said


def _declared(schema: JsonSchema) -> Iterator[str]:
    """All property names that a schema declares at any depth."""
    below: list[object] = [schema]
    while below:
        part = below.pop()
        if isinstance(part, dict):
            yield from _names(part)
            below += part.values()
        elif isinstance(part, list):
            below += part


def _names(schema: object) -> list[str]:
    """The property names that the schema's outermost object declares."""
    properties = schema.get("properties") if isinstance(schema, dict) else None
    return [name for name in properties if isinstance(name, str)] if isinstance(properties, dict) else []
