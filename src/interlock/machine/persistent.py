"""Immutable mapping whose changed copy costs as much as the change, not as much as the mapping.

The newest version of a mapping holds a plain dict; an older one holds what the next version changed, and a pointer to it
(Baker, "Shallow binding makes functional arrays fast", 1991). Reading the newest version is a dict look-up, reading an older
one walks over the versions since, iterating over an older one or changing it copies the whole once. A run's states form such
a line, and drivers read the newest. So a state is a value, as `advance` promises, and an event costs what it changes.

Keys keep the order in which they were put, in every version. The versions of one mapping must be used by one thread at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Final, Generic, TypeVar, overload

V = TypeVar("V")
D = TypeVar("D")


class _Mark(Enum):
    ABSENT = 0


_ABSENT: Final = _Mark.ABSENT

_Revert = dict[str, tuple[int, V] | _Mark]
"""What a version had where the next one has something else: (position among the keys, value)."""


class PersistentMap(Mapping[str, V]):
    """Immutable; `edit` makes the next version of it. Equal to any mapping of the same items."""

    __slots__ = ("_content", "_newer", "_next", "_places", "_revert")

    # Positions stand apart from the values: a dict of numbers is nothing to the garbage collector, whose pauses grow with
    # what it has to look at.
    _content: dict[str, V] | None
    _places: dict[str, int]
    _newer: PersistentMap[V] | None
    _revert: _Revert[V]
    _next: int

    def __init__(self, items: Mapping[str, V] | None = None) -> None:
        self._content = dict(items or {})
        self._places = {key: place for place, key in enumerate(self._content)}
        self._newer = None
        self._next = len(self._content)

    @classmethod
    def of(cls, items: Mapping[str, V]) -> PersistentMap[V]:
        """The mapping itself if it is one of these, else a copy."""
        return items if isinstance(items, PersistentMap) else cls(items)

    def edit(self) -> MapEdit[V]:
        return MapEdit(self)

    def _apply(self, changes: Mapping[str, V | _Mark]) -> PersistentMap[V]:
        """The next version, which takes the dicts over; this one keeps the way back."""
        content, places, place = self._own(), self._places, self._next
        revert: _Revert[V] = {}
        for key, value in changes.items():
            before = places.get(key)
            revert[key] = _ABSENT if before is None else (before, content[key])
            if value is _ABSENT:
                if before is not None:
                    del content[key], places[key]
                continue
            content[key] = value
            if before is None:
                places[key] = place
                place += 1
        newer: PersistentMap[V] = PersistentMap.__new__(PersistentMap)
        newer._content, newer._places, newer._newer, newer._next = content, places, None, place
        self._content, self._newer, self._revert, self._places = None, newer, revert, {}
        return newer

    def _own(self) -> dict[str, V]:
        """The content as a dict; an older version makes its own from the newest one's and stands alone from then on."""
        if self._content is not None:
            return self._content
        reverts: list[_Revert[V]] = []
        one = self
        while one._content is None:
            reverts.append(one._revert)
            assert one._newer is not None
            one = one._newer
        content, places, back = dict(one._content), dict(one._places), False  # noqa: SLF001  of the same class
        for revert in reversed(reverts):
            for key, held in revert.items():
                if held is _ABSENT:
                    content.pop(key, None)
                    places.pop(key, None)
                else:
                    back = back or key not in content
                    places[key], content[key] = held
        if back:  # what was removed since stands at the end now
            content = {key: content[key] for key in sorted(content, key=places.__getitem__)}
        self._content, self._places, self._newer, self._revert = content, places, None, {}
        return content

    def _find(self, key: str) -> V | _Mark:
        one = self
        while (content := one._content) is None:
            if (held := one._revert.get(key)) is not None:
                return held if held is _ABSENT else held[1]
            assert one._newer is not None
            one = one._newer
        return content.get(key, _ABSENT)

    def position(self, key: str) -> int:
        """A number that grows along the order of the keys. Raises KeyError."""
        self._own()
        return self._places[key]

    def changed_until(self, later: PersistentMap[V]) -> set[str]:
        """Keys whose value or presence may differ between this version and a later one."""
        changed: set[str] = set()
        one: PersistentMap[V] = self
        while one is not later:
            if one._newer is None:  # of another line
                keys = self._own().keys() | later._own().keys()
                return {key for key in keys if self._find(key) != later._find(key)}
            changed.update(one._revert)
            one = one._newer
        return changed

    def __getitem__(self, key: str) -> V:
        value = self._find(key)
        if value is _ABSENT:
            raise KeyError(key)
        return value

    @overload
    def get(self, key: str, default: None = None, /) -> V | None: ...
    @overload
    def get(self, key: str, default: V, /) -> V: ...
    @overload
    def get(self, key: str, default: D, /) -> V | D: ...
    def get(self, key: str, default: D | None = None, /) -> V | D | None:
        value = self._find(key)
        return default if value is _ABSENT else value

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._find(key) is not _ABSENT

    def __iter__(self) -> Iterator[str]:
        return iter(self._own())

    def __reversed__(self) -> Iterator[str]:
        return reversed(self._own())

    def __len__(self) -> int:
        return len(self._own())

    def __bool__(self) -> bool:
        return bool(self._own())

    def __repr__(self) -> str:
        return repr(self._own())


