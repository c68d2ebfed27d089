"""Spans as the database has them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from interlock.base.errors import Denied, Unavailable
from interlock.store import database as database_module
from interlock.store.database import Database
from interlock.store.migrate import app_url
from interlock.telemetry import names
from interlock.telemetry.spans import TraceIds, current_ids
from interlock.telemetry.tracing import Tracing

if TYPE_CHECKING:
    from conftest import Server, Tenant

MASTER_KEY = bytes(range(32))
Spans = dict[str, dict[str, Any]]


@pytest.fixture
async def tracing(database: Database) -> AsyncIterator[Tracing]:
    tracing = Tracing(database, service="test")
    yield tracing
    await tracing.close()


@pytest.fixture
def orgs(tenants: tuple[Tenant, Tenant]) -> tuple[str, str]:
    return tenants[0].org_id, tenants[1].org_id


def of(org: str, **attributes: Any) -> dict[str, Any]:
    return {names.ORG_ID: org, **attributes}


def stored(owner: psycopg.Connection[Any]) -> Spans:
    """By name; every name is used once."""
    with owner.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        rows = cursor.execute("select * from spans").fetchall()
    assert len({row["name"] for row in rows}) == len(rows)
    return {row["name"]: row for row in rows}


async def test_spans_are_nested_and_keep_their_attributes(
    tracing: Tracing, owner: psycopg.Connection[Any], orgs: tuple[str, str]
) -> None:
    with tracing.span("outer", of(orgs[0], n=1)) as outer:
        with tracing.span("inner", of(orgs[0], text="x", ratio=0.5, flag=True, list=["a", "b"])):
            pass
        outer.set_attribute("late", "yes")
    with tracing.span("another", of(orgs[0])):
        pass
    await tracing.flush()
    spans = stored(owner)
    assert spans["outer"]["parent_id"] is None
    assert spans["inner"]["parent_id"] == spans["outer"]["span_id"]
    assert spans["inner"]["trace_id"] == spans["outer"]["trace_id"] != spans["another"]["trace_id"]
    assert spans["another"]["parent_id"] is None
    assert (
        spans["outer"]["start_ns"] <= spans["inner"]["start_ns"] <= spans["inner"]["end_ns"] <= spans["outer"]["end_ns"]
    )
    inner = spans["inner"]["attributes"]
    assert {key: inner[key] for key in ("text", "ratio", "flag", "list")} == {
        "text": "x", "ratio": 0.5, "flag": True, "list": ["a", "b"],
    }  # fmt: skip
    assert spans["outer"]["attributes"]["late"] == "yes"
    for span in spans.values():
        assert span["ok"] is span["attributes"][names.SUCCESS] is True
        assert span["attributes"][names.LATENCY_MS] == pytest.approx(
            (span["end_ns"] - span["start_ns"]) / 1e6, abs=0.001
        )
        assert (len(span["trace_id"]), len(span["span_id"])) == (32, 16)


async def test_a_runs_spans_hang_on_a_root_whose_ids_were_given_out_before(
    tracing: Tracing, database: Database, owner: psycopg.Connection[Any], orgs: tuple[str, str]
) -> None:
    ids = TraceIds.new()
    with tracing.span("first step", of(orgs[0]), parent=ids):
        pass
    other_process = Tracing(database, service="test")  # which took the run over
    with other_process.span("second step", of(orgs[0]), parent=ids):
        pass
    other_process.emit("run", ids, start=1000.5, end=1002.75, ok=False, attributes=of(orgs[0], n=3))
    with other_process.span("afterwards", of(orgs[0])):
        pass
    await tracing.flush()
    await other_process.close()
    spans = stored(owner)
    root = spans["run"]
    assert (root["trace_id"], root["span_id"], root["parent_id"]) == (ids.trace_id, ids.span_id, None)
    assert (root["start_ns"], root["end_ns"], root["ok"]) == (1_000_500_000_000, 1_002_750_000_000, False)
    assert root["attributes"] == of(orgs[0], n=3) | {names.SUCCESS: False, names.LATENCY_MS: 2250.0}
    for name in ("first step", "second step"):
        assert (spans[name]["trace_id"], spans[name]["parent_id"]) == (ids.trace_id, ids.span_id)
    assert spans["afterwards"]["trace_id"] != ids.trace_id


async def test_a_root_is_not_the_child_of_what_happens_to_run(
    tracing: Tracing, owner: psycopg.Connection[Any], orgs: tuple[str, str]
) -> None:
    ids = TraceIds.new()
    with tracing.span("request", of(orgs[0])):
        tracing.emit("run", ids, start=1.0, end=2.0, ok=True, attributes=of(orgs[0]))
        with tracing.span("inside", of(orgs[0])):
            pass
    await tracing.flush()
    spans = stored(owner)
    assert (spans["run"]["trace_id"], spans["run"]["parent_id"]) == (ids.trace_id, None)
    assert spans["inside"]["parent_id"] == spans["request"]["span_id"]


async def test_tasks_side_by_side_do_not_mix(
    tracing: Tracing, owner: psycopg.Connection[Any], orgs: tuple[str, str]
) -> None:
    async def run(n: int) -> TraceIds:
        ids = TraceIds.new()
        with tracing.span(f"step {n}", of(orgs[0]), parent=ids):
            await asyncio.sleep(0)
            with tracing.span(f"call {n}", of(orgs[0])):
                await asyncio.sleep(0)
        tracing.emit(f"run {n}", ids, start=1.0, end=2.0, ok=True, attributes=of(orgs[0]))
        return ids

    for n, ids in enumerate(await asyncio.gather(*map(run, range(20)))):
        await tracing.flush()
        spans = stored(owner)
        assert spans[f"run {n}"]["span_id"] == spans[f"step {n}"]["parent_id"] == ids.span_id
        assert spans[f"call {n}"]["parent_id"] == spans[f"step {n}"]["span_id"]
        assert {spans[f"{what} {n}"]["trace_id"] for what in ("run", "step", "call")} == {ids.trace_id}


@pytest.mark.parametrize(
    ("error", "code"),
    [(Denied("for ada@example.com"), "denied"), (ValueError("of 4111 1111 1111 1111"), "ValueError")],
)
async def test_a_failure_is_told_by_code_and_never_by_its_words(
    tracing: Tracing, owner: psycopg.Connection[Any], orgs: tuple[str, str], error: Exception, code: str
) -> None:
    with pytest.raises(type(error)), tracing.span("outer", of(orgs[0])), tracing.span("inner", of(orgs[0])):
        raise error
    with pytest.raises(asyncio.CancelledError), tracing.span("cut off", of(orgs[0])):
        raise asyncio.CancelledError
    await tracing.flush()
    spans = stored(owner)
    for name in ("outer", "inner"):
        assert spans[name]["attributes"][names.ERROR_TYPE] == code
        assert spans[name]["ok"] is spans[name]["attributes"][names.SUCCESS] is False
    assert spans["cut off"]["attributes"][names.ERROR_TYPE] == "CancelledError"
    assert str(error) not in str(spans)


async def test_an_organisation_sees_its_own_spans_only(
    tracing: Tracing, database: Database, orgs: tuple[str, str]
) -> None:
    ids = TraceIds.new()  # one trace id for both: not even that may lead across
    for org in orgs:
        with tracing.span(f"of {org}", of(org), parent=ids):
            pass
    with tracing.span("of nobody", {}):
        pass
    await tracing.flush()  # one batch writes for both
    for org in orgs:
        rows = await database.rows("get_spans", ids.trace_id, org=org)
        assert [row["name"] for row in rows] == [f"of {org}"]
    assert await database.rows("get_spans", ids.trace_id) == []
    assert await database.rows("get_spans", ids.trace_id, org="initech") == []


async def test_a_span_that_no_table_takes_does_not_hold_up_the_others(
    tracing: Tracing, owner: psycopg.Connection[Any], orgs: tuple[str, str]
) -> None:
    with tracing.span("odd", of(orgs[0], stderr="nul \0 and half \ud800", list=["\0"])):
        pass
    with tracing.span("plain", of(orgs[0])):
        pass
    await tracing.flush()
    spans = stored(owner)
    assert set(spans) == {"odd", "plain"}
    assert "nul" in spans["odd"]["attributes"]["stderr"]


async def test_spans_are_written_without_being_asked_and_at_the_end(
    database: Database, owner: psycopg.Connection[Any], orgs: tuple[str, str]
) -> None:
    tracing = Tracing(database, service="test")
    tracing.start()
    with tracing.span("first", of(orgs[0])):
        pass
    async with asyncio.timeout(180):
        while "first" not in stored(owner):
            await asyncio.sleep(0.02)
    with tracing.span("last", of(orgs[0])):
        pass
    await tracing.close()
    assert set(stored(owner)) == {"first", "last"}


async def test_spans_wait_for_a_database_that_is_away(private_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    url = private_server.url
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute("insert into orgs values ('acme', 'Acme')")
    database = Database(app_url(url, MASTER_KEY), pool_size=2)
    await database.open()
    tracing = Tracing(database, service="test")
    with tracing.span("first", of("acme")):
        pass
    await asyncio.to_thread(private_server.crash)
    monkeypatch.setattr(database_module, "_WAITS", (0.0,) * len(database_module._WAITS))
    with pytest.raises(Unavailable):
        await tracing.flush()
    with tracing.span("second", of("acme")):
        pass
    await asyncio.to_thread(private_server.start)
    await tracing.flush()
    await tracing.close()
    await database.close()
    with psycopg.connect(url, autocommit=True) as owner:
        assert list(stored(owner)) == ["first", "second"]


async def test_the_ids_of_the_running_code_are_those_of_its_span(tracing: Tracing, orgs: tuple[str, str]) -> None:
    assert current_ids() is None
    ids = TraceIds.new()
    with tracing.span("outer", of(orgs[0]), parent=ids) as span:
        here = current_ids()
        assert here is not None
        assert here.trace_id == ids.trace_id
        assert here.span_id == span.span_id != ids.span_id
    assert current_ids() is None
