"""Values that are too old: refused wherever they go, and however a tool says how old they are."""

from __future__ import annotations

import pytest

from engines.harness import Observer, workflow
from execution.conftest import Deploy

LOOK = """\
name: look
description: Lists things as they were long ago.
effect: pure
as_of: seen
max_age: 3600
input: {type: object}
output: {type: object, properties: {items: {type: array, items: {type: object}}, seen: {type: number}}}
"""
CODE = "import time\n\n\ndef run():\n    return {'items': [{'t': str(time.time())}], 'seen': SEEN}\n"
CHILD = """\
name: child
input: {type: object, properties: {items: {type: array, items: {type: object}}}, required: [items]}
allow: [note]
steps: [{id: note, kind: tool, tool: note, input: {text: $input.items.0.t}}]
output: {text: $steps.note.text}
"""
ASK = "- {id: look, kind: tool, tool: look}\n"
THROUGH = {
    "map": "- id: each\n  kind: map\n  items: $steps.look.items\n"
    "  steps: [{id: note, kind: tool, tool: note, input: {text: $item.t}}]\n",
    "subworkflow": "- {id: inner, kind: subworkflow, workflow: child, input: {items: $steps.look.items}}\n",
    "tool": "- {id: note, kind: tool, tool: note, input: {text: $steps.look.items.0.t}}\n",
}


def look(said: str, contract: str = LOOK) -> dict[str, str]:
    return {"tools/look/tool.yaml": contract, "tools/look/main.py": CODE.replace("SEEN", said)}


@pytest.mark.parametrize("through", THROUGH)
async def test_a_stale_value_gets_in_nowhere(through: str, deploy: Deploy, seen: Observer) -> None:
    steps = ASK + THROUGH[through]
    desk = await deploy(look("1000.0"), {"workflows/child.yaml": CHILD}, workflow("w", steps, allow="look, note"))
    run = await desk.start("w")
    assert await seen.finished(run) == ["failed"]
    assert "s old, and the tool says that it is good for 3600 s" in seen.run(run)["reason"]
    assert "step_succeeded note" not in " ".join(seen.kinds(run))


@pytest.mark.parametrize("said", ["time.time() * 1000", "time.time() + 1e9"])
async def test_what_is_seen_in_the_future_is_not_fresh_for_ever(said: str, deploy: Deploy, seen: Observer) -> None:
    """Milliseconds are enough: they would be fresh, and cached, for fifty thousand years."""
    contract = LOOK.replace("max_age: 3600", "max_age: 3600\ncache: 3600")
    desk = await deploy(look(said, contract), workflow("w", ASK + THROUGH["tool"], allow="look, note"))
    run = await desk.start("w")
    assert await seen.finished(run) == ["failed"]
    assert "s old" in seen.run(run)["reason"]


async def test_a_clock_that_is_a_little_ahead_is_forgiven(deploy: Deploy, seen: Observer) -> None:
    desk = await deploy(look("time.time() + 20"), workflow("w", ASK + THROUGH["tool"], allow="look, note"))
    assert await seen.finished(await desk.start("w")) == ["succeeded"]


async def test_a_fallbacks_own_limit_holds_for_what_is_cached_too(deploy: Deploy, seen: Observer) -> None:
    """An answer of an hour ago serves whoever asks the tool, but as a fallback it may be a minute old."""
    daily = LOOK.replace("name: look", "name: daily").replace("max_age: 3600", "cache: 100000")
    broken = LOOK.replace("name: look", "name: live").replace("as_of: seen\nmax_age: 3600\n", "")
    files = {
        "tools/daily/tool.yaml": daily,
        "tools/daily/main.py": CODE.replace("SEEN", "time.time() - 3600"),
        "tools/live/tool.yaml": broken,
        "tools/live/main.py": "def run():\n    raise RuntimeError('down')\n",
    }
    ask = "- {id: rate, kind: tool, tool: TOOL, retry: {max_attempts: 1}, fallback: FALLBACK}\n"
    desk = await deploy(
        files,
        workflow("fill", ask.replace("TOOL", "daily").replace("FALLBACK", "[]"), allow="daily"),
        workflow(
            "w",
            ask.replace("TOOL", "live").replace("FALLBACK", "[{tool: daily, max_age: 60}]"),
            allow="live, daily",
        ),
    )
    assert await seen.finished(await desk.start("fill")) == ["succeeded"]
    run = await desk.start("w")
    assert await seen.finished(run) == ["failed"]
    assert "as a fallback it may be 60 s" in seen.run(run)["reason"]


async def test_an_answer_is_as_old_as_its_own_call(deploy: Deploy, seen: Observer) -> None:
    """What it was asked with is two hours old, and its tool says that an answer is good for a minute: this one is new."""
    files = {
        **look("time.time() - 7200", LOOK.replace("max_age: 3600", "max_age: 100000")),
        "tools/ask/tool.yaml": LOOK.replace("name: look", "name: ask").replace(
            "as_of: seen\nmax_age: 3600", "max_age: 60"
        ),
        "tools/ask/main.py": "def run(items):\n    return {'items': items}\n",
    }
    steps = (
        ASK
        + "- {id: ask, kind: tool, tool: ask, input: {items: $steps.look.items}}\n"
        + THROUGH["tool"].replace("$steps.look", "$steps.ask")
    )
    desk = await deploy(files, workflow("w", steps, allow="look, ask, note"))
    run = await desk.start("w")
    assert await seen.finished(run) == ["succeeded"], seen.run(run)["reason"]


async def test_a_fixed_answer_needs_no_arguments(deploy: Deploy, seen: Observer) -> None:
    """The value that the step would act upon is stale: that is what the fallback is for."""
    step = "- {id: note, kind: tool, tool: note, input: {text: $steps.look.items.0.t}, fallback: [{value: {text: none}}]}\n"
    desk = await deploy(look("1000.0"), workflow("w", ASK + step, allow="look, note", output="{t: $steps.note.text}"))
    run = await desk.start("w")
    assert await seen.finished(run) == ["succeeded"], seen.run(run)["reason"]
    assert await desk.result(run) == {"t": "none"}
