"""What the kernel must refuse, at each phase; what was refused was not done, and is on record."""

from __future__ import annotations

import copy
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from engines.harness import ASK, Bank, Model, Observer, pay, think, until, workflow
from execution.batching import config
from execution.conftest import Deploy
from gateway.batch_server import BatchServer
from interlock.definitions import project
from interlock.definitions.versions import Definition
from interlock.store.commit import Commit
from interlock.testing import answer

PAY = pay("pay", "refund", "bank")
NOTE = "- {id: note, kind: tool, tool: note, input: {text: $input.ticket}}\n"


def entry(seen: Observer, run: str, step: str) -> dict[str, Any]:
    """The one audit entry about a step."""
    (found,) = [one for one in seen.audit(run) if one["detail"].get("step") == step]
    return found


# -- admit -----------------------------------------------------------------------------------------------------------


async def test_a_tool_outside_the_allowlist(deploy: Deploy, seen: Observer, bank: Bank) -> None:
    """`interlock check` would refuse the definition; the kernel does too if one gets past it."""
    desk = await deploy(workflow("w", PAY, allow="refund"))
    project = desk.app.read_project()
    data = copy.deepcopy(dict(project.definitions["w"].data))
    data["workflow"]["allow"] = []
    proposed = await desk.app.versions.propose(desk.admin.org_id, Definition.of(data), project.bundles, by="ada")
    assert proposed is not None
    new, head = proposed
    await desk.app.committer.submit(Commit(desk.admin.org_id, new_versions=[new], moved_heads=[head]))

    run = await desk.start("w")
    assert await seen.finished(run) == ["failed"]
    assert "not in this workflow's allow list" in seen.run(run)["reason"]
    assert (bank.requests, seen.effect(run)) == (0, None)
    assert entry(seen, run, "pay")["detail"]["error"] == "denied"


async def test_the_built_in_policy_wants_an_approval_before_money_moves(
    deploy: Deploy, project: Path, seen: Observer, bank: Bank
) -> None:
    (project / "policies/main.cedar").unlink()
    ask = ASK.replace("kind: review", "kind: review, approves: pay")
    desk = await deploy(workflow("bare", PAY, allow="refund"), workflow("asked", ask, PAY, allow="refund"))
    bare = await desk.start("bare", ticket="bare")
    await desk.decide(await seen.review(bare, "approve_act"), "reject")
    assert await seen.finished(bare) == ["failed"]
    assert (bank.requests, seen.effect(bare)) == (0, None)

    rejected, approved = await desk.start("asked", ticket="no"), await desk.start("asked", ticket="yes")
    await desk.decide(await seen.review(rejected), "reject")
    await desk.decide(await seen.review(approved), "approve")
    assert await seen.finished(rejected, approved) == ["failed", "succeeded"]
    assert bank.refunds == {"yes": 1}
    assert [one["decision"] for one in seen.audit(approved) if one["event_type"] == "tool.call"] == ["allow"]


@pytest.mark.parametrize(
    "policy",
    [
        'permit(principal, action, resource); forbid(principal, action == Action::"call_model", resource);',
        'permit(principal, action == Action::"call_tool", resource);',
        # Cannot be evaluated: an error must not open the door that another rule would open.
        "permit(principal, action, resource);"
        "permit(principal, action, resource) when { 9223372036854775807 + 1 + context.approval.quorum > 0 };",
    ],
    ids=["forbidden", "not permitted", "not evaluable"],
)
async def test_a_model_the_policy_denies(
    policy: str, deploy: Deploy, project: Path, seen: Observer, model: Model
) -> None:
    (project / "policies/main.cedar").write_text(policy)
    desk = await deploy(workflow("w", think()))
    run = await desk.start("w")
    assert await seen.finished(run) == ["failed"]
    assert model.count == 0
    assert entry(seen, run, "think")["decision"] == "deny"


async def test_the_policy_sees_who_and_how_trustworthy(
    deploy: Deploy, project: Path, seen: Observer, bank: Bank
) -> None:
    """A rule on the input's trust: what a tool wrote may not steer a payment, what the user wrote may."""
    rule = 'forbid(principal, action, resource == Tool::"refund") when { context.trust == "tool" };'
    (project / "policies/main.cedar").write_text("permit(principal, action, resource);" + rule)
    tainted = pay("pay", "refund", "bank", ticket="$steps.note.text")
    desk = await deploy(
        workflow("tainted", NOTE, tainted, allow="note, refund"), workflow("clean", NOTE, PAY, allow="note, refund")
    )
    runs = [await desk.start("tainted", ticket="t"), await desk.start("clean", ticket="c")]
    assert await seen.finished(*runs) == ["failed", "succeeded"]
    assert bank.refunds == {"c": 1}


