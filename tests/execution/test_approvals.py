"""Calls that a person approves: what is shown, what is used up, what is on record, and which calls need it."""

from __future__ import annotations

import hashlib
import json
import signal
from pathlib import Path

import pytest

from engines.conftest import Spawn
from engines.harness import PERMIT_ALL, Bank, Model, Observer, pay, until, workflow
from execution.approving import Scene
from execution.conftest import Deploy
from interlock.identity.principal import Principal

PAY = pay("pay", "refund", "bank")
COVERED = "- {id: ask, kind: review, title: Pay it?, approves: pay, show: {ticket: $input.ticket}}\n"
SECOND = COVERED.replace("id: ask", "id: again")
AGENT = """\
- id: assist
  kind: agent
  prompt: think
  values: {text: $input.text}
  tools: [refund]
  output: {title: assist, type: object, required: [paid], properties: {paid: {type: boolean}}}
"""


@pytest.fixture
async def scene(deploy: Deploy, project: Path, seen: Observer, bank: Bank, admin: Principal) -> Scene:
    (project / "policies/main.cedar").unlink()
    desk = await deploy(
        workflow("bare", PAY, allow="refund"),
        workflow("covered", COVERED, PAY, allow="refund"),
        workflow("twice", COVERED, SECOND, PAY, allow="refund"),
        workflow("assisted", AGENT, allow="refund", output="{paid: $steps.assist.paid}"),
        review={"self_approval": False},
    )
    return Scene(desk, seen, bank, Principal("bob", admin.org_id, frozenset({"reviewer"})))


async def _redeploy(scene: Scene, policy: str) -> None:
    (scene.app.project / "policies/main.cedar").write_text(policy)
    await scene.app.admin.deploy(scene.desk.admin, scene.app.read_project())


def _approvals(scene: Scene, run: str) -> list[str]:
    return [one["event_type"] for one in scene.seen.audit(run) if one["event_type"].startswith("approval.")]


async def test_a_call_asks_for_its_own_approval(scene: Scene) -> None:
    run, review = await scene.asked(ticket="t-1")
    waits = (await scene.app.runs.get(scene.bob, run)).waits_for
    assert [one.to_json() for one in waits] == [{"for": "review", "step": "pay", "review_id": review, "until": None}]
    shown = (await scene.app.reviews.get(scene.bob, review)).to_json()
    act = scene.act(review)
    assert (shown["purpose"], shown["requester"], shown["role"]) == ("approve_act", "ada", "reviewer")
    assert shown["act"] == {
        "step": "pay",
        "tool": "refund",
        "arguments": shown["show"],
        "labels": act.arguments.labels.to_json(),
        "digest": act.digest[:16],
        "approval": None,
    }
    assert (shown["show"]["ticket_id"], shown["show"]["amount"]) == ("t-1", 5)
    assert scene.bank.requests == 0

    await scene.approve(review)
    assert await scene.seen.finished(run) == ["succeeded"]
    assert scene.bank.refunds == {"t-1": 1}
    assert _approvals(scene, run) == ["approval.granted", "approval.consumed"]
    key = scene.seen.rows("select idempotency_key from effects where run_id = %s", run)
    assert scene.seen.rows("select consumed_by from approvals") == key


async def test_a_policy_knows_who_approved_and_in_which_review(scene: Scene) -> None:
    """The one whom a policy does not accept may answer, and the call is refused all the same."""
    rules = "permit(principal, action, resource) when { context.approval.digest_matches };\n"
    refused = 'forbid(principal, action, resource) when { context.approval.approvers.contains("bob") };\n'
    await _redeploy(scene, rules + refused)
    run, review = await scene.asked()
    await scene.approve(review)
    assert await scene.seen.finished(run) == ["failed"]
    run, review = await scene.asked()
    carol = Principal("carol", scene.desk.admin.org_id, frozenset({"reviewer"}))
    await scene.app.reviews.decide(carol, review, "approve", "")
    assert await scene.seen.finished(run) == ["succeeded"]
    assert len(scene.bank.refunds) == 1


