"""Tool health: one poller asks a tool at a time, two bad answers condemn it, one good answer acquits it."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from interlock.admission.tool_health import Check, HealthVerdict, Poller, ToolHealth
from interlock.base.errors import FailureKind, ToolUnhealthy
from interlock.store.database import Database
from interlock.tools.health_check import verdict_of

pytestmark = pytest.mark.usefixtures("tenants")
ORG, OTHER = "acme", "globex"
CONTRACT = {"timeout": 1, "health": {"every": 30}}


def add(owner: psycopg.Connection[Any], *tools: str, org: str = ORG) -> None:
    for tool in tools:
        owner.execute("insert into tool_health (org_id, tool, bundle, contract) values (%s, %s, 'b1', %s)",
                      (org, tool, Jsonb(CONTRACT)))  # fmt: skip


def due(owner: psycopg.Connection[Any]) -> None:
    owner.execute("update tool_health set next_at = now()")


class Tool:
    """Answers as told, and counts."""

    def __init__(self, *answers: bool | None) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, str]] = []

    async def __call__(self, check: Check) -> HealthVerdict | None:
        self.asked.append((check.org_id, check.tool))
        await asyncio.sleep(0)
        answer = self.answers.pop(0)
        return None if answer is None else HealthVerdict(answer, "the queue is full" if not answer else "")


async def states(database: Database, owner: psycopg.Connection[Any], *answers: bool | None) -> list[bool]:
    """Whether the tool `pay` may be called after each of these answers."""
    add(owner, "pay")
    tool, health, seen = Tool(*answers), ToolHealth(database), []
    poller = Poller(database, tool)
    while tool.answers:
        due(owner)
        assert await poller.poll() == 1
        await health.refresh()
        try:
            health.check(ORG, "pay", "b1")
            seen.append(True)
        except ToolUnhealthy:
            seen.append(False)
    return seen


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ((True, True), [True, True]),
        ((False, True, False, True), [True, True, True, True]),
        ((False, False), [True, False]),
        ((False, False, False, True, False, False), [True, False, False, True, True, False]),
        ((False, None, False), [True, True, False]),
        ((None, None, None), [True, True, True]),
    ],
)
async def test_two_bad_answers_in_a_row(
    answers: tuple[bool | None, ...], expected: list[bool], database: Database, owner: psycopg.Connection[Any]
) -> None:
    assert await states(database, owner, *answers) == expected


async def test_the_error_is_final_and_says_why(database: Database, owner: psycopg.Connection[Any]) -> None:
    assert (await states(database, owner, False, False))[-1] is False
    health = ToolHealth(database)
    health.check(ORG, "pay", "b1")  # unknown is healthy
    await health.refresh()
    with pytest.raises(ToolUnhealthy, match=r'"pay" failed its own health check \(the queue is full\)') as caught:
        health.check(ORG, "pay", "b1")
    assert (caught.value.kind, caught.value.code) == (FailureKind.PERMANENT, "tool_unhealthy")
    health.check(ORG, "pay", "b2")
    health.check(OTHER, "pay", "b1")


async def test_each_tool_is_asked_by_one_poller(database: Database, owner: psycopg.Connection[Any]) -> None:
    names = [f"t{n}" for n in range(20)]
    add(owner, *names)
    add(owner, *names, org=OTHER)
    tool = Tool(*[True] * 40)
    pollers = [Poller(database, tool) for _ in range(5)]
    while sum(await asyncio.gather(*(one.poll() for one in pollers))):
        pass
    assert sorted(tool.asked) == sorted((org, name) for org in (ORG, OTHER) for name in names)
    times = owner.execute("select min(next_at) > now() + interval '5 s', max(next_at) < now() + interval '31 s' "
                          "from tool_health").fetchone()  # fmt: skip
    assert times == (True, True)


async def test_a_poller_that_slept_past_its_turn_reports_nothing(
    database: Database, owner: psycopg.Connection[Any]
) -> None:
    add(owner, "pay")
    held, asked = asyncio.Event(), asyncio.Event()

    async def slow(_check: Check) -> HealthVerdict:
        asked.set()
        await held.wait()
        return HealthVerdict(False)

    late = asyncio.create_task(Poller(database, slow).poll())
    await asked.wait()
    assert await Poller(database, Tool()).poll() == 0, "it is somebody's turn already"
    due(owner)
    assert await Poller(database, Tool(False)).poll() == 1
    held.set()
    await late
    assert owner.execute("select bad, healthy from tool_health").fetchone() == (1, True)


async def test_a_poller_goes_on_after_an_error(database: Database, owner: psycopg.Connection[Any]) -> None:
    add(owner, "pay")
    good = asyncio.Event()

    async def first_a_bug(_check: Check) -> HealthVerdict:
        if not good.is_set():
            good.set()
            due(owner)
            raise RuntimeError("a bug of ours")
        asked.set()
        return HealthVerdict(True)

    asked = asyncio.Event()
    poller = Poller(database, first_a_bug, poll_seconds=0.01)
    poller.start()
    await asyncio.wait_for(asked.wait(), 120)
    await poller.close()


@pytest.mark.parametrize(
    ("output", "healthy"),
    [
        ({"healthy": True}, True),
        ({"healthy": True, "detail": 7}, True),
        ({"healthy": False, "detail": "no disk\0 \ud800"}, False),
        ({"healthy": 1}, False),
        ({"detail": "fine"}, False),
        ("healthy", False),
        (None, False),
    ],
)
async def test_what_a_check_may_return(
    output: Any, healthy: bool, database: Database, owner: psycopg.Connection[Any]
) -> None:
    verdict = verdict_of("pay", output)
    assert verdict.healthy is healthy

    async def ask(_check: Check) -> HealthVerdict:
        return verdict

    add(owner, "pay")
    assert await Poller(database, ask).poll() == 1
    assert owner.execute("select bad from tool_health").fetchone() == (int(not healthy),), "every verdict can be kept"


async def test_a_slow_check_keeps_no_other_waiting(database: Database, owner: psycopg.Connection[Any]) -> None:
    add(owner, "slow")
    add(owner, "quick")
    released, quick = asyncio.Event(), 0

    async def ask(check: Check) -> HealthVerdict:
        nonlocal quick
        if check.tool == "slow":
            await released.wait()
        else:
            quick += 1
        return HealthVerdict(healthy=True)

    poller = Poller(database, ask, poll_seconds=0.01)
    poller.start()
    async with asyncio.timeout(120):
        while quick < 5:
            owner.execute("update tool_health set next_at = now() where tool = 'quick'")
            await asyncio.sleep(0.05)
    released.set()
    await poller.close()
