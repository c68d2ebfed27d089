"""The named queries of `sql/queries.sql`.

Each begins with its name and its parameters in the order of `$1`, `$2`, …, with the types that PostgreSQL gives them, `?`
where None may be passed; then comes one sentence on what it is for. tests/store/test_queries.py compares all of it with
PostgreSQL and with the calls.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources

_HEADER = re.compile(r"^-- name: (\w+)\(([^)]*)\)\n-- (.+)\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A positional parameter; `type` is PostgreSQL's name for it."""

    name: str
    type: str
    nullable: bool


@dataclass(frozen=True, slots=True)
class Query:
    """A query and what it takes."""

    name: str
    description: str
    parameters: tuple[Parameter, ...]
    sql: str


def _parameter(text: str) -> Parameter:
    name, kind = text.split(maxsplit=1)
    return Parameter(name, kind.removesuffix("?"), kind.endswith("?"))


def parse(text: str) -> dict[str, Query]:
    """The queries of a file, by name.

    Raises:
        ValueError: a query without a list of parameters and a description, or a name that comes twice.
    """
    parts = _HEADER.split(text)[1:]
    queries: dict[str, Query] = {}
    for name, listed, description, body in zip(*(parts[column::4] for column in range(4)), strict=True):
        parameters = (" ".join(one.replace("\n--", " ").split()) for one in listed.split(","))
        taken = tuple(_parameter(one) for one in parameters if one)
        if name in queries:
            raise ValueError(f'query "{name}" comes twice')
        queries[name] = Query(name, description, taken, body.strip())
    if len(queries) != len(re.findall(r"^-- name:", text, re.MULTILINE)):
        raise ValueError("a query has no list of parameters, or no description")
    return queries


QUERIES = parse(resources.files("interlock.store").joinpath("sql", "queries.sql").read_text(encoding="utf-8"))