def test_the_digest_is_of_canonical_json(scene_act: dict[str, object]) -> None:
    """RFC 8785 for text, numbers and null: keys in order, no space, as UTF-8. Written anew here."""

    def canonical(value: object) -> str:
        if isinstance(value, dict):
            return "{" + ",".join(f"{canonical(key)}:{canonical(value[key])}" for key in sorted(value)) + "}"
        if isinstance(value, list):
            return "[" + ",".join(map(canonical, value)) + "]"
        return json.dumps(value, ensure_ascii=False)

    assert hashlib.sha256(canonical(scene_act["document"]).encode()).hexdigest() == scene_act["digest"]


@pytest.fixture
def scene_act() -> dict[str, object]:
    from interlock.base.labels import Labels, Sensitivity, Trust
    from interlock.base.refs import Ref
    from interlock.execution.approvals import Act

    labels = Labels(Trust.USER, Sensitivity.PII, frozenset({"b", "a"}), frozenset({"input"}), 1_700_000_000.25)
    act = Act("acme", "run_1", "each#3/pay~1", "refund", "c" * 64, Ref("a" * 64, 12, labels), "v" * 16, "p" * 16)
    return {"document": act.document(), "digest": act.digest}


async def test_a_review_before_it_counts_when_it_covers_it(scene: Scene) -> None:
    run = await scene.desk.start("covered", ticket="t-2")
    review = await scene.seen.review(run)
    shown = (await scene.app.reviews.get(scene.bob, review)).to_json()
    assert shown["show"] == {"ticket": "t-2"}
    assert shown["act"]["arguments"]["amount"] == 5  # also what is fixed in the workflow is shown
    await scene.approve(review)
    assert await scene.seen.finished(run) == ["succeeded"]
    assert scene.bank.refunds == {"t-2": 1}
    assert scene.seen.rows("select count(*) from reviews where run_id = %s", run) == [(1,)]
    after = (await scene.app.reviews.get(scene.bob, review)).to_json()
    assert after["act"]["approval"]["consumed_at"] is not None


async def test_two_people_for_one_call(scene: Scene) -> None:
    await _redeploy(
        scene,
        "permit(principal, action, resource) when { context.approval.quorum >= 2 && context.approval.digest_matches };",
    )
    carol = Principal("carol", scene.bob.org_id, frozenset({"reviewer"}))
    runs = {}
    for second in (carol, scene.bob):  # the same person twice is no second person
        run = runs[second.user_id] = await scene.desk.start("twice")
        await scene.approve(await scene.seen.review(run))
        await scene.taken(run, "review_decided")
        await scene.app.reviews.decide(second, await scene.seen.review(run), "approve", "")
    assert await scene.seen.finished(runs["carol"]) == ["succeeded"]
    assert _approvals(scene, runs["carol"]).count("approval.consumed") == 2
    await scene.seen.review(runs["bob"], "approve_act")
    assert sum(scene.bank.refunds.values()) == 1
    await scene.desk.cancel(runs["bob"])
    await scene.seen.finished(runs["bob"])


async def test_the_role_that_the_policy_wants_is_asked(scene: Scene) -> None:
    await _redeploy(
        scene,
        "permit(principal, action, resource) when { context.approval.digest_matches && "
        'context.approval.roles.contains("operator") };',
    )
    run, review = await scene.asked()
    assert scene.seen.rows("select role from reviews where review_id = %s", review) == [("operator",)]
    both = Principal("carol", scene.bob.org_id, frozenset({"reviewer", "operator"}))
    await scene.app.reviews.decide(both, review, "approve", "")
    assert await scene.seen.finished(run) == ["succeeded"]


@pytest.mark.parametrize(
    "policy",
    [
        'permit(principal, action == Action::"call_tool", resource) when { resource.effect == "pure" };',
        f'{PERMIT_ALL} forbid(principal, action, resource == Tool::"refund");',
        "permit(principal, action, resource) when { 9223372036854775807 + 1 + context.approval.quorum > 0 };",
        "permit(principal, action, resource) when { context.approval.quorum >= 2 };",
    ],
    ids=["not permitted", "forbidden", "not evaluable", "more than one could give"],
)
async def test_what_no_approval_would_allow_asks_nobody(policy: str, scene: Scene) -> None:
    await _redeploy(scene, policy)
    run = await scene.desk.start("bare")
    assert await scene.seen.finished(run) == ["failed"]
    assert scene.seen.rows("select from reviews where run_id = %s", run) == []
    assert scene.bank.requests == 0


