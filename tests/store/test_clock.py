"""The platform's time is PostgreSQL's, whatever this machine's wall clock says, and it never goes backwards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from interlock.base.clock import SystemClock, since_boot
from interlock.base.errors import Unavailable
from interlock.store import clock as module
from interlock.store.clock import DatabaseClock
from interlock.store.database import DOWN, Database
from interlock.store.migrate import app_url
from interlock.store.queries import QUERIES

from .conftest import MASTER_KEY

if TYPE_CHECKING:
    from conftest import Server

CLOSE = 120.0  # seconds, for a busy machine; every error looked for here is an hour long
HOUR = 3600.0

Shift = Callable[[float], None]


@pytest.fixture
async def clock(database: Database) -> AsyncIterator[DatabaseClock]:
    clock = DatabaseClock(database)
    await clock.open()
    yield clock
    await clock.close()


@pytest.fixture
def shift(monkeypatch: pytest.MonkeyPatch) -> Shift:
    """Makes the server's clock be off by so many seconds from now on, as seen by whoever asks it for the time."""

    def by(seconds: float) -> None:
        query = f"select extract(epoch from clock_timestamp())::double precision + {seconds}"
        monkeypatch.setitem(QUERIES, "database_time", replace(QUERIES["database_time"], sql=query))

    return by


def server_time(owner: psycopg.Connection[Any]) -> float:
    row = owner.execute("select extract(epoch from clock_timestamp())").fetchone()
    assert row is not None
    return float(row[0])


@pytest.mark.parametrize("step", [HOUR, -HOUR])
async def test_a_stepped_wall_clock_changes_nothing(
    step: float, clock: DatabaseClock, database: Database, owner: psycopg.Connection[Any], monkeypatch: Any
) -> None:
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() + step)
    assert abs(SystemClock().now() - server_time(owner)) > HOUR / 2, "the control: the machine's own clock is struck"
    assert clock.now() == pytest.approx(server_time(owner), abs=CLOSE)
    await clock.measure()
    assert clock.now() == pytest.approx(server_time(owner), abs=CLOSE)
    late = DatabaseClock(database)
    await late.open()
    assert late.now() == pytest.approx(clock.now(), abs=CLOSE), "one that was opened meanwhile agrees"
    await late.close()


async def test_it_counts_on_by_the_clock_that_never_stops(clock: DatabaseClock) -> None:
    before = since_boot(), clock.now(), since_boot()
    await asyncio.sleep(0.2)
    after = since_boot(), clock.now(), since_boot()
    assert after[0] - before[2] <= after[1] - before[1] + 1e-6
    assert after[1] - before[1] <= after[2] - before[0] + 1e-6


async def test_a_server_whose_clock_goes_back_slows_us_down_until_we_agree(
    clock: DatabaseClock, shift: Shift, owner: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = [clock.now()]
    shift(-HOUR)
    await clock.measure()
    readings.append(clock.now())
    before = since_boot(), readings[-1], since_boot()
    await asyncio.sleep(0.2)
    after = since_boot(), clock.now(), since_boot()
    readings.append(after[1])
    await clock.measure()  # the same again does not make it slower still, or start anew
    readings += [clock.now() for _ in range(1000)]
    assert readings == sorted(readings)
    assert (after[0] - before[2]) / 2 - 1e-6 <= after[1] - before[1] <= (after[2] - before[0]) / 2 + 1e-6
    assert readings[-1] == pytest.approx(server_time(owner), abs=CLOSE), "an hour is not made up for in a moment"

    boot = since_boot
    monkeypatch.setattr(module, "since_boot", lambda: boot() + HOUR)
    half_way = clock.now()
    assert half_way == pytest.approx(server_time(owner) + HOUR / 2, abs=CLOSE)
    monkeypatch.setattr(module, "since_boot", lambda: boot() + 3 * HOUR)
    assert clock.now() == pytest.approx(server_time(owner) - HOUR + 3 * HOUR, abs=CLOSE), "and now runs as ever"


async def test_a_server_whose_clock_goes_ahead_is_followed_at_once(
    clock: DatabaseClock, shift: Shift, owner: psycopg.Connection[Any]
) -> None:
    shift(HOUR)
    await clock.measure()
    assert clock.now() == pytest.approx(server_time(owner) + HOUR, abs=CLOSE)


async def test_a_slow_answer_does_not_spoil_what_a_quick_one_had_shown(
    clock: DatabaseClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was on its way for at least half a second one way or the other, so it cannot tell that we are wrong by less."""
    offset = clock._at(0.0)
    sleepy = "select extract(epoch from clock_timestamp())::double precision from (select pg_sleep(0.5)) s"
    monkeypatch.setitem(QUERIES, "database_time", replace(QUERIES["database_time"], sql=sleepy))
    await clock.measure()
    assert clock._at(0.0) == pytest.approx(offset, abs=0.01)


async def test_while_the_server_is_away_the_clock_goes_on_and_afterwards_follows_again(
    private_server: Server, shift: Shift
) -> None:
    database = Database(app_url(private_server.url, MASTER_KEY), pool_size=2)
    await database.open()
    clock = DatabaseClock(database, every=0.05)
    await clock.open()
    ahead = clock.now() - since_boot()
    private_server.crash()
    with pytest.raises(DOWN):
        await clock.measure()
    await asyncio.sleep(0.3)  # the follower meets the same, a few times
    assert clock.now() - since_boot() == pytest.approx(ahead, abs=CLOSE)
    shift(HOUR)
    private_server.start()
    async with asyncio.timeout(120):
        while clock.now() - since_boot() < ahead + HOUR / 2:
            await asyncio.sleep(0.05)
    await clock.close()
    await database.close()


async def test_without_a_server_there_is_no_clock(private_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(app_url(private_server.url, MASTER_KEY), pool_size=2)
    await database.open()
    private_server.crash()
    monkeypatch.setattr("interlock.store.database._WAITS", (0.0,) * 9)
    with pytest.raises(Unavailable):
        await DatabaseClock(database).open()
    await database.close()