async def test_arguments_that_break_the_contract(deploy: Deploy, seen: Observer, bank: Bank) -> None:
    desk = await deploy(workflow("w", PAY.replace("amount: 5", "amount: $input.amount"), allow="refund"))
    run = await desk.start("w", amount=-5)
    assert await seen.finished(run) == ["failed"]
    assert seen.run(run)["reason"] == (
        'step "pay": tool "refund": arguments: amount: the value is less than or equal to the minimum of 0'
    )
    assert (bank.requests, seen.effect(run)) == (0, None)
    refused = entry(seen, run, "pay")
    assert (refused["decision"], refused["detail"]["error"]) == ("none", "contract_violation")


async def test_a_slot_that_does_not_fit_its_prompt(deploy: Deploy, seen: Observer, model: Model) -> None:
    desk = await deploy(workflow("w", think()))
    run = await desk.start("w", text="MARKER" * 1000)
    assert await seen.finished(run) == ["failed"]
    assert 'prompt "think": text' in seen.run(run)["reason"]
    assert model.count == 0
    assert "MARKER" not in seen.everywhere()


async def test_a_step_that_reads_what_did_not_run(deploy: Deploy, seen: Observer, model: Model) -> None:
    """Only one branch runs; what the other would have given is not made up."""
    choose = (
        "- id: choose\n  kind: branch\n  cases:\n"
        "    - when: input.amount > 1.0\n      steps:\n"
        "        - {id: note, kind: tool, tool: note, input: {text: $input.ticket}}\n"
    )
    desk = await deploy(workflow("w", choose, think().replace("$input.text", "$steps.note.text"), allow="note"))
    runs = [await desk.start("w", amount=2.0), await desk.start("w", amount=0.5)]
    assert await seen.finished(*runs) == ["succeeded", "failed"]
    assert "did not run in this run" in seen.run(runs[1])["reason"]
    assert model.count == 1


# -- reserve ---------------------------------------------------------------------------------------------------------


def budget(tokens: int) -> str:
    return f"budget: {{tokens: {tokens}}}\n"


async def test_a_budget_too_small_for_the_first_call(deploy: Deploy, seen: Observer, model: Model) -> None:
    desk = await deploy(workflow("w", think(), extra=budget(50)))
    run = await desk.start("w")
    assert await seen.finished(run) == ["partial"]
    assert seen.run(run)["reason"].endswith("and 0 of the run's 50 are used")
    assert model.count == 0
    assert entry(seen, run, "think")["detail"]["error"] == "budget_exceeded"


async def test_what_fits_the_budget_is_kept(deploy: Deploy, seen: Observer, model: Model) -> None:
    """A call may use 58 tokens here (50 out, 8 in) and uses 8 in fact."""
    output = "{first: $steps.one.words, second: $steps.two.words}"
    model.answers |= {
        "one": {"verdict": "good", "words": "well"},
        "two": {"verdict": "good", "words": "well"},
    }
    desk = await deploy(workflow("w", think("one"), think("two"), extra=budget(65), output=output))
    run = await desk.start("w")
    assert await seen.finished(run) == ["partial"]
    assert (model.asked("one"), model.asked("two")) == (1, 0)
    assert await desk.app.runs.result(desk.admin, run) == {"first": "well", "second": None}
    record = seen.run(run)
    assert "of the run's 65 are used" in record["reason"]
    assert record["input_tokens"] + record["output_tokens"] <= 65


async def test_parallel_steps_do_not_overspend_together(deploy: Deploy, seen: Observer, model: Model) -> None:
    """Each alone would fit; the second is refused while the first is still under way."""
    both = "- id: both\n  kind: parallel\n  branches:\n    a:\n"
    both += _indent(think("one")) + "    b:\n" + _indent(think("two"))
    model.hold("one")
    model.hold("two")
    desk = await deploy(workflow("w", both, extra=budget(100)))
    run = await desk.start("w")
    await until(lambda: "step_failed" in " ".join(seen.kinds(run)), lambda: f"nobody is refused: {seen.kinds(run)}")
    await until(lambda: model.asked("one") + model.asked("two") == 1, lambda: "no step is under way")
    for title in ("one", "two"):
        model.release(title)
    assert await seen.finished(run) == ["partial"]
    assert model.count == 1