async def test_a_policy_that_reads_only_whether_there_is_one(scene: Scene) -> None:
    """An approval of another call is one, as far as such a policy can see; it carries nothing through all the same."""
    await _redeploy(scene, "permit(principal, action, resource) when { context.approval.present };")
    run, review = await scene.approved_while_paused()
    scene.resign(review, digest="0" * 64)
    await scene.resume(run)
    await scene.nothing_happens(run)
    assert scene.why(run) == {"mismatch"}


async def test_what_needs_no_approval_uses_none_up(scene: Scene) -> None:
    await _redeploy(scene, PERMIT_ALL)
    run = await scene.desk.start("bare")
    assert await scene.seen.finished(run) == ["succeeded"]
    assert scene.seen.rows("select from reviews") == []


async def test_an_agents_call_is_approved(scene: Scene, model: Model) -> None:
    arguments = {
        "ticket_id": "t-9", "customer_id": "c", "amount": 7, "currency": "EUR", "reason": "r",
        "bank_url": f"http://{scene.bank.address}",
    }  # fmt: skip
    from interlock.testing import answer

    calls = {"calls": [{"tool": "refund", "arguments": arguments}], "answer": None}
    model.script(answer(calls), answer({"calls": [], "answer": {"paid": True}}))
    run = await scene.desk.start("assisted")
    review = await scene.seen.review(run, "approve_act")
    assert (await scene.app.reviews.get(scene.bob, review)).to_json()["act"]["arguments"]["amount"] == 7
    await scene.approve(review)
    assert await scene.seen.finished(run) == ["succeeded"]
    assert scene.bank.refunds == {"t-9": 1}


async def test_taken_over_while_it_waits(scene: Scene) -> None:
    """Another worker carries on: the question stays the same one."""
    run, review = await scene.asked(ticket="t-3")
    await scene.seen.asleep(run)
    await scene.app.drain_worker()
    await scene.approve(review)
    await until(lambda: scene.seen.queue(run)["ready"], lambda: "not woken")  # type: ignore[index]
    assert scene.bank.requests == 0
    await scene.app.start_worker()
    assert await scene.seen.finished(run) == ["succeeded"]
    assert scene.bank.refunds == {"t-3": 1}
    scene.seen.story(run)


@pytest.mark.parametrize("point", ["before intend", "after intend"])
async def test_killed_where_the_approval_is_used_up(point: str, scene: Scene, spawn: Spawn) -> None:
    """The worker that takes over finds it unused, or used by the effect that it goes on with; the bank pays once."""
    await scene.app.drain_worker()
    worker = await spawn(crash=(point, 1)).ready()
    run, review = await scene.asked(ticket="t-4")
    await scene.approve(review)
    assert await worker.ended() == -signal.SIGKILL
    assert scene.bank.requests == 0
    used = scene.seen.rows("select consumed_at is not null from approvals")
    assert used == [(point == "after intend",)]
    await scene.app.start_worker()
    assert await scene.seen.finished(run) == ["succeeded"]
    assert scene.bank.refunds == {"t-4": 1}
    assert scene.seen.rows("select count(*) from reviews") == [(1,)]
    assert _approvals(scene, run) == ["approval.granted", "approval.consumed"]


@pytest.mark.parametrize("bank", [("--fail-every", "2")], indirect=True)
async def test_a_retry_needs_no_second_approval(scene: Scene) -> None:
    for ticket in ("t-5", "t-6"):  # the second one's first call fails
        run, review = await scene.asked(ticket=ticket)
        await scene.approve(review)
        assert await scene.seen.finished(run) == ["succeeded"]
    assert "step_failed pay" in scene.seen.kinds(run)
    assert scene.bank.refunds == {"t-5": 1, "t-6": 1}
    assert scene.seen.rows("select count(*) from reviews where run_id = %s", run) == [(1,)]
