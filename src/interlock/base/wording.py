"""Validation faults in plain words, for settings, definition files and request bodies.

pydantic's messages name Python's types. These name JSON's: string, number, list, object, true or false. A value is repeated only
where the rule is about a single number or a short string, because a value of the wrong kind may be a whole secret, such as a URL.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from pydantic_core import ErrorDetails

_SHOWN = 40  # characters of a value in a message
_UNITS = {"ms": 0.001, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|sec|s|min|m|h|d)")

_MUST = {
    "string": "a string",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "dict": "an object",
    "model": "an object",
    "mapping": "an object",
    "list": "a list",
    "tuple": "a list",
    "none": "null",
    "path": "a path",
}
_LIMITS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}
_LENGTHS = {
    "string_too_short": ("at least", "min_length", "character"),
    "string_too_long": ("at most", "max_length", "character"),
    "too_short": ("at least", "min_length", "entry"),
    "too_long": ("at most", "max_length", "entry"),
}


def kind_of(value: object) -> str:
    """The JSON type of a value, with its article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an object" if isinstance(value, Mapping) else "a list"


def shown(value: object) -> str:
    """A value and its JSON type: `5 (a number)`, `"x" (a string)`; of lists, objects and long strings the type only."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    kind = kind_of(value)
    if isinstance(value, str) and not (value.isprintable() and len(value) <= _SHOWN):
        return kind
    return f"{json.dumps(value, ensure_ascii=False)} ({kind})" if isinstance(value, str | int | float) else kind


def in_words(fault: ErrorDetails) -> str:
    """The fault of a value, and what is accepted: `is "x" (a string); must be a number`."""
    kind, value, limits = fault["type"], fault.get("input"), fault.get("ctx", {})
    if kind == "missing":
        return "is required; add it"
    if kind == "extra_forbidden":
        return "is not a known field; remove it or check the spelling"
    if kind in _LIMITS:
        words, name = _LIMITS[kind]
        return f"is {value}; must be {words} {_number(limits[name])}"
    if kind in _LENGTHS:
        words, name, unit = _LENGTHS[kind]
        many = unit if limits[name] == 1 else {"entry": "entries"}.get(unit, f"{unit}s")
        return f"must have {words} {limits[name]} {many}"
    if kind in {"literal_error", "enum"}:
        return f"is {shown(value)}; must be {limits['expected']}"
    if kind == "string_pattern_mismatch":
        return f"is {shown(value)}; must match {limits['pattern']}"
    if kind == "finite_number":
        return "must be a finite number"
    must = (
        _MUST.get(kind.split("_")[0])
        if kind.endswith(("_type", "_parsing", "_from_float", "_attributes_type"))
        else None
    )
    if must is None:
        return str(fault["msg"]).removeprefix("Value error, ")
    if kind.startswith(("dict", "model", "mapping")) and isinstance(value, str):
        return f"is a string; must be {must}"
    return f"is {shown(value)}; must be {must}{_in_seconds(value) if must.endswith('number') else ''}"


def _number(limit: object) -> str:
    return f"{limit:g}" if isinstance(limit, float) and abs(limit) < 1e6 else str(limit)


def _in_seconds(value: object) -> str:
    """For a duration with a unit: how it is written, because every duration is a number of seconds."""
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    return f" of seconds: write {float(match[1]) * _UNITS[match[2]]:g}" if match else ""
