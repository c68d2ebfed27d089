"""What stays reserved for a batched call, and that nothing does once nobody waits for it."""

from __future__ import annotations

import pytest

from engines.harness import Observer, think, workflow
from execution.batching import LET_GO, SLOW, WORDS, batched, config
from execution.conftest import Deploy
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


async def test_a_call_that_was_let_go_is_not_handed_in(deploy: Deploy, seen: Observer, provider: BatchServer) -> None:
    """Its run goes on; another run's call, which waits for company with it, is handed in alone."""
    desk = await deploy(
        workflow("late", LET_GO, "- {id: pausing, kind: wait, duration: 4}\n", allow="boom"),
        workflow("w", batched(), output=WORDS),
        **config(provider.pin, gather_seconds=2.0),
    )
    gone, stays = await desk.start("late", text="gone"), await desk.start("w", text="stays")
    assert await seen.finished(stays, gone) == ["succeeded", "partial"]
    assert provider.calls == ["stays"]