async def test_spending_is_known_before_its_reservation_ends(
    deploy: Deploy, seen: Observer, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`one` is answered while the end of `note` waits to be written; what follows `note` must know what `one` cost."""
    long = {"verdict": "good", "words": "word " * 60}
    model.answers |= {"one": long, "two": long}
    first = NOTE.replace("id: note", "id: first")
    both = "- id: both\n  kind: parallel\n  branches:\n    a:\n"
    both += _indent(think("one")) + "    b:\n" + _indent(first + NOTE + think("two"))
    model.hold("one")
    desk = await deploy(workflow("w", both, allow="note", extra=budget(125)))
    original = desk.app.committer.submit

    async def submit(commit: Commit) -> None:
        if any(row.event.get("step") == "first" for row in commit.journal):
            spans = desk.app.tracing._store.ended
            await until(lambda: any(span.name == "step note" for span in spans), lambda: "it waits")
            model.release("one")
            await until(lambda: any(span.name == "step one" for span in spans), lambda: "no answer")
        await original(commit)

    await desk.app.tracing._store._loop.close()  # else ended spans are written and forgotten before they are looked for
    monkeypatch.setattr(desk.app.committer, "submit", submit)
    run = await desk.start("w")
    assert await seen.finished(run) == ["partial"]
    assert (model.asked("one"), model.asked("two")) == (1, 0)


async def test_money_that_cannot_be_counted_is_not_spent(
    deploy: Deploy, seen: Observer, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A budget in USD, and a model whose price is not known: refused before the call, on every attempt alike."""
    monkeypatch.setattr(project, "unpriced_models", lambda *_: [])  # it was known where the workflow was deployed
    desk = await deploy(workflow("w", think(), extra="budget: {usd: 1}\n"))
    run = await desk.start("w")
    assert await seen.finished(run) == ["failed"]
    assert "its price is not known, so the run's budget in USD cannot hold" in seen.run(run)["reason"]
    assert model.count == 0
    (failed,) = [event for event in seen.journal(run) if event["type"] == "step_failed"]
    assert (failed["failure"]["code"], failed["usage"], failed["request"]) == ("unpriced", None, None)


async def test_a_budget_in_usd_holds_to_the_nano(deploy: Deploy, seen: Observer, provider: BatchServer) -> None:
    """The worst case of a call is reserved exactly: at the limit it is made, and one nano-USD below it is not."""
    pin = "openai:gpt-4o-mini-2024-07-18"
    probe = await deploy(workflow("w", think(), extra="budget: {usd: 0.000000001}\n"), **config(pin))
    run = await probe.start("w")
    assert await seen.finished(run) == ["partial"]
    words = re.search(
        r"the call could cost (\S+) USD, and 0 of the run's 0\.000000001 USD are used", seen.run(run)["reason"]
    )
    assert words is not None
    worst = Decimal(words[1])
    assert len(provider.direct) == 0
    for limit, ending in ((worst, "succeeded"), (worst - Decimal("1e-9"), "partial")):
        desk = await deploy(workflow("w", think(), extra=f"budget: {{usd: {limit:f}}}\n"), **config(pin))
        run = await desk.start("w")
        assert await seen.finished(run) == [ending]
    assert len(provider.direct) == 1


# -- execute and settle ----------------------------------------------------------------------------------------------


async def test_an_answer_that_breaks_the_contract(deploy: Deploy, project: Path, seen: Observer, bank: Bank) -> None:
    """A pure tool's step fails. A mutating tool did its work: only a person can say what its answer means."""
    (project / "tools/note/main.py").write_text("def run(text):\n    return {'text': 7, 'note': 'MARKER'}\n")
    code = project / "tools/refund/main.py"
    code.write_text(
        code.read_text() + "\n_real = run\ndef run(**given):\n    return {'odd': 'MARKER', 'paid': _real(**given)}\n"
    )
    desk = await deploy(workflow("pure", NOTE, allow="note"), workflow("mutating", PAY, allow="refund"))
    pure, mutating = await desk.start("pure"), await desk.start("mutating", ticket="a")
    assert await seen.finished(pure) == ["failed"]
    assert seen.run(pure)["reason"] == 'step "note": tool "note": its answer: text: is a number; must be a string'

    review = await seen.review(mutating, "confirm")
    assert (bank.requests, bank.refunds) == (1, {"a": 1})
    await desk.decide(review, "approve", {"refund_id": "ref-1", "amount": 5, "currency": "EUR"})
    assert await seen.finished(mutating) == ["succeeded"]
    assert "MARKER" not in seen.everywhere()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ValueError('no')", "failed (ValueError)"),
        ("import os; os._exit(3)", "crashed"),
        ("import sys; sys.exit('bye')", "crashed"),
        ("import time; time.sleep(60)", "did not answer within 1 s and was killed"),
        ("return {1, 2}", "answered with something that is not JSON"),
        ("return {'text': 'x' * 11_000_000}", "answered with more than the limit allows"),
    ],
    ids=["raises", "dies", "exits", "hangs", "not JSON", "too large"],
)
async def test_a_tool_that_fails(code: str, reason: str, deploy: Deploy, project: Path, seen: Observer) -> None:
    (project / "tools/note/main.py").write_text(f"def run(text):\n    {code}\n")
    contract = project / "tools/note/tool.yaml"
    contract.write_text(contract.read_text() + ("timeout: 1\n" if "sleep" in code else ""))
    step = NOTE.replace("}}", "}, retry: {max_attempts: 2, backoff: 0.01}}")
    desk = await deploy(workflow("w", step, allow="note"))
    run = await desk.start("w")
    assert await seen.finished(run) == ["failed"]
    assert seen.run(run)["reason"] == f'step "note": tool "note" {reason}'
    # Whatever may pass is tried again, whatever would come again is not.
    attempts = seen.kinds(run).count("step_failed note")
    assert attempts == (2 if reason in {"crashed", "did not answer within 1 s and was killed"} else 1)
    assert len([one for one in seen.audit(run) if one["event_type"] == "tool.call"]) == attempts


