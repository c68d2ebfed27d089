"""Decorator of a class with many lists of which a value uses few."""

from __future__ import annotations

from dataclasses import field
from typing import TypeVar, dataclass_transform, get_origin, get_type_hints

T = TypeVar("T")


@dataclass_transform(field_specifiers=(field,))
def with_lists_on_first_use(kind: type[T]) -> type[T]:
    """A dataclass whose lists are made when they are first asked for: a step's commit uses six of its 48."""
    lists = frozenset(name for name, hint in get_type_hints(kind).items() if get_origin(hint) is list)
    names = get_type_hints(kind).keys()
    for name in lists:
        delattr(kind, name)

    def init(self: T, org_id: str, **given: object) -> None:
        if not given.keys() <= names:
            raise TypeError(f"a commit has no {', '.join(sorted(given.keys() - names))}")
        vars(self).update(given, org_id=org_id)

    def absent(self: T, name: str) -> list[object]:
        if name not in lists:
            raise AttributeError(name)
        made: list[object] = []
        vars(self)[name] = made
        return made

    kind.__init__ = init  # type: ignore[method-assign, assignment]
    kind.__getattr__ = absent  # type: ignore[attr-defined]
    return kind
