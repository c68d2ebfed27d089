"""A map over a tool that takes calls in batches: fewer sandboxes, the same effects; counted by the bank."""

from __future__ import annotations

import signal
import textwrap
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from engines.conftest import Desk, OpenApp, Spawn
from engines.harness import PERMIT_ALL, PROMPT, Bank, Model, Observer, pay, refund_tool, until, workflow, write
from interlock.identity.principal import Principal
from interlock.testing import answer
from interlock.tools.batches import ToolBatches

ITEMS = 40
BATCH = "batch: {max: 20, wait: 1}\n"
# Every call of a batch is an exchange with the bank of its own; what the bank refuses is that call's failure.
MANY = """

def run_batch(calls, context):
    return [_one(call) for call in calls]


def _one(call):
    try:
        return {"output": run(**call["arguments"], context=call["context"])}
    except Retry as error:
        return {"error": str(error), "retryable": True}
    except RuntimeError as error:
        return {"error": str(error), "nothing_happened": True}
"""
# The refund's reason becomes the name of the sandbox that asked for it, so that the bank knows how many there were.
NAMED = (
    MANY
    + """

import uuid

NAME, paid = uuid.uuid4().hex, run


def run(*, reason, **given):
    return paid(reason=NAME, **given)
"""
)
LOOK = {
    "tools/look/tool.yaml": """\
name: look
description: Says in which sandbox it was asked, and with how many others.
effect: pure
batch: {max: 2, wait: 5}
input: {type: object, properties: {place: {type: string}}, required: [place]}
output: {type: object, properties: {place: {type: string}, name: {type: string}, shared: {type: integer}}, required: [name]}
""",
    "tools/look/main.py": """\
import uuid

NAME = uuid.uuid4().hex


def run(place):
    return {"place": place, "name": NAME, "shared": 1}


def run_batch(calls):
    return [{"output": {**run(**call["arguments"]), "shared": len(calls)}} for call in calls]
""",
}
BOTH = """\
- id: both
  kind: parallel
  branches:
    left: [{id: one, kind: tool, tool: look, input: {place: rome}}]
    right: [{id: two, kind: tool, tool: look, input: {place: oslo}}]
"""
ASSIST = """\
- id: assist
  kind: agent
  prompt: think
  values: {text: $input.text}
  tools: [look]
  output: {title: answer, type: object, required: [warm], properties: {warm: {type: boolean}}}
"""


def pay_all(name: str, tool: str, variable: str) -> dict[str, str]:
    step = pay("pay", tool, variable, ticket="$item.ticket").replace("currency: EUR", "currency: $item.currency")
    inner = textwrap.indent(step, " " * 6)
    return {
        f"workflows/{name}.yaml": f"""\
name: {name}
input:
  type: object
  properties:
    items:
      type: array
      items:
        type: object
        properties: {{ticket: {{type: string}}, currency: {{type: string}}}}
        required: [ticket, currency]
  required: [items]
allow: [{tool}]
steps:
  - id: each
    kind: map
    items: $input.items
    concurrency: {ITEMS}
    on_item_failure: continue
    result: $steps.pay.refund_id
    steps:
{inner}
output: {{refunds: $steps.each}}
"""
    }


@pytest.fixture
def project(tmp_path: Path) -> Path:
    directory = tmp_path / "project"
    tools = {
        **refund_tool("named", "bank", "honours_idempotency", timeout=30, code=NAMED),
        **refund_tool("keyed", "bank", "honours_idempotency", timeout=30, code=MANY),
        **refund_tool("liar", "strict", "honours_idempotency", timeout=30, code=MANY),
    }
    for name in ("named", "keyed", "liar"):
        tools[f"tools/{name}/tool.yaml"] += BATCH
    write(
        directory,
        {
            "policies/main.cedar": PERMIT_ALL,
            "prompts/think.yaml": PROMPT,
            **tools,
            **LOOK,
            **pay_all("pay_named", "named", "bank"),
            **pay_all("pay_keyed", "keyed", "bank"),
            **pay_all("pay_liar", "liar", "strict"),
            **workflow("both", BOTH, allow="look", output="{one: $steps.one, two: $steps.two}"),
            **workflow("assist", ASSIST, allow="look"),
        },
    )
    return directory


def items(prefix: str, count: int = ITEMS) -> list[dict[str, str]]:
    return [{"ticket": f"{prefix}-{number}", "currency": "EUR"} for number in range(count)]


def sandboxes(bank: Bank) -> dict[str, list[str]]:
    """Sandbox → the tickets it paid, as the bank has it."""
    found = defaultdict(list)
    for row in bank.rows("refunds"):
        found[row["reason"]].append(row["ticket_id"])
    return found


def effects(seen: Observer, run: str) -> Counter[str]:
    return Counter(row[0] for row in seen.rows("select status from effects where run_id = %s", run))


