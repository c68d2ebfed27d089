"""What a person put in the place of a step's arguments: for that step, for as long as it is tried, and for nothing else."""

from __future__ import annotations

from typing import Any

from engines.dead_letters import dead_letter_of
from engines.harness import Model, Observer, workflow
from execution.conftest import Deploy
from execution.test_orchestration import LOOK, agent, calls, said
from interlock.testing import server_error

PAY = """\
name: NAME
description: Pays.
effect: mutating
honours_idempotency: true
input: {type: object, properties: {amount: {type: number}}, required: [amount], additionalProperties: false}
output: {type: object}
"""
FAIL = "from interlock_tool import Fail\n\n\ndef run(amount, context):\n"
EUROS = FAIL + "    raise Fail('no')\n"
CENTS = (
    FAIL + "    if amount == 500 and context['attempt'] < 3:\n        raise Fail('no')\n    return {'paid': amount}\n"
)
STEP = """\
- id: pay
  kind: tool
  tool: euros
  input: {amount: 5}
  fallback: [{tool: cents, input: {amount: 500}}]
"""


def tools() -> dict[str, str]:
    return {
        "tools/euros/tool.yaml": PAY.replace("NAME", "euros"),
        "tools/euros/main.py": EUROS,
        "tools/cents/tool.yaml": PAY.replace("NAME", "cents"),
        "tools/cents/main.py": CENTS,
    }


async def test_a_fallback_with_arguments_of_its_own_keeps_them(deploy: Deploy, seen: Observer) -> None:
    """Six euros are not six cents."""
    hold = "on_failure: hold\n"
    desk = await deploy(tools(), workflow("w", STEP, allow="euros, cents", extra=hold, output="{o: $steps.pay.paid}"))
    run = await desk.start("w")
    dead_letter = await dead_letter_of(seen, run, "step")
    await desk.app.dead_letters.requeue(desk.admin, dead_letter, "", {"amount": 6})
    assert await seen.finished(run) == ["succeeded"]
    assert await desk.result(run) == {"o": 500}


async def test_requeued_again_without_others_it_keeps_the_edited_ones(deploy: Deploy, seen: Observer) -> None:
    """A letter shows what would be tried again, and just that is."""
    step = "- {id: pay, kind: tool, tool: euros, input: {amount: 5}}\n"
    desk = await deploy(tools(), workflow("w", step, allow="euros", extra="on_failure: hold\n"))
    run = await desk.start("w")
    given: list[Any] = [{"amount": 6}, None, None]
    for edited in given:
        dead_letter = await dead_letter_of(seen, run, "step")
        await desk.app.dead_letters.requeue(desk.admin, dead_letter, "", edited)
    last = await dead_letter_of(seen, run, "step")
    assert (await desk.app.dead_letters.get(desk.admin, last)).input == {"amount": 6}


async def test_an_agents_later_turns_see_the_edited_prompt(deploy: Deploy, seen: Observer, model: Model) -> None:
    model.script(server_error(), server_error())
    flow = workflow("w", agent("look"), allow="look", output="{warm: $steps.assist.warm}", extra="on_failure: hold\n")
    desk = await deploy(LOOK, flow)
    run = await desk.start("w", text="ORIGINAL")
    dead_letter = await dead_letter_of(seen, run, "step")
    before = len(model.requests)
    model.script(calls(("look", {"place": "rome"})), said(warm=True, why="x"))
    await desk.app.dead_letters.requeue(desk.admin, dead_letter, "", {"text": "EDITED"})
    assert await seen.finished(run) == ["succeeded"]
    asked = [
        next(one["content"] for one in sent.body["messages"] if one["role"] == "user")
        for sent in model.requests[before:]
    ]
    assert len(asked) == 2
    assert all("EDITED" in one and "ORIGINAL" not in one for one in asked)
