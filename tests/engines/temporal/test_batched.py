"""Batched model calls on this engine: the same life, put off by Temporal's timers instead of the queue's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engines.conftest import Desk, OpenApp
from engines.harness import Observer, think, workflow, write
from execution.batching import LET_GO, SLOW, WORDS, batched, config
from gateway.batch_server import BatchServer


@pytest.fixture
async def provider(settings: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[BatchServer]:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-test-0123456789")
    async with BatchServer() as server:
        settings["providers"] = server.providers
        yield server


@pytest.fixture
def project(project: Path) -> Path:
    write(project, workflow("w", batched(), output=WORDS))
    return project


async def test_one_batch_for_many_runs(
    project: Path, open_app: OpenApp, admin: object, seen: Observer, provider: BatchServer
) -> None:
    """Each answer at its own step, handed in once, though each attempt is an activity of its own."""
    assert project.exists()
    desk = Desk(await open_app(start_worker=True, deploy=True, **config(provider.pin, gather_seconds=2.0)), admin)  # type: ignore[arg-type]
    runs = {await desk.start("w", text=f"matter {number}"): f"matter {number}" for number in range(6)}
    assert set(await seen.finished(*runs)) == {"succeeded"}
    for run, text in runs.items():
        assert await desk.result(run) == {"words": text}
    assert sorted(provider.calls) == sorted(runs.values())
    assert len(provider.batches) < 6
    assert seen.rows("select distinct engine from runs") == [("temporal",)]
    assert seen.rows("select count(*) from batched_calls") == [(0,)]


async def test_what_one_process_put_off_another_may_end(
    project: Path, open_app: OpenApp, admin: object, seen: Observer, provider: BatchServer
) -> None:
    """Whoever hears of the answer gives back what was reserved, wherever that was: 60 of 200 tokens a call."""
    write(project, workflow("twice", batched(), think("after"), extra="budget: {tokens: 200}\n"))
    slowly = {**config(provider.pin), "worker": {"concurrency": 1, "lease_seconds": 60}}
    desk = Desk(await open_app(start_worker=True, deploy=True, **slowly), admin)  # type: ignore[arg-type]
    await open_app(start_worker=True, **slowly)
    runs = [await desk.start("twice", text=f"matter {number}") for number in range(12)]
    assert set(await seen.finished(*runs)) == {"succeeded"}, [seen.run(run)["reason"] for run in runs]


async def test_nothing_stays_reserved_for_a_call_that_was_let_go(
    project: Path, open_app: OpenApp, admin: object, seen: Observer, provider: BatchServer
) -> None:
    write(project, workflow("late", LET_GO, think("after"), allow="boom", extra="budget: {tokens: 100}\n"))
    desk = Desk(await open_app(start_worker=True, deploy=True, **config(provider.pin, **SLOW)), admin)  # type: ignore[arg-type]
    run = await desk.start("late")
    assert await seen.finished(run) == ["partial"]
    assert "of the run's 100" not in seen.run(run)["reason"]
    assert (len(provider.batches), len(provider.direct)) == (0, 1)
