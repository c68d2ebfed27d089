"""Every kind of step through the real engine, kernel and sandboxes: what the world outside sees, and what the run gives back."""

from __future__ import annotations

import asyncio
import json
import textwrap
from typing import Any

import pytest

from engines.harness import NOTE, Bank, Model, Observer, pay, workflow
from execution.conftest import Deploy
from interlock.base.errors import InvalidSpec
from interlock.store.commit import Committer
from interlock.testing import answer, server_error

LOOK = {
    "tools/look/tool.yaml": """\
name: look
description: Says how warm it is somewhere.
effect: pure
input: {type: object, properties: {place: {type: string}}, required: [place], additionalProperties: false}
output: {type: object, properties: {place: {type: string}, warm: {type: boolean}, seen: {type: number}}, required: [place]}
""",
    "tools/look/main.py": """\
import time


def run(place):
    if place == "nowhere":
        raise ValueError("there is no such place")
    return {"place": place, "warm": place == "rome", "seen": time.time()}
""",
}
ANSWER = "{title: answer, type: object, required: [warm], properties: {warm: {type: boolean}, why: {type: string}}}"


def agent(*tools: str, extra: str = "") -> str:
    return textwrap.dedent(f"""\
        - id: assist
          kind: agent
          prompt: think
          values: {{text: $input.text}}
          tools: [{", ".join(tools)}]
          output: {ANSWER}
          retry: {{max_attempts: 2, backoff: 0.05}}
        """) + textwrap.indent(extra, "  ")


def calls(*wanted: tuple[str, dict[str, Any]]) -> Any:
    return answer({"calls": [{"tool": tool, "arguments": given} for tool, given in wanted], "answer": None})


def said(**value: Any) -> Any:
    return answer({"calls": [], "answer": value})


async def test_an_agent_calls_tools_and_answers(deploy: Deploy, seen: Observer, model: Model) -> None:
    model.script(calls(("look", {"place": "rome"}), ("look", {"place": "nowhere"})), said(warm=True, why="I looked"))
    desk = await deploy(LOOK, workflow("w", agent("look"), allow="look", output="{warm: $steps.assist.warm}"))
    run = await desk.start("w", text="Is it warm?")
    assert await seen.finished(run) == ["succeeded"]
    assert await desk.result(run) == {"warm": True}
    told = json.loads(model.requests[1].body["messages"][-1]["content"])["results"]
    assert told[0]["result"]["place"] == "rome"
    assert "there is no such place" in told[1]["detail"], "the model learns why, in the order of its calls"
    steps = [event["step"] for event in seen.journal(run) if event["type"].startswith("step_")]
    assert steps[0] == "assist#1/turn"
    assert set(steps[1:3]) == {"assist#1/call#1", "assist#1/call#2"}
    assert steps[3:] == ["assist#2/turn"]


