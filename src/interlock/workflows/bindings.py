"""Bindings: sources of a step's values. `$input.text` and `$steps.classify.summary` are references; all else is literal.

Inside a map, `$item` is the item and `$index` its position; inside a loop, `$index` is the iteration (both from 0) and
`$last.draft.text` reads the previous iteration, null in the first.

A binding moves values and does not compute: conditions read facts (`facts.py`), and tools do everything else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Literal, get_args

from interlock.base.json import Json
from interlock.base.values import value

_INDEX = re.compile(r"[0-9]{1,9}\Z")
_REFERENCE = re.compile(
    r"^\$(input|run|item|index|(steps|last)\.(?P<step>[a-z][a-z0-9_]*))(?P<path>(\.[A-Za-z0-9_-]+)*)\Z"
)


Root = Literal["input", "run", "item", "index", "steps", "last"]
_ROOTS: Mapping[str, Root] = {name: name for name in get_args(Root)}


@value(frozen=True, slots=True)
class Reference:
    """A parsed `$…` string: its source, and the fields and indices below it."""

    root: Root
    step: str | None
    path: tuple[str, ...]
    text: str


def parse(value: object) -> Reference | None:
    """The reference in a string, or None for a literal.

    Raises:
        ValueError: a string starts with `$` but is not a reference (write `$$` for a literal dollar).
    """
    if not isinstance(value, str) or not value.startswith("$") or value.startswith("$$"):
        return None
    return _parsed(value)


@lru_cache(maxsize=4096)  # there are few definitions, and every step reads its bindings twice
def _parsed(value: str) -> Reference:
    match = _REFERENCE.match(value)
    if match is None:
        raise ValueError(
            f'"{value}" is not a reference; write $input.field, $steps.id.field, $run.id, $item, $index, $last.id.field, '
            "or $$ for a literal $"
        )
    root = _ROOTS[match[2] if match["step"] else match[1]]
    return Reference(root, match["step"], tuple(part for part in match["path"].split(".") if part), value)


def references(tree: object) -> Iterator[Reference]:
    """Every reference in a binding tree."""
    if isinstance(tree, dict):
        for value in tree.values():
            yield from references(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from references(value)
    else:
        reference = parse(tree)
        if reference is not None:
            yield reference


def resolve(tree: Json, lookup: Callable[[Reference], Json]) -> Json:
    """The tree with every reference replaced by what `lookup` returns for it."""
    if isinstance(tree, dict):
        return {key: resolve(value, lookup) for key, value in tree.items()}
    if isinstance(tree, list):
        return [resolve(value, lookup) for value in tree]
    reference = parse(tree)
    if reference is not None:
        return lookup(reference)
    return tree[1:] if isinstance(tree, str) and tree.startswith("$$") else tree


def dig(value: Json, path: tuple[str, ...]) -> Json:
    """The part of a value at a path; None where it is absent."""
    for part in path:
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and _INDEX.match(part) and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value