async def test_the_run_s_retries_are_bounded(deploy: Deploy, project: Path, seen: Observer) -> None:
    code = "from interlock_tool import Retry\ndef run(text):\n    raise Retry('later')\n"
    (project / "tools/note/main.py").write_text(code)
    step = NOTE.replace("}}", "}, retry: {max_attempts: 20, backoff: 0.01}}")
    desk = await deploy(workflow("w", step, allow="note", extra="budget: {retries: 2}\n"))
    run = await desk.start("w")
    assert await seen.finished(run) == ["failed"]
    assert seen.kinds(run).count("step_failed note") == 3


async def test_an_answer_too_large_to_keep_was_paid_for(deploy: Deploy, seen: Observer, model: Model) -> None:
    model.answers["think"] = {"verdict": "good", "words": "word " * 1000}
    desk = await deploy(workflow("w", think(attempts=1)), limits={"payload_bytes": 2048})
    run = await desk.start("w")
    assert await seen.finished(run) == ["failed"]
    assert "over the limit of 2048" in seen.run(run)["reason"]
    assert seen.run(run)["output_tokens"] > 1000


async def test_an_agent_that_claims_a_refused_payment(
    deploy: Deploy, project: Path, seen: Observer, model: Model, bank: Bank
) -> None:
    """The facts record that nothing was paid, a branch reads them, and the run is flagged, although the model claims a payment."""
    (project / "policies/main.cedar").write_text(
        'permit(principal, action, resource) unless { resource == Tool::"refund" };'
    )
    payment = {
        "ticket_id": "t1", "customer_id": "cus-001", "amount": 5, "currency": "EUR", "reason": "asked",
        "bank_url": f"http://{bank.address}",
    }  # fmt: skip
    call = {"calls": [{"tool": "refund", "arguments": payment}], "answer": None}
    model.script(answer(call), answer({"calls": [], "answer": {"paid": True}}))
    assist = (
        "- {id: assist, kind: agent, prompt: think, values: {text: $input.text}, tools: [refund],\n"
        "   output: {title: assist, type: object, required: [paid], properties: {paid: {type: boolean}}}}\n"
    )
    check = (
        "- id: really\n  kind: branch\n  cases:\n  - when: assist.succeeded_refund == 0 && assist.denied_calls == 1\n"
        "    steps: [{id: note, kind: tool, tool: note, input: {text: it was not paid}}]\n"
    )
    desk = await deploy(workflow("w", assist, check, allow="refund, note", output="{paid: $steps.assist.paid}"))
    run = await desk.start("w")
    assert await seen.finished(run) == ["succeeded"]
    assert await desk.result(run) == {"paid": True}
    assert "step_succeeded note" in seen.kinds(run)
    assert bank.requests == 0
    assert seen.run(run)["flags"] == ["denied:refund"]
    ended = [one for one in seen.audit(run) if one["event_type"] == "run.finished"]
    assert [one["detail"]["flags"] for one in ended] == [["denied:refund"]]


def _indent(text: str) -> str:
    return "".join("      " + line for line in text.splitlines(keepends=True))
