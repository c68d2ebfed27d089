"""The pool: every query has a scope, no scope leaks to the next query, and a broken server is waited for."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import pytest

from interlock.base.errors import InvalidInput, Unavailable
from interlock.store import database as module
from interlock.store.database import Database
from interlock.store.migrate import app_url
from interlock.store.queries import QUERIES, Query

from .conftest import MASTER_KEY

if TYPE_CHECKING:
    from conftest import Server, Tenant


@pytest.fixture(autouse=True)
def _list_orgs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A query whose rows say for which organisations it was made."""
    query = Query("list_orgs", "The organisations in scope.", (), "select org_id, name from orgs order by org_id")
    monkeypatch.setitem(QUERIES, "list_orgs", query)


def seen(rows: list[Any]) -> set[str]:
    return {row["org_id"] for row in rows}


async def test_a_connection_that_was_another_organisations_shows_ours_only(
    database_url: str, tenants: tuple[Tenant, Tenant]
) -> None:
    ours, theirs = (tenant.org_id for tenant in tenants)
    database = Database(database_url, pool_size=2)
    await database.open()
    chance = random.Random(3)

    async def ask(scope: str) -> None:
        wanted = {scope} if scope else set()
        if chance.random() < 0.3:  # one that fails, and one that leaves a transaction open, come back to the pool too
            with pytest.raises(asyncpg.PostgresError):
                async with database.connection(scope) as connection:
                    await connection.execute("select 1 / 0")
            async with database.connection(scope) as connection:
                await connection.execute("begin")
                await connection.execute("select set_config('interlock.orgs', $1, true)", f"{ours},{theirs}")
        assert seen(await database.rows("list_orgs", org=scope)) == wanted

    await asyncio.gather(*(ask(chance.choice(["", ours, theirs])) for _ in range(120)))
    async with database.connection(ours, theirs) as connection:
        assert seen(await connection.fetch(QUERIES["list_orgs"].sql)) == {ours, theirs}
    assert seen(await database.rows("list_orgs")) == set()
    await database.close()


async def test_a_query_outlives_a_restart_of_the_server(private_server: Server) -> None:
    url = private_server.url
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute("insert into orgs values ('acme', 'Acme')")
    database = Database(app_url(url, MASTER_KEY), pool_size=3)
    await database.open()
    assert seen(await database.rows("list_orgs", org="acme")) == {"acme"}
    await asyncio.to_thread(private_server.restart, "immediate")
    answers = await asyncio.gather(*(database.rows("list_orgs", org="acme") for _ in range(9)))
    assert [seen(rows) for rows in answers] == [{"acme"}] * 9
    await asyncio.to_thread(private_server.crash)
    query = asyncio.create_task(database.rows("list_orgs", org="acme"))
    await asyncio.to_thread(private_server.start)
    assert seen(await query) == {"acme"}
    await database.close()


async def test_a_server_that_stays_away_is_one_sentence(
    private_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WAITS", (0.0,) * len(module._WAITS))
    url = private_server.url
    database = Database(app_url(url, MASTER_KEY), pool_size=2)
    await database.open()
    await asyncio.to_thread(private_server.crash)
    with pytest.raises(Unavailable, match="does not answer"):
        await database.rows("list_orgs")
    with pytest.raises(Unavailable, match="does not answer"):
        await Database(app_url(url, MASTER_KEY)).open()
    await asyncio.to_thread(private_server.start)
    assert await database.rows("list_orgs") == []
    await database.close()


async def test_a_process_that_ends_does_not_wait_for_the_server(private_server: Server) -> None:
    database = Database(private_server.url, pool_size=2)
    await database.open()
    private_server.crash()
    database.give_up()
    attempts = 0

    async def attempt() -> None:
        nonlocal attempts
        attempts += 1
        await database.dedicated()

    with pytest.raises(Unavailable):
        await database.retrying(attempt)
    assert attempts == 1
    await database.close()


@pytest.mark.parametrize(
    ("query", "arguments"),
    [
        ("get_journal", ("run", 2**40, None)),  # more than the column's integer
        ("list_audit", ("acme", 2**70, None, 10)),
        ("get_run", ("nul \0",)),
        ("get_run", ("half a pair \ud800",)),
    ],
)
async def test_a_value_that_no_column_takes_is_refused_at_once(
    database: Database, monkeypatch: pytest.MonkeyPatch, query: str, arguments: tuple[Any, ...]
) -> None:
    monkeypatch.setattr(module, "_WAITS", ())  # a second attempt would look for its wait here
    with pytest.raises(InvalidInput):
        await database.rows(query, *arguments)
