"""Breakers: one state for all workers, moved in the database, at no cost while all is well."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from interlock.admission.breakers import Admission, Breakers
from interlock.admission.gate import CallGate
from interlock.admission.tool_health import ToolHealth
from interlock.base.clock import SystemClock
from interlock.base.errors import FailureKind, TargetDown, ToolError
from interlock.base.settings import BreakerSettings
from interlock.store.database import Database
from interlock.store.migrate import app_url

from .conftest import Process

ORG, OTHER, PAY = "acme", "globex", "tool:pay"
Row = tuple[Any, ...] | None


def row(owner: psycopg.Connection[Any], columns: str = "state", target: str = PAY, org: str = ORG) -> Row:
    return owner.execute(f"select {columns} from breakers where org_id = %s and target = %s", (org, target)).fetchone()


async def fail(breakers: Breakers, times: int = 5, target: str = PAY) -> None:
    for _ in range(times):
        await breakers.report(Admission(ORG, target), "failed")


async def half_open(breakers: Breakers, owner: psycopg.Connection[Any]) -> None:
    """Opens the breaker and lets the seconds pass."""
    await fail(breakers)
    owner.execute("update breakers set open_until = now() - interval '1 second'")
    await breakers.refresh()


async def admitted(breakers: Breakers, times: int) -> list[Admission]:
    tried = await asyncio.gather(*(breakers.admit(ORG, PAY) for _ in range(times)), return_exceptions=True)
    assert all(isinstance(one, Admission | TargetDown) for one in tried), tried
    return [one for one in tried if isinstance(one, Admission)]


async def test_five_failures_in_a_row_open_it_for_every_process(
    process: Process, owner: psycopg.Connection[Any]
) -> None:
    one, other = process(open_seconds=600), process(open_seconds=600)
    await fail(one, 4)
    assert row(owner) == ("closed",)
    await one.admit(ORG, PAY)
    await fail(other, 1)
    assert row(owner) == ("open",)
    for breakers in (one, other):
        await breakers.refresh()
        with pytest.raises(TargetDown) as down:
            await breakers.admit(ORG, PAY)
        assert down.value.kind is FailureKind.TRANSIENT
        assert 500 < (down.value.retry_after or 0) <= 600
        await breakers.admit(ORG, "tool:other")
        await breakers.admit(OTHER, PAY)


async def test_failures_at_the_same_moment_are_all_counted(process: Process, owner: psycopg.Connection[Any]) -> None:
    processes = [process(failures=40) for _ in range(4)]
    await asyncio.gather(*(fail(one, 1) for one in processes for _ in range(9)))
    assert row(owner, "state, cardinality(failures)") == ("closed", 36)
    await asyncio.gather(*(fail(one, 1) for one in processes))
    assert row(owner) == ("open",)


async def test_a_success_in_between_begins_the_row_anew(process: Process, owner: psycopg.Connection[Any]) -> None:
    one, other = process(), process()
    await fail(one, 4)
    await other.refresh()
    await other.report(await other.admit(ORG, PAY), "answered")
    await fail(one, 4)
    assert row(owner, "state, cardinality(failures)") == ("closed", 4)


async def test_failures_of_long_ago_do_not_count(process: Process, owner: psycopg.Connection[Any]) -> None:
    breakers = process()
    await fail(breakers, 4)
    owner.execute("update breakers set failures = array(select f - interval '61 seconds' from unnest(failures) f)")
    await fail(breakers, 4)
    assert row(owner, "state, cardinality(failures)") == ("closed", 4)
    await fail(breakers, 1)
    assert row(owner) == ("open",)


async def test_three_probes_in_all_by_all_processes_together(process: Process, owner: psycopg.Connection[Any]) -> None:
    one, other = process(), process()
    await half_open(one, owner)
    await other.refresh()
    mine, theirs = await asyncio.gather(admitted(one, 10), admitted(other, 10))
    probes = mine + theirs
    assert len(probes) == 3
    assert len({probe.probe for probe in probes} - {""}) == 3
    for probe in probes[:2]:
        await one.report(probe, "answered")
    assert await admitted(other, 5) == [], "two have answered and one is out: that makes three"
    assert row(owner) == ("half_open",)
    await other.report(probes[2], "answered")
    assert row(owner, "state, cardinality(failures)") == ("closed", 0)
    await one.refresh()
    assert len(await admitted(one, 10)) == 10


async def test_one_failed_probe_opens_it_again(process: Process, owner: psycopg.Connection[Any]) -> None:
    breakers = process()
    await half_open(breakers, owner)
    first, second, third = await admitted(breakers, 3)
    await breakers.report(first, "answered")
    await breakers.report(second, "failed")
    assert row(owner, "state, open_until > now() + interval '10 seconds', probes, succeeded") == ("open", True, {}, 0)
    await breakers.report(third, "answered")  # too late to change anything
    assert row(owner) == ("open",)
    with pytest.raises(TargetDown):
        await breakers.admit(ORG, PAY)


async def test_the_probe_of_a_worker_that_died_is_given_out_again(
    process: Process, owner: psycopg.Connection[Any]
) -> None:
    one, other = process(), process()
    await half_open(one, owner)
    lost = await admitted(one, 3)
    await other.refresh()
    assert await admitted(other, 1) == []
    owner.execute(
        "update breakers set probes = (select jsonb_object_agg(key, value::float8 - 61) from jsonb_each(probes))"
    )
    again = await admitted(other, 5)
    assert len(again) == 3
    await one.report(lost[0], "failed")  # it was not dead after all; its turn is over
    assert row(owner) == ("half_open",)
    for probe in again:
        await other.report(probe, "answered")
    assert row(owner) == ("closed",)


async def test_a_probe_that_was_not_used_goes_to_the_next(process: Process, owner: psycopg.Connection[Any]) -> None:
    breakers = process(probes=1)
    await half_open(breakers, owner)
    (probe,) = await admitted(breakers, 3)
    await breakers.report(probe, "unused")
    await breakers.report(probe, "failed")  # only the first report is the probe's
    assert row(owner) == ("half_open",)
    (probe,) = await admitted(breakers, 3)
    await breakers.report(probe, "answered")
    assert row(owner) == ("closed",)


async def test_what_began_before_the_breaker_moved_says_nothing(
    process: Process, owner: psycopg.Connection[Any]
) -> None:
    breakers = process()
    early = [await breakers.admit(ORG, PAY) for _ in range(3)]
    await half_open(breakers, owner)
    await admitted(breakers, 1)
    await breakers.report(early[0], "failed")
    await breakers.report(early[1], "answered")
    assert row(owner, "state, succeeded") == ("half_open", 0)


class _NoDatabase(Database):
    """Counts how often it is asked, and is never there."""

    asked = 0

    def connection(self, *orgs: str) -> Any:
        self.asked += 1
        raise ConnectionRefusedError("away")


async def test_success_costs_no_round_trip_while_all_is_well() -> None:
    database = _NoDatabase("postgresql://nobody")
    breakers = Breakers(database, BreakerSettings(), SystemClock())
    for _ in range(3):
        await breakers.report(await breakers.admit(ORG, PAY), "answered")
    assert database.asked == 0
    await breakers.report(await breakers.admit(ORG, PAY), "failed")
    assert database.asked == 1, "or the count above proves nothing"


async def test_without_a_database_the_last_state_holds(
    process: Process, database: Database, owner: psycopg.Connection[Any]
) -> None:
    breakers = process()
    await fail(breakers)
    breakers._database = _NoDatabase("postgresql://nobody")
    with pytest.raises(TargetDown):
        await breakers.admit(ORG, PAY)
    await breakers.report(await breakers.admit(ORG, "tool:other"), "failed")
    await breakers.admit(ORG, "tool:other")
    owner.execute("update breakers set open_until = now() - interval '1 second'")
    breakers._known.clear()
    breakers._database = database
    await breakers.refresh()
    breakers._database = _NoDatabase("postgresql://nobody")
    with pytest.raises(TargetDown):  # nobody gives a probe, so nobody gets one
        await breakers.admit(ORG, PAY)


async def test_the_state_survives_a_restart_of_the_database(private_server: Any) -> None:
    from conftest import MASTER_KEY

    with psycopg.connect(private_server.url, autocommit=True) as owner:
        owner.execute("insert into orgs (org_id, name) values (%s, 'Acme')", (ORG,))
    database = Database(app_url(private_server.url, MASTER_KEY))
    await database.open()
    try:
        breakers = Breakers(database, BreakerSettings(), SystemClock())
        await fail(breakers)
        private_server.restart()
        with pytest.raises(TargetDown):
            await breakers.admit(ORG, PAY)
        await fail(breakers, 1)  # over connections that are dead now: nothing is raised
        breakers._known.clear()
        await _until_refreshed(breakers)
        with pytest.raises(TargetDown):
            await breakers.admit(ORG, PAY)
    finally:
        await database.close()


async def _until_refreshed(breakers: Breakers) -> None:
    async with asyncio.timeout(120):
        while True:
            try:
                return await breakers.refresh()
            except Exception:  # noqa: BLE001  whatever a restart makes it raise
                await asyncio.sleep(0.05)


HOSTILE = [
    "tool:'; drop table breakers; --",
    "tool:",
    "provider:a:b@http://x?y={}%s$1",
    "tool:" + "x" * 2000,
    "tool:é漢\n",
]


@pytest.mark.parametrize("target", HOSTILE)
async def test_names_are_only_names(target: str, process: Process, owner: psycopg.Connection[Any]) -> None:
    breakers = process()
    await fail(breakers, target=target)
    assert row(owner, target=target) == ("open",)
    await breakers.refresh()
    with pytest.raises(TargetDown):
        await breakers.admit(ORG, target)
    assert row(owner) is None


async def test_a_name_that_the_database_refuses_breaks_nothing(process: Process) -> None:
    breakers = process()
    await fail(breakers, target="tool:\0")
    await breakers.admit(ORG, "tool:\0")


async def test_moves_are_logged_once(process: Process, monkeypatch: pytest.MonkeyPatch, owner: Any) -> None:
    logged: list[tuple[str, str]] = []

    def note(_event: str, *_: Any, **data: Any) -> None:
        logged.append((data["old"], data["new"]))

    monkeypatch.setattr("interlock.admission.breakers.log", note)
    one, other = process(probes=1), process(probes=1)
    await half_open(one, owner)
    await other.refresh()
    (probe,) = await admitted(one, 3)
    await other.refresh()
    await one.report(probe, "answered")
    await other.refresh()
    assert logged == [("closed", "open"), ("open", "half_open"), ("half_open", "closed")]


async def test_a_plan_that_succeeds_does_not_hide_a_commit_that_fails(process: Process, database: Database) -> None:
    """What is asked of a target ahead of the call says nothing about the call."""
    health = CallGate(process(), ToolHealth(database))

    async def good() -> int:
        return 1

    async def bad() -> int:
        raise ToolError("it did not answer", kind=FailureKind.TRANSIENT)

    for _ in range(5):
        admission = await health.admit(ORG, PAY)
        assert await health.ask(admission, good()) == 1
        with pytest.raises(ToolError):
            await health.watch(admission, bad())
    with pytest.raises(TargetDown):
        await health.admit(ORG, PAY)


async def test_a_plan_that_fails_counts(process: Process, database: Database) -> None:
    health = CallGate(process(), ToolHealth(database))

    async def bad() -> int:
        raise ToolError("it did not answer", kind=FailureKind.TRANSIENT)

    for _ in range(5):
        with pytest.raises(ToolError):
            await health.ask(await health.admit(ORG, PAY), bad())
    with pytest.raises(TargetDown):
        await health.admit(ORG, PAY)


async def test_a_trial_call_has_its_own_time(
    database: Database, tenants: object, owner: psycopg.Connection[Any]
) -> None:
    """One that may take longer than a dead worker is waited for is not given to another meanwhile, and counts."""
    breakers = Breakers(database, BreakerSettings.model_validate({"probes": 1}), SystemClock(), probe_seconds=0.1)
    for _ in range(5):
        await breakers.report(await breakers.admit(ORG, PAY), "failed")
    owner.execute("update breakers set open_until = now() - interval '1 second'")
    await breakers.refresh()
    trial = await breakers.admit(ORG, PAY, seconds=60)
    await asyncio.sleep(0.3)
    with pytest.raises(TargetDown):
        await breakers.admit(ORG, PAY, seconds=60)
    await breakers.report(trial, "answered")
    assert breakers.state(ORG, PAY) == "closed"
