"""What stays reserved for a batched call, and that nothing does once nobody waits for it."""

from __future__ import annotations

import pytest

from engines.harness import Observer, think, until, workflow
from execution.batching import LET_GO, SLOW, WORDS, batched, calls_in, config
from execution.conftest import Deploy, Gathering
from gateway.batch_server import BatchServer


@pytest.mark.parametrize("steps", [batched(extra="  deadline: 1\n  on_failure: continue\n"), LET_GO])
async def test_nothing_stays_reserved_for_a_call_that_was_let_go(
    steps: str, deploy: Deploy, seen: Observer, provider: BatchServer
) -> None:
    """Each call could need more than half of the budget."""
    last = think("after")
    flow = workflow("w", steps, last, allow="boom", extra="budget: {tokens: 100}\n")
    desk = await deploy(flow, **config(provider.pin, **SLOW))
    run = await desk.start("w")
    assert await seen.finished(run) == ["partial"]
    assert "of the run's 100" not in seen.run(run)["reason"]
    assert (len(provider.batches), len(provider.direct)) == (0, 1)


@pytest.mark.parametrize("pause", ["", "- {id: pause, kind: wait, duration: 6}\n"], ids=["one lease", "another lease"])
async def test_nothing_stays_reserved_for_a_call_that_a_fallback_replaced(
    pause: str, deploy: Deploy, seen: Observer, provider: BatchServer
) -> None:
    steps = batched(extra="  deadline: 1\n  fallback: [{model: default}]\n") + pause + think("after")
    flow = workflow("w", steps, extra="budget: {tokens: 200}\n")
    desk = await deploy(flow, **config(provider.pin, **SLOW))
    run = await desk.start("w")
    assert await seen.finished(run) == ["succeeded"], seen.run(run)["reason"]
    assert len(provider.direct) == 2


async def test_a_call_that_was_let_go_is_not_handed_in(
    deploy: Deploy, seen: Observer, provider: BatchServer, gathering: Gathering
) -> None:
    """Its run goes on; another run's call, which waits for company with it, is handed in alone."""
    desk = await deploy(
        workflow("late", LET_GO, "- {id: pausing, kind: wait, signal: go}\n", allow="boom"),
        workflow("w", batched(), output=WORDS),
        **config(provider.pin),
    )
    gone, stays = await desk.start("late", text="gone"), await desk.start("w", text="stays")
    await until(lambda: "step_failed boom" in seen.kinds(gone), lambda: f"{seen.kinds(gone)}")
    await calls_in(seen, "waiting", 1)
    gathering.held = False
    assert await seen.finished(stays) == ["succeeded"]
    await desk.app.signals.signal(desk.admin, gone, "go", {})
    assert await seen.finished(gone) == ["partial"]
    assert provider.calls == ["stays"]