async def test_a_turn_is_told_what_is_not_durable_yet(
    deploy: Deploy, seen: Observer, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Model calls go ahead of the transaction before them; what a tool said about its failure must be at hand."""
    original = Committer._commit

    async def slow(self: Committer, commits: Any) -> None:
        await asyncio.sleep(0.2)
        await original(self, commits)

    model.script(calls(("look", {"place": "nowhere"})), said(warm=False))
    desk = await deploy(LOOK, workflow("w", agent("look"), allow="look", output="{warm: $steps.assist.warm}"))
    monkeypatch.setattr(Committer, "_commit", slow)
    run = await desk.start("w", text="Is it warm?")
    assert await seen.finished(run) == ["succeeded"]
    assert "there is no such place" in model.requests[1].body["messages"][-1]["content"]


async def test_an_agent_cannot_name_a_tool_it_was_not_given(deploy: Deploy, seen: Observer, model: Model) -> None:
    for _ in range(3):  # the answer and both corrections
        model.script(calls(("note", {"text": "x"})))
    desk = await deploy(LOOK, workflow("w", agent("look"), NOTE, allow="look, note"))
    run = await desk.start("w", text="?")
    assert await seen.finished(run) == ["failed"]
    assert not [event for event in seen.journal(run) if "/call" in event.get("step", "")]


async def test_an_agent_pays_once_and_is_undone(deploy: Deploy, seen: Observer, model: Model, bank: Bank) -> None:
    payment = {
        "ticket_id": "t1", "customer_id": "cus-001", "amount": 5, "currency": "EUR", "reason": "asked",
        "bank_url": f"http://{bank.address}",
    }  # fmt: skip
    model.script(calls(("refund", payment)), said(warm=True))
    boom = "- {id: boom, kind: tool, tool: boom}\n"
    desk = await deploy(workflow("w", agent("refund"), boom, allow="refund, boom"))
    run = await desk.start("w", text="pay")
    assert await seen.finished(run) == ["failed"]
    assert bank.refunds == {"t1": 1}
    assert bank.reversed_tickets == ["t1"]
    effects = seen.rows("select step, status from effects where run_id = %s", run)
    assert effects == [("assist#1/call#1", "compensated")]


async def test_a_map_gives_a_list_and_goes_on_without_what_failed(deploy: Deploy, seen: Observer) -> None:
    each = """\
- id: each
  kind: map
  items: $input.places
  concurrency: 2
  on_item_failure: continue
  steps:
    - {id: look, kind: tool, tool: look, input: {place: $item.name}}
  result: {place: $steps.look.place, number: $index}
"""
    files = workflow("w", each, allow="look", output="{found: $steps.each, failed: $steps.each.failed}")
    name, text = next(iter(files.items()))
    text = text.replace(
        "    text: {type: string}\n",
        "    text: {type: string}\n    places: {type: array, items: {type: object, properties: {name: {type: string}}}}\n",
    )
    desk = await deploy(LOOK, {name: text})
    places = [{"name": "rome"}, {"name": "nowhere"}, {"name": "oslo"}]
    run = await desk.start("w", places=places)
    assert await seen.finished(run) == ["partial"]
    found = [{"place": "rome", "number": 0}, None, {"place": "oslo", "number": 2}]
    assert await desk.result(run) == {"found": found, "failed": 1}


async def test_a_loop_reads_its_last_round(deploy: Deploy, seen: Observer, model: Model) -> None:
    loop = """\
- id: again
  kind: loop
  until: draft.good
  max_iterations: 5
  steps:
    - id: draft
      kind: model
      prompt: think
      values: {text: $last.draft.words}
      output: {title: draft, type: object, required: [good, words], properties: {good: {type: boolean}, words: {type: string}}}
"""
    model.script(answer({"good": False, "words": "first"}), answer({"good": True, "words": "second"}))
    desk = await deploy(
        {"prompts/think.yaml": PROMPT_NULL},
        workflow("w", loop, output="{words: $steps.draft.words, n: $steps.again.iterations}"),
    )
    run = await desk.start("w")
    assert await seen.finished(run) == ["succeeded"]
    assert await desk.result(run) == {"words": "second", "n": 2}
    assert "first" in model.requests[1].body["messages"][-1]["content"]


PROMPT_NULL = """\
slots:
  text: {type: [string, "null"], maxLength: 4000}
messages:
  - {role: user, content: "Better than {{ text }}"}
"""


async def test_a_subworkflow_runs_inside(deploy: Deploy, seen: Observer) -> None:
    child = workflow(
        "child",
        "- {id: look, kind: tool, tool: look, input: {place: $input.ticket}}\n",
        allow="look",
        output="{it: $steps.look.place}",
    )
    parent = workflow(
        "parent",
        "- {id: inner, kind: subworkflow, workflow: child, input: {ticket: $input.ticket}}\n",
        "- {id: look, kind: tool, tool: look, input: {place: $steps.inner.it}}\n",
        allow="look",
        output="{inner: $steps.inner.it, outer: $steps.look.place}",
    )
    desk = await deploy(LOOK, child, parent)
    run = await desk.start("parent", ticket="rome")
    assert await seen.finished(run) == ["succeeded"]
    assert await desk.result(run) == {"inner": "rome", "outer": "rome"}
    names = [event["step"] for event in seen.journal(run) if event["type"] == "step_succeeded"]
    assert names == ["inner", "inner/look", "look"]


async def test_a_workflow_cannot_contain_itself(deploy: Deploy) -> None:
    inner = "- {id: inner, kind: subworkflow, workflow: w, input: {ticket: x}}\n"
    with pytest.raises(InvalidSpec, match="a workflow cannot contain itself"):
        await deploy(workflow("w", inner))


async def test_a_fallback_takes_over_and_says_so(deploy: Deploy, seen: Observer) -> None:
    steps = """\
- id: look
  kind: tool
  tool: boom
  retry: {max_attempts: 1}
  fallback:
    - {tool: look, input: {place: rome}, max_age: 60}
"""
    desk = await deploy(LOOK, workflow("w", steps, allow="boom, look", output="{place: $steps.look.place}"))
    run = await desk.start("w")
    assert await seen.finished(run) == ["succeeded"]
    assert await desk.result(run) == {"place": "rome"}
    assert [event["attempt"] for event in seen.journal(run) if event.get("step") == "look"] == [1, 2]


async def test_a_fallback_that_is_too_old_is_refused(deploy: Deploy, seen: Observer) -> None:
    old = {
        "tools/old/tool.yaml": LOOK["tools/look/tool.yaml"].replace("name: look", "name: old") + "as_of: seen\n",
        "tools/old/main.py": "def run(place):\n    return {'place': place, 'seen': 1000.0}\n",
    }
    steps = """\
- id: look
  kind: tool
  tool: boom
  retry: {max_attempts: 1}
  fallback:
    - {tool: old, input: {place: rome}, max_age: 60}
    - {value: {place: unknown}}
"""
    files = workflow("w", steps, allow="boom, old", output="{place: $steps.look.place}")
    boom = {"tools/boom/tool.yaml": BOOM_LIKE_LOOK}
    desk = await deploy(old, boom, files)
    run = await desk.start("w")
    assert await seen.finished(run) == ["succeeded"]
    assert await desk.result(run) == {"place": "unknown"}


BOOM_LIKE_LOOK = """\
name: boom
description: Always fails, for good.
effect: pure
input: {type: object}
output: {type: object, properties: {place: {type: string}}}
"""


async def test_the_newest_good_result_stands_in(deploy: Deploy, seen: Observer, model: Model) -> None:
    think = """\
- id: think
  kind: model
  prompt: think
  values: {text: $input.text}
  output: {title: think, type: object, required: [words], properties: {words: {type: string}}}
  retry: {max_attempts: 1}
  fallback: [{last_good: true, max_age: 600}]
"""
    model.script(answer({"words": "first"}), server_error(), server_error())
    desk = await deploy(workflow("w", think, output="{words: $steps.think.words}"))
    first = await desk.start("w", text="the same")
    assert await seen.finished(first) == ["succeeded"]
    second = await desk.start("w", text="the same")
    other = await desk.start("w", text="something else")
    assert await seen.finished(second, other) == ["succeeded", "failed"]
    assert await desk.result(second) == {"words": "first"}


async def test_the_same_pure_call_is_made_once(deploy: Deploy, seen: Observer) -> None:
    tool = {
        "tools/look/tool.yaml": LOOK["tools/look/tool.yaml"] + "cache: 600\n",
        "tools/look/main.py": LOOK["tools/look/main.py"],
    }
    look = "- {id: look, kind: tool, tool: look, input: {place: $input.ticket}}\n"
    desk = await deploy(tool, workflow("w", look, allow="look", output="{seen: $steps.look.seen}"))
    first = await desk.start("w", ticket="rome")
    assert await seen.finished(first) == ["succeeded"]
    second, other = await desk.start("w", ticket="rome"), await desk.start("w", ticket="oslo")
    assert await seen.finished(second, other) == ["succeeded", "succeeded"]
    assert await desk.result(first) == await desk.result(second) != await desk.result(other)


async def test_what_is_too_old_is_not_acted_upon(deploy: Deploy, seen: Observer) -> None:
    aged = LOOK["tools/look/tool.yaml"] + "as_of: seen\nmax_age: 3600\n"
    code = "def run(place):\n    return {'place': place, 'seen': 1000.0}\n"
    steps = (
        "- {id: look, kind: tool, tool: look, input: {place: rome}}\n"
        "- {id: note, kind: tool, tool: note, input: {text: $steps.look.place}}\n"
    )
    desk = await deploy(
        {"tools/look/tool.yaml": aged, "tools/look/main.py": code}, workflow("w", steps, allow="look, note")
    )
    run = await desk.start("w")
    assert await seen.finished(run) == ["failed"]
    failed = seen.journal(run)[-1]
    assert (failed["step"], failed["failure"]["code"]) == ("note", "stale")


async def test_an_explicit_commit_carries_out_what_was_planned(
    deploy: Deploy, seen: Observer, bank: Bank, project: Any
) -> None:
    refund = (project / "tools/refund/main.py").read_text()
    tool = {
        "tools/planned/tool.yaml": (project / "tools/refund/tool.yaml")
        .read_text()
        .replace("name: refund", "name: planned")
        + "commit: true\n",
        "tools/planned/main.py": refund.replace("def run(", "def act(")
        + "\n\ndef run(context=None, **arguments):\n    return {**arguments, 'reason': 'planned'}\n"
        + "\n\ndef commit(plan, context):\n    return act(**plan, context=context)\n",
    }
    desk = await deploy(tool, workflow("w", pay("pay", "planned", "bank"), allow="planned"))
    run = await desk.start("w", ticket="t1")
    assert await seen.finished(run) == ["succeeded"], seen.journal(run)
    assert bank.refunds == {"t1": 1}
    assert bank.rows("refunds")[0]["reason"] == "planned"


async def test_a_value_too_large_fails_once_and_names_the_step(deploy: Deploy, seen: Observer) -> None:
    big = {
        "tools/big/tool.yaml": "name: big\ndescription: Says much.\neffect: pure\ninput: {type: object}\noutput: {type: object}\n",
        "tools/big/main.py": "def run():\n    return {'text': 'x' * 3000}\n",
    }
    desk = await deploy(
        big, workflow("w", "- {id: big, kind: tool, tool: big}\n", allow="big"), limits={"payload_bytes": 2048}
    )
    run = await desk.start("w")
    assert await seen.finished(run) == ["failed"]
    assert [event["type"] for event in seen.journal(run)] == ["run_started", "step_failed"]
    assert '"big"' in seen.run(run)["reason"]
