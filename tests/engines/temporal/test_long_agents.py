"""A long conversation in Temporal: what its server keeps stays far below its bounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.conftest import Desk, OpenApp
from engines.harness import Model, Observer, write
from engines.long_agent import CALLS, CONTEXT, FILES, MIB, script, size_of
from engines.temporal.conftest import Histories
from interlock.identity.principal import Principal


@pytest.mark.parametrize("temporal", [{"cached_runs": 16}], indirect=True)
async def test_a_hundred_turns_with_a_full_context(
    project: Path, admin: Principal, open_app: OpenApp, seen: Observer, model: Model, histories: Histories
) -> None:
    write(project, FILES)
    script(model)
    desk = Desk(await open_app(deploy=True, start_worker=True), admin)
    run = await desk.start("long", text="Read on.")
    assert await seen.finished(run) == ["succeeded"]
    assert size_of(model.requests[-1].body["messages"]) > 0.95 * CONTEXT
    assert len(model.requests) == CALLS
    chain = await histories.chain(run)
    sizes = [sum(event.ByteSize() for event in events) for events in chain]
    assert sum(sizes) < 4 * MIB, sizes
    print(f"histories: {sizes} bytes, {[len(events) for events in chain]} events")
