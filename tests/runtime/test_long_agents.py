"""A conversation of a hundred model calls: it completes, and its history stays small because it holds refs, not words."""

from __future__ import annotations

import json
from typing import Any

from engines.harness import Model, Observer, workflow
from interlock.testing import answer
from runtime.conftest import Deploy

CALLS = 100
REPLY = 5 * 1024  # bytes of a tool's result
CONTEXT = 209_000 * 4  # characters: 209k tokens at four characters a token
MIB = 1024 * 1024

READ = {
    "tools/read/tool.yaml": """\
name: read
description: Reads a page.
effect: pure
cache: 3600
input: {type: object, properties: {page: {type: integer}}, required: [page]}
output: {type: object, properties: {text: {type: string}}, required: [text]}
""",
    "tools/read/main.py": f"def run(page):\n    return {{'text': 'p' * {REPLY}}}\n",
}
ASSIST = f"""\
- id: assist
  kind: agent
  prompt: think
  values: {{text: $input.text}}
  tools: [read]
  max_turns: {CALLS}
  output: {{title: answer, type: object, required: [done], properties: {{done: {{type: boolean}}}}}}
"""


def size_of(messages: list[dict[str, Any]]) -> int:
    return sum(len(message["content"]) for message in messages)


async def test_a_hundred_turns_with_a_full_context(deploy: Deploy, seen: Observer, model: Model) -> None:
    thought = "t" * (CONTEXT // CALLS - REPLY)  # what the model says in a turn, beside the call
    tool = {
        **READ,
        "tools/read/tool.yaml": READ["tools/read/tool.yaml"].replace(
            "page: {type: integer}", "page: {type: integer}, thought: {type: string}"
        ),
    }
    tool["tools/read/main.py"] = READ["tools/read/main.py"].replace("run(page)", "run(page, thought='')")
    for turn in range(CALLS - 1):
        model.script(
            answer({"calls": [{"tool": "read", "arguments": {"page": turn % 3, "thought": thought}}], "answer": None})
        )
    model.script(answer({"calls": [], "answer": {"done": True}}))
    desk = await deploy(
        tool, workflow("w", ASSIST, allow="read", output="{done: $steps.assist.done}"), sandbox={"warm": 2}
    )
    run = await desk.start("w", text="Read on.")
    assert await seen.finished(run) == ["succeeded"]
    assert await desk.result(run) == {"done": True}
    assert len(model.requests) == CALLS
    assert size_of(model.requests[-1].body["messages"]) > 0.95 * CONTEXT, "the model is told all that was said"
    history = sum(len(json.dumps(event)) for event in seen.journal(run))
    assert history < 4 * MIB
    assert history / len(seen.journal(run)) < 2048, "an event is as small at the end as at the beginning"
    assert thought[:64] not in seen.rows("select string_agg(event::text, '') from journal")[0][0]