def changed_keys(before: Mapping[str, V], after: Mapping[str, V]) -> set[str]:
    """Keys whose value or presence may differ; costs what changed if `after` is a later version of `before`."""
    return PersistentMap.of(before).changed_until(PersistentMap.of(after))


class MapEdit(Generic[V]):
    """Changes upon a `PersistentMap`, which stays as it is; `done` makes the next version."""

    __slots__ = ("_base", "_changes")

    def __init__(self, base: PersistentMap[V]) -> None:
        self._base = base
        self._changes: dict[str, V | _Mark] = {}

    def done(self) -> PersistentMap[V]:
        return self._base._apply(self._changes) if self._changes else self._base  # noqa: SLF001  the two are one thing

    def position(self, key: str) -> int:
        """As of the map; a key that is new in this edit comes after all others."""
        return self._base.position(key) if key in self._base else len(self._base) + (1 << 60)

    def __getitem__(self, key: str) -> V:
        value = self._changes.get(key)
        if value is None:
            return self._base[key]
        if value is _ABSENT:
            raise KeyError(key)
        return value

    def get(self, key: str) -> V | None:
        value = self._changes.get(key)
        if value is None:
            return self._base.get(key)
        return None if value is _ABSENT else value

    def __setitem__(self, key: str, value: V) -> None:
        self._changes[key] = value

    def pop(self, key: str) -> V | None:
        """Removes a key, if it is there; gives its value."""
        value = self.get(key)
        if key in self:
            self._changes[key] = _ABSENT
        return value

    def clear(self) -> None:
        for key in self:
            self._changes[key] = _ABSENT

    def __contains__(self, key: str) -> bool:
        value = self._changes.get(key)
        return key in self._base if value is None else value is not _ABSENT

    def __bool__(self) -> bool:
        return next(iter(self), None) is not None if self._changes else bool(self._base)

    def __iter__(self) -> Iterator[str]:
        """Keys in order; changes during the iteration are not seen."""
        changes = dict(self._changes)
        for key in self._base:
            if changes.get(key) is not _ABSENT:
                yield key
        for key, value in changes.items():
            if value is not _ABSENT and key not in self._base:
                yield key

    def items(self) -> Iterator[tuple[str, V]]:
        return ((key, self[key]) for key in self)

    def last(self) -> str | None:
        """The last of the keys."""
        for key in reversed(self._changes):
            if self._changes[key] is not _ABSENT and key not in self._base:
                return key
        return next((key for key in reversed(self._base) if self._changes.get(key) is not _ABSENT), None)
