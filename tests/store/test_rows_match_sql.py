"""The row classes of a commit and the record lists of the SQL that reads them: same names, same types, in both directions.

PostgreSQL reads a key that is missing as NULL and ignores one that it does not know, so it would not notice either.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import field, fields, make_dataclass
from importlib import resources

import pytest

from interlock.store import rows
from interlock.store.commit import PARTS

ENTRY = "settle_v1"
INTEGERS = frozenset({"smallint", "integer", "bigint"})
SQL_TYPES: dict[str, frozenset[str]] = {
    **dict.fromkeys(("str", "RunStatus", "EngineName", "EffectStatus"), frozenset({"text"})),
    **dict.fromkeys(
        ("ReviewPurpose", "ReviewDecision", "DeadLetterPurpose", "DeadLetterDecision"), frozenset({"text"})
    ),
    "int": INTEGERS,
    "float": frozenset({"double precision"}),
    "bool": frozenset({"boolean"}),
    "list[str]": frozenset({"text[]"}),
    **dict.fromkeys(("RefJson", "RunVault", "Mapping[str, Json]"), frozenset({"jsonb"})),
}
FUNCTION = re.compile(r"create (?:or replace )?function (\w+)\(([^)]*)\).*?\$\$(.*?)\$\$", re.DOTALL)


def files(folder: str) -> str:
    directory = resources.files("interlock.store").joinpath("sql", folder)
    texts = sorted((path.name, path.read_text(encoding="utf-8")) for path in directory.iterdir())
    return "\n".join(re.sub(r"--.*", "", text) for _, text in texts)


SQL = files("functions")
QUERIES = re.sub(r"--(?! name:).*", "", resources.files("interlock.store").joinpath("sql", "queries.sql").read_text())


def closing(text: str, start: int) -> int:
    """The index of the parenthesis that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if depth == 0:
            return index
    raise ValueError("no closing parenthesis")


def split(text: str) -> list[str]:
    """At the commas that are in no parentheses or brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def record_lists(body: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Every `jsonb_to_recordset(argument) as x(name type, …)` of a text: the argument, and the columns with their types."""
    for call in re.finditer(r"jsonb_to_record(?:set)?\(", body):
        end = closing(body, call.end() - 1)
        alias = re.match(r"\s+as\s+\w+\(", body[end + 1 :])
        assert alias is not None, f"no list of columns after {body[call.start() : end + 1]}"
        start = end + 1 + alias.end() - 1
        columns = (" ".join(column.split()).split(" ", 1) for column in split(body[start + 1 : closing(body, start)]))
        yield body[call.end() : end].strip(), dict(columns)


def parts_in(expression: str) -> set[str]:
    return set(re.findall(r"batch -> '(\w+)'", expression))


def problems(sql: str, parts: Mapping[str, type]) -> list[str]:
    """What differs between the classes of a batch and the functions that `settle_v1` calls with its parts."""
    functions = {
        name: ([one.split()[0] for one in split(given) if one], body) for name, given, body in FUNCTION.findall(sql)
    }
    _, entry = functions[ENTRY]
    found = []
    named = set(re.findall(r"batch (?:->>?|\?) '(\w+)'", entry)) - {"orgs"}
    for names in re.findall(r"batch \?[|&] array\[([^]]*)\]", entry):
        named |= set(re.findall(r"'(\w+)'", names))
    found += [f"{part}: no class" for part in named - parts.keys()]
    # What each parameter of each function may hold.
    given: dict[tuple[str, str], set[str]] = defaultdict(set)
    for call in re.finditer(r"(settle_v1_\w+)\(", entry):
        values = split(entry[call.end() : closing(entry, call.end() - 1)])
        for parameter, value in zip(functions[call[1]][0], values, strict=True):
            given[call[1], parameter] |= parts_in(value)
    read: dict[str, dict[str, str]] = defaultdict(dict)
    for name, (_, body) in functions.items():
        for argument, columns in record_lists(body):
            holds = given.get((name, argument), set())
            if not holds:
                found.append(f"{name}: nobody knows what is in {argument}")
            for part in holds & parts.keys():
                known = {one.name: str(one.type).removesuffix(" | None") for one in fields(parts[part])}
                for column, kind in columns.items():
                    if column not in known:
                        found.append(f"{name}: {part}.{column} is not in {parts[part].__name__}")
                    elif kind not in SQL_TYPES[known[column]]:
                        found.append(f"{name}: {part}.{column} is {kind} there and {known[column]} here")
                read[part] |= columns
    for part, row in parts.items():
        found += [f"{part}.{one.name} is not read" for one in fields(row) if one.name not in read[part]]
    return found


def test_every_field_is_read_and_every_column_is_written() -> None:
    assert problems(SQL, PARTS) == []


def test_no_record_list_is_left_out() -> None:
    lists = [columns for _, _, body in FUNCTION.findall(SQL) for _, columns in record_lists(body)]
    assert len(lists) == len(re.findall(r"jsonb_to_record", SQL)) > len(PARTS)
    assert all(lists)


def test_queries_read_what_is_written() -> None:
    (query,) = re.findall(r"-- name: answer_batched_calls(.*?)-- name:", QUERIES, re.DOTALL)
    ((_, columns),) = record_lists(query)
    assert columns == {"call_id": "text", "result": "jsonb"}
    assert {one.name for one in fields(rows.BatchedAnswer)} == columns.keys()
    assert QUERIES.count("jsonb_to_record") == 1, "compare that one too"


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("wake_at double precision", "wake_time double precision", "released.wake_time is not in ReleasedRun"),
        ("wake_at double precision", "wake_time double precision", "released.wake_at is not read"),
        ("as c(run_id text, parked boolean)", "as c(run_id text)", "crashed.parked is not read"),
        ("as c(run_id text, parked boolean)", "as c(run_id text, parked text)", "crashed.parked is text there and bool here"),
        ("jsonb_to_recordset(places)", "jsonb_to_recordset(plaaces)", "settle_v1_places: nobody knows what is in plaaces"),
        ("settle_v1_crashed(batch -> 'crashed')", "settle_v1_crashed(batch -> 'runs')", "runs.parked is not in RunUpdate"),
        ("batch ? 'outbox'", "batch ? 'outbax'", "outbax: no class"),
    ],
)  # fmt: skip
def test_sql_that_differs_is_found(old: str, new: str, problem: str) -> None:
    assert old in SQL
    assert any(one.endswith(problem) for one in problems(SQL.replace(old, new), PARTS))


def test_a_class_that_differs_is_found() -> None:
    kept = [(one.name, one.type) for one in fields(rows.ReleasedRun) if one.name not in {"wake_at", "failed"}]
    # As its author may have meant it: a misspelt field, and one that is missing.
    odd = make_dataclass("Odd", [*kept, ("wake_time", "float | None", field(default=None))], kw_only=True)
    found = problems(SQL, {**PARTS, "released": odd})
    assert sorted(one.rpartition("released")[2] for one in found) == [
        ".failed is not in Odd", ".wake_at is not in Odd", ".wake_time is not read",
    ]  # fmt: skip
