"""What queries.sql says about each query, against PostgreSQL and against the calls in the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

import interlock
from interlock.store.database import Database
from interlock.store.queries import QUERIES, parse

CODE = [path.read_text(encoding="utf-8") for path in sorted(Path(interlock.__file__).parent.rglob("*.py"))]
CALL = re.compile(r"(\bdatabase\.(row|rows|execute)|_database\.(row|rows|execute)|\._ask)$")
SQL = {
    "select",
    "insert",
    "update",
    "delete",
    "create",
    "alter",
    "grant",
    "revoke",
    "begin",
    "commit",
    "rollback",
    "pragma",
}


async def test_parameters_are_those_that_the_server_finds(database: Database) -> None:
    assert len(QUERIES) > 80
    async with database.connection() as connection:
        for name, query in QUERIES.items():
            try:
                statement = await connection.prepare(query.sql)
            except asyncpg.PostgresError as error:
                pytest.fail(f"{name}: {error}")
            found = [
                await connection.fetchval("select format_type($1, null)", kind.oid)
                for kind in statement.get_parameters()
            ]
            assert [parameter.type for parameter in query.parameters] == found, name


def test_each_query_says_what_it_is_for() -> None:
    descriptions = [query.description for query in QUERIES.values()]
    assert all(one[0].isupper() and one.endswith(".") for one in descriptions), descriptions
    assert len(set(descriptions)) == len(descriptions)
    for name, query in QUERIES.items():
        names = [parameter.name for parameter in query.parameters]
        assert len(set(names)) == len(names), f"{name}: a parameter comes twice"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("-- name: a\nselect 1\n", "no list of parameters"),
        ("-- name: a()\nselect 1\n", "no description"),
        ("-- name: a()\n-- One.\nselect 1\n\n-- name: a()\n-- One.\nselect 1\n", "comes twice"),
    ],
)
def test_a_query_without_its_header_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse(text)


def wrong_calls(source: str) -> Iterator[str]:
    """Calls of `Database.row`, `rows` and `execute` that name no query, or pass it what it does not take."""
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Subscript)
            and ast.unparse(node.value) == "QUERIES"
            and isinstance(node.slice, ast.Constant)
        ):
            if node.slice.value not in QUERIES:
                yield f"{ast.unparse(node)}: no such query"
            continue
        if not (isinstance(node, ast.Call) and CALL.search(ast.unparse(node.func)) and node.args):
            continue
        name = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
        if not isinstance(name, str) or name.partition(" ")[0] in SQL:
            continue  # a variable, or a statement
        if name not in QUERIES:
            yield f"{ast.unparse(node)}: no such query"
            continue
        parameters, given = QUERIES[name].parameters, node.args[1:]
        starred = any(isinstance(one, ast.Starred) for one in given)
        if len(given) > len(parameters) if starred else len(given) != len(parameters):
            yield f"{ast.unparse(node)}: it takes {len(parameters)}"
        for parameter, one in zip(parameters, given, strict=False):
            if isinstance(one, ast.Starred):
                break
            if isinstance(one, ast.Constant) and one.value is None and not parameter.nullable:
                yield f"{ast.unparse(node)}: {parameter.name} may not be None"


def test_calls_name_a_query_and_pass_what_it_takes() -> None:
    assert [wrong for source in CODE for wrong in wrong_calls(source)] == []


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        ("database.row('get_efect', run, step)", "no such query"),
        ("connection.fetch(QUERIES['get_efect'].sql, run, step)", "no such query"),
        ("database.row('get_effect', run)", "it takes 2"),
        ("database.rows('get_effect', run, *rest, step, more)", "it takes 2"),
        ("database.execute('batch_ended', None, org=org)", "batch_id may not be None"),
    ],
)
def test_a_wrong_call_is_found(call: str, problem: str) -> None:
    (found,) = wrong_calls(call)
    assert found.endswith(problem)


def test_every_query_is_used() -> None:
    texts = {
        node.value for source in CODE for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)
    }  # fmt: skip
    assert QUERIES.keys() - texts == set()
