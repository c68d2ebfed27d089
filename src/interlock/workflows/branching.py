"""Bounds on the alternatives of a JSON Schema, which multiply: by the schema alone, and along the levels of a value.

Eighteen levels of two alternatives each took the validator 35 s and 3 GB. The number of subschemas that it would compare with a
value, if it stopped at no failure, is calculated without comparing anything: equal pairs of subschema and value are counted by
one calculation, so the time grows with the sizes and not with their product over the levels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from interlock.workflows.facts import pointer_key

MAX_ALTERNATIVES = 1000
"""Maximum number of subschemas that apply to one place of a value."""
MAX_EXPLAINED, MAX_COMPARED = 20_000, 2_000_000
"""Maximum comparisons of a value for which the violated rule is searched, and for which it is validated."""
_PER_NODE = 100  # comparisons of each part of a value, if that is more
_SMALL = 5_000  # comparisons that a schema without recursion can cause for a path of a value: no calculation is needed
_MOST_PAIRS = 300_000  # of a subschema and a part of a value
_UNKNOWN = 100  # comparisons of a reference that is not resolved here

_SELF_LISTS = ("allOf", "anyOf", "oneOf")
_SELF = ("not", "if", "then", "else")
_SELF_MAPS = ("dependentSchemas", "dependencies")
_EACH_ITEM = ("items", "additionalItems", "unevaluatedItems", "contains")
_EACH_FIELD = ("additionalProperties", "unevaluatedProperties", "propertyNames")

Schema = Mapping[str, object]


class TooMany(Exception):
    """More comparisons than can be calculated."""


class Branching:
    """Comparisons that a schema causes.

    Raises:
        ValueError: its alternatives multiply beyond the bound at one place.
    """

    def __init__(self, schema: object) -> None:
        self._root = schema
        self._named: dict[str, Schema] = {}
        nodes = list(_schemas(schema))
        for node in nodes:
            for keyword, prefix in (("$anchor", "#"), ("$dynamicAnchor", "#"), ("$id", ""), ("id", "")):
                name = node.get(keyword)
                if isinstance(name, str):
                    self._named.setdefault(prefix + name, node)
        memo: dict[tuple[int, int], int] = {}
        try:
            excessive = any(self._cost(node, None, memo) > MAX_ALTERNATIVES for node in nodes)
        except (TooMany, RecursionError):
            raise ValueError("it is nested too deeply, or has too many parts") from None
        if excessive:
            raise ValueError(
                f"its alternatives (anyOf, oneOf, allOf and references) multiply to more than {MAX_ALTERNATIVES} at one place; "
                "use fewer levels"
            )
        self._simple = self._is_simple()

    def comparisons(self, value: object) -> int:
        """An upper bound of the comparisons for a value, relative to what is allowed for its size; 0 if it is surely small.

        Returns:
            At most `MAX_EXPLAINED` if the violated rule may be searched, at most `MAX_COMPARED` if it may be validated.
        """
        if self._simple:
            return 0
        memo: dict[tuple[int, int], int] = {}
        try:
            cost = self._cost(self._root, value, memo)
        except (TooMany, RecursionError):
            return MAX_COMPARED + 1
        return 0 if cost <= _PER_NODE * _size(value) else cost

    def _is_simple(self) -> bool:
        """True if no schema applies below itself, and the whole is small with all references written out."""
        sizes: dict[int, int] = {}
        under_way: set[int] = set()

        def size(node: object) -> int:
            if not isinstance(node, Mapping):
                return 1
            if id(node) in under_way:
                raise TooMany
            if id(node) not in sizes:
                under_way.add(id(node))
                below = [*self._here(node), *(sub for sub in _children(node))]
                sizes[id(node)] = 1 + sum(map(size, below))
                under_way.discard(id(node))
            return sizes[id(node)]

        try:
            return size(self._root) <= _SMALL
        except (TooMany, RecursionError):
            return False

    def _cost(self, node: object, value: object, memo: dict[tuple[int, int], int]) -> int:
        if not isinstance(node, Mapping):
            return 1
        key = (id(node), id(value) if isinstance(value, dict | list) else 0)
        known = memo.get(key)
        if known is None:
            if len(memo) >= _MOST_PAIRS:
                raise TooMany
            memo[key] = 1  # of a reference to itself at the same place, which the validator ends too
            known = 1 + sum(self._cost(sub, value, memo) for sub in self._here(node))
            known += sum(self._cost(sub, part, memo) for sub, part in _below(node, value))
            memo[key] = known
        return known

    def _here(self, node: Schema) -> Iterator[object]:
        """Subschemas that apply to the same place."""
        for keyword in ("$ref", "$dynamicRef", "$recursiveRef"):
            if isinstance(node.get(keyword), str):
                yield self._target(str(node[keyword]))
        for keyword in _SELF_LISTS:
            yield from _list(node.get(keyword))
        for keyword in _SELF:
            if keyword in node:
                yield node[keyword]
        for keyword in _SELF_MAPS:
            yield from _values(node.get(keyword))

    def _target(self, reference: str) -> object:
        before, _, fragment = reference.partition("#")
        found: object = self._named.get(before) if before else self._root
        if fragment and not fragment.startswith("/"):
            found = self._named.get(f"#{fragment}")
        for part in fragment.split("/")[1:]:
            key = pointer_key(part)
            if isinstance(found, Mapping):
                found = found.get(key)
            elif isinstance(found, list) and key.isascii() and key.isdigit() and int(key) < len(found):
                found = found[int(key)]
            else:
                found = None
        return found if found is not None else _UNRESOLVED


_UNRESOLVED: Schema = {"allOf": [True] * _UNKNOWN}


def _below(node: Schema, value: object) -> Iterator[tuple[object, object]]:
    """Subschemas that apply to parts of a value, with the parts."""
    if isinstance(value, dict):
        properties = node.get("properties")
        declared = properties if isinstance(properties, Mapping) else {}
        patterns = list(_values(node.get("patternProperties")))
        each = [node[keyword] for keyword in _EACH_FIELD if isinstance(node.get(keyword), Mapping)]
        for name, part in value.items():
            if name in declared:
                yield declared[name], part
            yield from ((sub, part) for sub in patterns)
            yield from ((sub, part) for sub in each)
    elif isinstance(value, list):
        places = [*_list(node.get("prefixItems")), *_list(node.get("items"))]
        each = [node[keyword] for keyword in _EACH_ITEM if isinstance(node.get(keyword), Mapping)]
        yield from zip(places, value, strict=False)
        for part in value:
            yield from ((sub, part) for sub in each)


def _children(node: Schema) -> Iterator[object]:
    """Subschemas that apply to any part of a value."""
    for keyword in ("properties", "patternProperties"):
        yield from _values(node.get(keyword))
    for keyword in ("prefixItems", "items"):
        yield from _list(node.get(keyword))
    for keyword in (*_EACH_FIELD, *_EACH_ITEM):
        if isinstance(node.get(keyword), Mapping):
            yield node[keyword]


def _schemas(schema: object) -> Iterator[Schema]:
    """All objects in a schema document."""
    below: list[object] = [schema]
    while below:
        part = below.pop()
        if isinstance(part, Mapping):
            yield part
            below += part.values()
        elif isinstance(part, list):
            below += part


def _size(value: object) -> int:
    size, below = 0, [value]
    while below:
        part = below.pop()
        size += 1
        if isinstance(part, dict):
            below += part.values()
        elif isinstance(part, list):
            below += part
    return size


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _values(value: object) -> Iterable[object]:
    return value.values() if isinstance(value, Mapping) else ()
