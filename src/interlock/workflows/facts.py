"""Facts: the enum, boolean and number fields of a result, and the only input of control flow.

Free text is never a fact, so text written by a model or an attacker cannot control a branch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Protocol

import cel

from interlock.base.errors import InvalidSpec

MAX_CONDITION = 2000
"""Maximum characters of a condition. CEL recurses in native code, where a deep expression (about 12,000 terms) ends the process."""
MAX_NESTING = 50
"""Maximum nesting of brackets in a condition or a policy, for the same reason."""
_LOOPS = frozenset({"all", "exists", "exists_one", "existsOne", "filter", "map"})
_TOKEN = re.compile(
    r"""
      (?P<text>(?:[bB]?[rR]|[rR][bB])(?:\"{3}.*?\"{3}|'{3}.*?'{3}|"[^"\r\n]*"|'[^'\r\n]*')
              |[bB]?(?:\"{3}(?:\\.|.)*?\"{3}|'{3}(?:\\.|.)*?'{3}|"(?:\\.|[^"\\\r\n])*"|'(?:\\.|[^'\\\r\n])*'))
    | (?P<space>\s+|//[^\n\r]*)
    | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)

Facts = dict[str, Any]
"""The facts of one step: `bool`, `int`, `float` or `str`, as its schema says."""


class CompiledCondition(Protocol):
    """A condition compiled by the CEL library; `holds` evaluates it."""

    @property
    def source(self) -> str: ...
    def variables(self) -> Iterable[str]: ...
    def execute(self, context: dict[str, Facts], /) -> object: ...


def fact_fields(schema: Mapping[str, object]) -> dict[str, str]:
    """Top-level fields of an object schema that are facts, with their kind: `bool`, `number` or `enum`.

    A field may be null besides, and its schema may stand behind a `$ref` or in `allOf`, `anyOf` or `oneOf`, as generators of
    schemas write it.
    """
    properties = schema.get("properties")
    if not isinstance(properties, Mapping):
        return {}
    kinds = {name: _Kinds(schema).of(field) for name, field in properties.items()}
    return {name: kind for name, kind in kinds.items() if kind not in {None, _NULL}}


def facts_of(schema: Mapping[str, object], value: object) -> Facts:
    """The facts of a value that fits `schema`; a field that is null is no fact, as if it were missing."""
    if not isinstance(value, Mapping):
        return {}
    return {name: value[name] for name in fact_fields(schema) if value.get(name) is not None}


def call_counts(tools: Iterable[str]) -> dict[str, int]:
    """Facts of an agent step about its tool calls, all zero: of all calls, and of each of its tools by outcome.

    A denied call was refused by a policy, by the allow list or by a person; it does not count as failed.
    """
    each = (f"{outcome}_{tool}" for tool in tools for outcome in ("succeeded", "failed", "denied"))
    return dict.fromkeys(("calls", "failed_calls", "denied_calls", *each), 0)


_NULL = "null"
_SCHEMAS = 200  # subschemas looked at for a field: alternatives of alternatives multiply
_ESCAPED = re.compile(r"(?:%[0-9A-Fa-f]{2})+")  # of a fragment, RFC 3986
_TYPES = {"boolean": "bool", "integer": "number", "number": "number", "null": _NULL}


class _Kinds:
    """Kinds of schemas within `root`: a fact's kind, `null`, or None for all else.

    A conjunction is of a kind if one part is; alternatives are if all have the same, apart from null.
    """

    def __init__(self, root: Mapping[str, object]) -> None:
        self._root = root
        self._left = _SCHEMAS

    def of(self, schema: object) -> str | None:
        self._left -= 1
        if self._left < 0 or not isinstance(schema, Mapping) or _is_resource(schema, self._root):
            return None
        kind = _kind_of_type(schema.get("type")) or _kind_of_values(schema)
        if kind is None and "$ref" in schema:
            kind = self.of(_target(self._root, schema["$ref"]))
        if kind is None:
            kind = next((one for one in map(self.of, _list(schema.get("allOf"))) if one is not None), None)
        for keyword in ("anyOf", "oneOf"):
            alternatives = _list(schema.get(keyword))
            if kind is None and alternatives:
                kind = _common(list(map(self.of, alternatives)))
        return kind


def _kind_of_type(kind: object) -> str | None:
    if isinstance(kind, str):
        return _TYPES.get(kind)
    return _common([_TYPES.get(one) if isinstance(one, str) else None for one in _list(kind)])


def _kind_of_values(schema: Mapping[str, object]) -> str | None:
    if "enum" not in schema and "const" not in schema:
        return None
    values = _list(schema["enum"]) if "enum" in schema else [schema["const"]]
    if not all(value is None or isinstance(value, str | int | float | bool) for value in values):
        return None
    return _NULL if values and all(value is None for value in values) else "enum"


def _common(kinds: list[str | None]) -> str | None:
    """The kind that all have, apart from null; None if there is none."""
    others = set(kinds) - {_NULL}
    if not others:
        return _NULL if kinds else None
    return others.pop() if len(others) == 1 else None


def _target(root: Mapping[str, object], reference: object) -> object:
    """The subschema that a `$ref` within the document names; None for every other one."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    found: object = root
    for part in reference[1:].split("/")[1:]:
        key = pointer_key(part)
        found = found.get(key) if isinstance(found, Mapping) and not _is_resource(found, root) else None
    return found


def _is_resource(schema: Mapping[str, object], root: Mapping[str, object]) -> bool:
    """True for a schema within `root` that has an `$id`: its references are relative to itself, so nothing in it is a fact."""
    return schema is not root and "$id" in schema


def pointer_key(part: str) -> str:
    """The key that a part of a JSON Pointer in a URI fragment names (RFC 6901, section 6)."""
    return _ESCAPED.sub(_unescaped, part).replace("~1", "/").replace("~0", "~")


def _unescaped(match: re.Match[str]) -> str:
    return bytes.fromhex(match[0].replace("%", "")).decode(errors="replace")


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


@lru_cache(maxsize=4096)  # compilation takes a hundred times as long as an evaluation, and its result is constant
def compile_condition(expression: str) -> CompiledCondition:
    """A compiled CEL program.

    Raises:
        InvalidSpec: the parser's reason, first line; or it is longer or nested deeper than CEL's recursion can take, or has
            more than one loop.
    """
    if len(expression) > MAX_CONDITION or nesting(expression) > MAX_NESTING:
        raise InvalidSpec(
            f"condition {expression[:60]!r}… has more than {MAX_CONDITION} characters or is nested more than {MAX_NESTING} levels "
            "deep; let a step compute it"
        )
    if _loops(expression) > 1:
        raise InvalidSpec(
            f"condition {expression[:60]!r}… has more than one of {', '.join(sorted(_LOOPS))}, which multiply its time and its "
            "memory; let a step compute it"
        )
    try:
        compiled: CompiledCondition = cel.compile(expression)
    except ValueError as error:
        raise InvalidSpec(f"condition {expression!r} is not CEL: {str(error).splitlines()[0]}") from error
    return compiled


def _loops(expression: str) -> int:
    """Number of CEL's macros that repeat their argument for each element of a list."""
    words = [match for match in _TOKEN.finditer(expression) if match.lastgroup != "space"]
    return sum(
        word.lastgroup == "name" and word[0] in _LOOPS and before[0] == "." and after[0] == "("
        for before, word, after in zip(words, words[1:], words[2:], strict=False)
    )


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
