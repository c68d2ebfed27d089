"""A long conversation completes, and its history stays small because it holds refs, not words."""

from __future__ import annotations

import json

from engines.harness import Model, Observer
from engines.long_agent import CALLS, CONTEXT, FILES, MIB, THOUGHT, script, size_of
from execution.conftest import Deploy


async def test_a_hundred_turns_with_a_full_context(deploy: Deploy, seen: Observer, model: Model) -> None:
    script(model)
    desk = await deploy(FILES)
    run = await desk.start("long", text="Read on.")
    assert await seen.finished(run) == ["succeeded"]
    assert await desk.result(run) == {"done": True}
    assert len(model.requests) == CALLS
    assert size_of(model.requests[-1].body["messages"]) > 0.95 * CONTEXT, "the model is told all that was said"
    history = sum(len(json.dumps(event)) for event in seen.journal(run))
    assert history < 4 * MIB
    assert history / len(seen.journal(run)) < 2048, "an event is as small at the end as at the beginning"
    assert THOUGHT[:64] not in seen.rows("select string_agg(event::text, '') from journal")[0][0]