async def test_a_map_makes_few_sandboxes_and_every_effect_once(
    desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank, admin: Principal
) -> None:
    await open_app(start_worker=True)
    run = await desk.start("pay_named", items=items("t"))
    assert await seen.finished(run) == ["succeeded"]
    assert bank.refunds == {f"t-{number}": 1 for number in range(ITEMS)}
    assert bank.requests == ITEMS
    assert 2 <= len(sandboxes(bank)) <= 8, "two full batches, and a few more where the machine was slow"
    # Everything else is as if each had been called by itself.
    assert effects(seen, run) == {"succeeded": ITEMS}
    keys = seen.rows("select count(distinct idempotency_key) from effects where run_id = %s", run)
    assert keys == [(ITEMS,)]
    assert len([one for one in seen.audit(run) if one["event_type"] == "tool.call"]) == ITEMS
    refunds = (await desk.result(run))["refunds"]
    paid = {f"ref-{row['number']:06}": row["ticket_id"] for row in bank.rows("refunds")}
    assert [paid[refund] for refund in refunds] == [f"t-{number}" for number in range(ITEMS)], "each its own"
    seen.story(run)
    assert (await desk.app.audit.verify(admin.org_id)).ok


async def test_a_bad_item_fails_alone(desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank) -> None:
    await open_app(start_worker=True)
    given = items("t", 10)
    given[3]["currency"] = "E7R"  # for the bank to refuse
    run = await desk.start("pay_named", items=given)
    assert await seen.finished(run) == ["partial"]
    assert bank.refunds == {f"t-{number}": 1 for number in range(10) if number != 3}
    assert effects(seen, run) == {"succeeded": 9, "failed": 1}
    refunds = (await desk.result(run))["refunds"]
    assert [refund is None for refund in refunds] == [number == 3 for number in range(10)]
    seen.story(run)


async def test_runs_at_once_never_share_a_sandbox(desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank) -> None:
    await open_app(start_worker=True)
    runs = [await desk.start("pay_named", items=items(f"run{number}", 8)) for number in range(4)]
    assert await seen.finished(*runs) == ["succeeded"] * 4
    found = sandboxes(bank)
    assert all(len({ticket.partition("-")[0] for ticket in tickets}) == 1 for tickets in found.values())
    assert max(map(len, found.values())) > 1, "though there were batches"
    assert set(bank.refunds.values()) == {1}
    assert len(bank.refunds) == 32


async def test_a_worker_killed_in_the_middle_of_a_batch_leaves_nothing_doubled_and_nothing_lost(
    desk: Desk, spawn: Spawn, open_app: OpenApp, seen: Observer, bank: Bank, admin: Principal
) -> None:
    run = await _killed_in_the_middle(desk, spawn, seen, bank, "pay_keyed")
    await open_app(start_worker=True)
    assert await seen.finished(run) == ["succeeded"]
    assert bank.refunds == {f"t-{number}": 1 for number in range(ITEMS)}
    assert bank.requests > ITEMS, "some were asked for twice, with the same key"
    assert effects(seen, run) == {"succeeded": ITEMS}
    seen.story(run)
    assert (await desk.app.audit.verify(admin.org_id)).ok


async def test_the_bank_would_show_what_a_batch_doubled(
    desk: Desk, spawn: Spawn, open_app: OpenApp, seen: Observer, strict: Bank
) -> None:
    """The control: the same before a bank that does not look at keys."""
    run = await _killed_in_the_middle(desk, spawn, seen, strict, "pay_liar")
    await open_app(start_worker=True)
    assert await seen.finished(run) == ["succeeded"]
    assert len(strict.refunds) == ITEMS
    assert max(strict.refunds.values()) > 1


async def _killed_in_the_middle(desk: Desk, spawn: Spawn, seen: Observer, bank: Bank, name: str) -> str:
    bank.hold(after=6)
    worker = await spawn().ready()
    run = await desk.start(name, items=items("t"))
    await until(lambda: bank.refunds.total() >= 6, lambda: f"nothing is paid: {seen.kinds(run)}")
    worker.send(signal.SIGKILL)
    assert await worker.ended() == -signal.SIGKILL
    bank.release()
    assert effects(seen, run)["executing"] > 0
    assert 0 < sum(bank.refunds.values()) < ITEMS, "in the middle"
    return run


async def test_parallel_steps_and_an_agents_calls_meet_too(
    desk: Desk, open_app: OpenApp, seen: Observer, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ToolBatches._serve

    async def patient(batches: Any, company: Any, gathering: Any, _: float) -> None:
        await original(batches, company, gathering, 20.0)  # more than a busy machine needs; two that meet go at once

    monkeypatch.setattr(ToolBatches, "_serve", patient)
    await open_app(start_worker=True)
    both = await desk.start("both")
    assert await seen.finished(both) == ["succeeded"]
    result = await desk.result(both)
    assert (result["one"]["place"], result["two"]["place"]) == ("rome", "oslo")
    assert result["one"]["name"] == result["two"]["name"]

    wanted: Any = [{"tool": "look", "arguments": {"place": place}} for place in ("rome", "oslo")]
    model.script(answer({"calls": wanted, "answer": None}), answer({"calls": [], "answer": {"warm": True}}))
    assist = await desk.start("assist")
    assert await seen.finished(assist) == ["succeeded"]
    asked = str(model.requests[-1].body["messages"])
    assert asked.count('shared\\": 2') + asked.count('"shared":2') + asked.count('"shared": 2') == 2, asked
