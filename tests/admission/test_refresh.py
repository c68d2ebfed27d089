"""How a process learns what others found out, and what it knows when the database comes and goes."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from engines.harness import until
from interlock.admission.breakers import Admission, Breakers
from interlock.admission.gate import CallGate, verdict
from interlock.admission.refresh import StateRefresh
from interlock.admission.tool_health import ToolHealth
from interlock.base.clock import SystemClock
from interlock.base.errors import (
    BudgetExceeded,
    ContractViolation,
    Deferred,
    Denied,
    FailureKind,
    LeaseLost,
    NothingHappened,
    ProviderError,
    SandboxError,
    ToolError,
    Unavailable,
)
from interlock.base.settings import BreakerSettings
from interlock.store.database import Database
from interlock.store.migrate import app_url

from .conftest import Process

ORG, PAY = "acme", "tool:pay"


async def test_others_hear_of_it_without_polling(process: Process, database: Database) -> None:
    one, other = process(), process()
    watch = StateRefresh(database, [other.refresh], poll_seconds=3600)
    await watch.start()
    try:
        await until(lambda: watch._listener.listening, lambda: "it does not listen")
        for _ in range(5):
            await one.report(Admission(ORG, PAY), "failed")
        await until(lambda: other.state(ORG, PAY) == "open", lambda: "nobody told the other process")
    finally:
        await watch.close()


async def test_a_new_process_begins_with_what_the_others_know(process: Process, database: Database) -> None:
    one, other = process(), process()
    for _ in range(5):
        await one.report(Admission(ORG, PAY), "failed")
    watch = StateRefresh(database, [other.refresh], poll_seconds=3600)
    await watch.start()
    await watch.close()
    assert other.state(ORG, PAY) == "open"


async def test_polling_and_listening_go_on_after_a_restart(private_server: Any) -> None:
    from conftest import MASTER_KEY

    with psycopg.connect(private_server.url, autocommit=True) as owner:
        owner.execute("insert into orgs (org_id, name) values (%s, 'Acme')", (ORG,))
    database = Database(app_url(private_server.url, MASTER_KEY))
    await database.open()
    breakers = Breakers(database, BreakerSettings(), SystemClock())
    watch = StateRefresh(database, [breakers.refresh], poll_seconds=0.05)
    await watch.start()
    try:
        private_server.crash()
        await until(lambda: watch._loop.failures > 0, lambda: "the loss of the database was not noticed")
        private_server.start()
        with psycopg.connect(private_server.url, autocommit=True) as owner:
            owner.execute("insert into breakers values (%s, %s, 'open', '{}', now() + interval '1 hour')", (ORG, PAY))
        await until(lambda: breakers.state(ORG, PAY) == "open", lambda: "it is not polled any more")
        await until(lambda: watch._listener.listening, lambda: "nobody listens any more")
    finally:
        await watch.close()
        await database.close()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ToolError("hung"), "failed"),
        (ProviderError("503"), "failed"),
        (ProviderError("429", kind=FailureKind.RATE_LIMITED), "answered"),
        (ProviderError("nonsense", kind=FailureKind.INVALID), "answered"),
        (NothingHappened("no such customer", kind=FailureKind.PERMANENT), "answered"),
        (ContractViolation("not its schema"), "answered"),
        (SandboxError("no namespaces"), "unused"),
        (Denied("no"), "unused"),
        (BudgetExceeded("spent"), "unused"),
        (LeaseLost("gone"), "unused"),
        (Unavailable("no database"), "unused"),
        (RuntimeError("our bug"), "unused"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_only_absence_counts_against_a_target(error: Exception, expected: str) -> None:
    assert verdict(error) == expected


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (None, "unused"),
        (ProviderError("away", kind=FailureKind.TRANSIENT), "failed"),
        (ProviderError("later", kind=FailureKind.RATE_LIMITED), "answered"),
        (ValueError("ours"), "unused"),
    ],
)
def test_putting_off_says_what_its_cause_says(cause: Exception | None, expected: str) -> None:
    error = Deferred("later")
    error.__cause__ = cause
    assert verdict(error) == expected


async def test_the_gate_reports_what_became_of_calls(
    process: Process, database: Database, owner: psycopg.Connection[Any]
) -> None:
    breakers = process(probes=1)
    health = CallGate(breakers, ToolHealth(database))

    async def call(error: Exception | None) -> str:
        if error is not None:
            raise error
        return "done"

    for _ in range(5):
        with pytest.raises(ToolError):
            await health.watch(await health.admit(ORG, PAY), call(ToolError("hung")))
    assert breakers.state(ORG, PAY) == "open"
    probe = await _next_probe(health, owner, breakers)
    health.leave(probe)  # refused by something else: it was never called
    await health.close()
    probe = await health.admit(ORG, PAY)
    call_under_way = asyncio.create_task(health.watch(probe, asyncio.Event().wait()))
    await asyncio.sleep(0)
    call_under_way.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call_under_way
    health.leave(probe)
    await health.close()
    assert await health.watch(await health.admit(ORG, PAY), call(None)) == "done"
    assert breakers.state(ORG, PAY) == "closed"


async def _next_probe(health: CallGate, owner: psycopg.Connection[Any], breakers: Breakers) -> Admission:
    owner.execute("update breakers set open_until = now() - interval '1 second'")
    await breakers.refresh()
    return await health.admit(ORG, PAY)


async def test_a_failing_refresh_keeps_what_is_known(process: Process, database: Database) -> None:
    breakers = process()
    for _ in range(5):
        await breakers.report(Admission(ORG, PAY), "failed")
    tried = asyncio.Event()

    async def broken() -> None:
        tried.set()
        raise ValueError("a bug")

    watch = StateRefresh(database, [broken, breakers.refresh], poll_seconds=0.01)
    await watch.start()
    tried.clear()
    await asyncio.wait_for(tried.wait(), 120)
    await watch.close()
    assert breakers.state(ORG, PAY) == "open"
