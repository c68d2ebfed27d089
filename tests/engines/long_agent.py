"""A conversation of a hundred model calls with 209k tokens of context and 5 KB tool results: project and script."""

from __future__ import annotations

from typing import Any

from engines.harness import Model, workflow
from interlock.testing import answer

CALLS = 100
REPLY = 5 * 1024  # bytes of a tool's result
CONTEXT = 209_000 * 4  # characters: 209k tokens at four characters a token
MIB = 1024 * 1024
# What the model says in a turn, beside the call.
THOUGHT = "t" * (CONTEXT // CALLS - REPLY)

FILES = {
    "tools/read/tool.yaml": """\
name: read
description: Reads a page.
effect: pure
cache: 3600
input: {type: object, properties: {page: {type: integer}, thought: {type: string}}, required: [page]}
output: {type: object, properties: {text: {type: string}}, required: [text]}
""",
    "tools/read/main.py": f"def run(page, thought=''):\n    return {{'text': 'p' * {REPLY}}}\n",
    **workflow(
        "long",
        f"""\
- id: assist
  kind: agent
  prompt: think
  values: {{text: $input.text}}
  tools: [read]
  max_turns: {CALLS}
  output: {{title: answer, type: object, required: [done], properties: {{done: {{type: boolean}}}}}}
""",
        allow="read",
        output="{done: $steps.assist.done}",
    ),
}


def script(model: Model) -> None:
    """Three different pages, over and over, so that most calls are answered from the cache and the test is quick."""
    for turn in range(CALLS - 1):
        call = {"tool": "read", "arguments": {"page": turn % 3, "thought": THOUGHT}}
        model.script(answer({"calls": [call], "answer": None}))
    model.script(answer({"calls": [], "answer": {"done": True}}))


def size_of(messages: list[dict[str, Any]]) -> int:
    return sum(len(message["content"]) for message in messages)
