"""Attempts to have a tool called without a valid approval of exactly that call. The bank, a process of its own, counts: 0 paid."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from engines.harness import Bank, Observer, pay, until, workflow
from execution.approving import Attack, Scene
from execution.conftest import Deploy
from interlock.base.errors import ApprovalInvalid, Conflict, Denied, NotFound, SelfApproval
from interlock.base.labels import Trust
from interlock.base.refs import Ref
from interlock.execution.effects import EffectLedger
from interlock.identity.principal import Principal

PAY = pay("pay", "refund", "bank")
HOLD = "on_failure: hold\n"
BOTH = PAY + pay("more", "refund", "bank")
MAP = (
    "- id: each\n  kind: map\n  items: $input.items\n  steps:\n"
    "    - {id: pay, kind: tool, tool: refund, input: {ticket_id: $input.ticket, customer_id: c, amount: 5, currency: EUR, "
    "reason: r, bank_url: 'http://${bank}'}}\n"
)
GREET = "- {id: ask, kind: review, title: May we send a friendly greeting?}\n"
FALLBACK = (
    "- id: pay\n  kind: tool\n  tool: boom_pay\n  retry: {max_attempts: 1}\n  input: {}\n"
    "  fallback: [{tool: refund, input: {ticket_id: $input.ticket, customer_id: c, amount: 5, currency: EUR, reason: r, "
    "bank_url: 'http://${bank}'}}]\n"
)


@pytest.fixture
async def scene(
    deploy: Deploy, project: Path, seen: Observer, bank: Bank, admin: Principal, request: pytest.FixtureRequest
) -> Scene:
    (project / "policies/main.cedar").unlink()
    boom = {
        "tools/boom_pay/tool.yaml": "name: boom_pay\ndescription: x\neffect: mutating\ninput: {type: object}\n"
        "output: {type: object}\n",
        "tools/boom_pay/main.py": "from interlock_tool import Fail\n\n\ndef run(context):\n    raise Fail('no')\n",
    }
    files = [
        workflow("bare", PAY, allow="refund"),
        workflow("held", PAY, allow="refund", extra=HOLD),
        workflow("both", BOTH, allow="refund"),
        workflow("greeted", GREET.replace("}", ", approves: false}"), PAY, allow="refund"),
        workflow("limited", PAY.replace("tool: refund", "tool: refund\n  deadline: 1"), allow="refund"),
        workflow("ladder", FALLBACK, allow="refund, boom_pay"),
        boom,
    ]
    desk = await deploy(*files, review={"self_approval": False})
    return Scene(desk, seen, bank, Principal("bob", admin.org_id, frozenset({"reviewer"})))


# -- what is on record about an approval changes between the decision and the call ---------------------------------------


def _set(column: str, value: Any) -> Callable[[Scene, str], None]:
    return lambda scene, review: scene.tamper(f"update approvals set {column} = %s where review_id = %s", value, review)


def _another_act(**changes: Any) -> Callable[[Scene, str], None]:
    """A real approval, properly signed, of an act that differs in one thing."""

    def change(scene: Scene, review: str) -> None:
        act = scene.act(review)
        given = {name: value(getattr(act, name)) if callable(value) else value for name, value in changes.items()}
        scene.resign(review, digest=replace(act, **given).digest)

    return change


def _labelled(ref: Ref) -> Ref:
    return replace(ref, labels=replace(ref.labels, trust=Trust.TOOL))


def _aged(ref: Ref) -> Ref:
    return replace(ref, labels=replace(ref.labels, as_of=1.5))


TAMPERED: dict[str, tuple[Callable[[Scene, str], None], set[str]]] = {
    "another digest": (_set("digest", "0" * 64), {"forged"}),
    "another approver": (_set("approver", "mallory"), {"forged"}),
    "more roles": (_set("roles", ["admin", "reviewer"]), {"forged"}),
    "a longer life": (_set("expires_at", "2100-01-01"), {"forged"}),
    "no signature": (_set("signature", ""), {"forged"}),
    "a signature of nothing": (_set("signature", "0" * 64), {"forged"}),
    "used up by another effect": (
        lambda scene, review: scene.tamper(
            "update approvals set consumed_by = 'x', consumed_at = now() where review_id = %s", review
        ),
        {"used"},
    ),
    "revoked": (
        lambda scene, review: scene.tamper(
            "update approvals set revoked_by = 'x', revoked_at = now() where review_id = %s", review
        ),
        {"revoked"},
    ),
    "deleted": (lambda scene, review: scene.tamper("delete from approvals where review_id = %s", review), set()),
    "of another step": (lambda scene, review: scene.resign(review, step="more"), set()),
    "expired": (lambda scene, review: scene.resign(review, expires=1_000_000), {"expired"}),
    "another organisation": (_another_act(org_id="globex"), {"mismatch"}),
    "another run": (_another_act(run_id="run_0"), {"mismatch"}),
    "another instance": (_another_act(step="each#2/pay"), {"mismatch"}),
    "another tool": (_another_act(tool="note"), {"mismatch"}),
    "another contract": (_another_act(contract="0" * 64), {"mismatch"}),
    "other arguments": (_another_act(arguments=lambda ref: replace(ref, digest="0" * 64)), {"mismatch"}),
    "less trusted arguments": (_another_act(arguments=_labelled), {"mismatch"}),
    "older arguments": (_another_act(arguments=_aged), {"mismatch"}),
    "another version": (_another_act(version="0" * 16), {"mismatch"}),
    "another policy": (_another_act(policy="0" * 16), {"mismatch"}),
}


@pytest.mark.parametrize("name", TAMPERED)
async def test_an_approval_that_is_not_the_one_given(name: str, scene: Scene) -> None:
    change, why = TAMPERED[name]
    run, review = await scene.approved_while_paused()
    change(scene, review)
    await scene.resume(run)
    await scene.nothing_happens(run)
    assert scene.why(run) == why


async def test_the_digest_names_every_field(scene: Scene) -> None:
    """So the cases above are all there are."""
    _, review = await scene.asked()
    assert {field.name for field in dataclasses.fields(scene.act(review))} == {
        *("org_id", "run_id", "step", "tool", "contract", "arguments", "version", "policy"),
    }


# -- it changes after the kernel has looked, and before the commit ----------------------------------------------------------


@pytest.mark.parametrize("name", ["used up by another effect", "revoked", "deleted", "another digest", "expired"])
async def test_an_approval_that_goes_at_the_last_moment(
    name: str, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, _ = TAMPERED[name]
    intend = EffectLedger.intend
    run, review = await scene.approved_while_paused()

    async def late(ledger: EffectLedger, *args: Any, **rest: Any) -> None:
        change(scene, review)
        with pytest.raises(ApprovalInvalid):
            await intend(ledger, *args, **rest)
        raise ApprovalInvalid("as it was")

    monkeypatch.setattr(EffectLedger, "intend", late)
    await scene.resume(run)
    await scene.nothing_happens(run)
    assert scene.seen.effect(run) is None
    (failed,) = [one for one in scene.seen.journal(run) if one["type"] == "step_failed"]
    assert (failed["failure"]["kind"], failed["failure"]["code"]) == ("denied", "approval_invalid")


# -- people who may not, or not any more ---------------------------------------------------------------------------------


def _as(roles: str, user: str = "eve", org: str | None = None) -> Callable[[Scene], Principal]:
    return lambda scene: Principal(user, org or scene.desk.admin.org_id, frozenset(roles.split()))


PEOPLE: dict[str, tuple[Callable[[Scene], Principal], type[Exception]]] = {
    "who started the run": (lambda scene: scene.desk.admin, SelfApproval),
    "who started it, with another key": (_as("reviewer", "ada"), SelfApproval),
    "a viewer": (_as("viewer"), Denied),
    "an operator": (_as("operator"), Denied),
    "a developer": (_as("developer"), Denied),
    "without a role": (_as(""), Denied),
    "of another organisation": (_as("admin", "gus", "globex"), NotFound),
}


@pytest.mark.parametrize("name", PEOPLE)
async def test_a_person_who_may_not_approve(name: str, scene: Scene) -> None:
    who, error = PEOPLE[name]
    run, review = await scene.asked()
    with pytest.raises(error):
        await scene.app.reviews.decide(who(scene), review, "approve", "")
    assert scene.open_reviews(run) == [review]
    assert scene.seen.rows("select from approvals") == []
    await scene.end(run)


async def _twice(scene: Scene) -> None:
    run, review = await scene.asked()
    await scene.app.reviews.decide(scene.bob, review, "reject", "")
    with pytest.raises(Conflict):
        await scene.approve(review)
    await scene.nothing_happens(run)


async def _after_the_end(scene: Scene) -> None:
    run, review = await scene.asked()
    await scene.desk.cancel(run)
    await scene.seen.finished(run)
    with pytest.raises(Conflict):
        await scene.approve(review)
    await scene.end(run)


async def _after_the_deadline(scene: Scene) -> None:
    run, review = await scene.asked("limited")
    await scene.seen.finished(run)
    with pytest.raises(Conflict):
        await scene.approve(review)
    await scene.end(run)


async def _who_edited_it(scene: Scene) -> None:
    """Bob put other arguments in the place of the step's; so they are his, and another person's to approve."""
    run, review = await scene.asked("held")
    await scene.app.reviews.decide(scene.bob, review, "reject", "")
    query = "select dead_letter_id from dead_letters where run_id = %s and status = 'open'"
    await until(lambda: scene.seen.rows(query, run), lambda: "no dead letter")
    letter = scene.seen.rows(query, run)[0][0]
    operator = replace(scene.bob, roles=frozenset({"reviewer", "operator"}))
    given = (await scene.app.dead_letters.get(operator, letter)).input
    await scene.app.dead_letters.requeue(operator, letter, "", {**given, "amount": 9999})
    again = await scene.seen.review(run, "approve_act")
    shown = await scene.app.reviews.get(operator, again)
    assert shown.to_json()["act"]["arguments"]["amount"] == 9999
    with pytest.raises(SelfApproval, match="requeued a dead letter"):
        await scene.app.reviews.decide(operator, again, "approve", "")
    await scene.end(run)


async def _revoked_in_time(scene: Scene) -> None:
    run, review = await scene.approved_while_paused()
    await scene.app.reviews.revoke(scene.bob, review)
    with pytest.raises(Conflict):
        await scene.app.reviews.revoke(scene.bob, review)
    with pytest.raises(Conflict):
        await scene.approve(review)
    await scene.resume(run)
    await scene.nothing_happens(run)
    assert scene.why(run) == {"revoked"}


async def _a_greeting(scene: Scene) -> None:
    """The case that was measured: an approved greeting opens nothing."""
    run = await scene.desk.start("greeted")
    await scene.approve(await scene.seen.review(run))
    await scene.seen.review(run, "approve_act")
    assert scene.seen.rows("select from approvals") == []
    await scene.end(run)


async def _a_greeting_past_the_check(scene: Scene) -> None:
    """Likewise with a review that claims to cover the call, deployed past the check."""
    from interlock.definitions.versions import Definition

    project = scene.app.read_project()
    data = dict(project.definitions["greeted"].data)
    steps = [{**data["workflow"]["steps"][0], "approves": "pay"}, *data["workflow"]["steps"][1:]]
    forced = Definition.of({**data, "workflow": {**data["workflow"], "steps": steps}})
    await scene.app.versions.deploy(scene.desk.admin.org_id, forced, project.bundles, by="ada")
    await _a_greeting(scene)


async def _before_it_was_asked(scene: Scene) -> None:
    """A decision about the act, at hand before the question is."""
    first, review = await scene.asked()
    step = scene.act(review).step
    run = await scene.desk.start("greeted")
    greeting = await scene.seen.review(run)
    await scene.forge_decision(run, step, scene.act(review).digest)
    await scene.approve(greeting)
    await scene.seen.review(run, "approve_act")
    await scene.end(run)
    await scene.end(first)


# -- decisions that no person took -----------------------------------------------------------------------------------------


async def _forged_decision(scene: Scene) -> None:
    run, review = await scene.asked()
    await scene.forge_decision(run, "pay", scene.act(review).digest)
    await scene.nothing_happens(run)


async def _forged_twice(scene: Scene) -> None:
    run, review = await scene.asked()
    for count in (1, 2):
        await scene.forge_decision(run, "pay", scene.act(review).digest)
        await scene.taken(run, "approval_needed", count + 1)
    assert await scene.seen.finished(run) == ["failed"]
    await scene.end(run)


async def _forged_about_another_act(scene: Scene) -> None:
    run, _ = await scene.asked()
    await scene.forge_decision(run, "pay", "0" * 64)
    await scene.forge_decision(run, "pay", "")
    await scene.taken(run, "approval_needed")
    await until(lambda: not scene.seen.rows("select from signals where run_id = %s", run), lambda: "signals are left")
    assert [event["type"] for event in scene.seen.journal(run)] == ["run_started", "approval_needed"]
    await scene.end(run)


async def _by_statement(scene: Scene, statement: str, *values: Any) -> None:
    """As the application's own role, which row security lets at the organisation's rows."""
    async with scene.app.database.connection(scene.desk.admin.org_id) as connection:
        await connection.execute(statement, *values)


async def _forged_rows(scene: Scene) -> None:
    """Rows of an undecided review and its approval, written by an attacker; only the signature cannot be forged."""
    run, review = await scene.asked()
    await scene.pause(run)
    await _by_statement(
        scene,
        "update reviews set status = 'approved', decided_by = 'bob', decided_at = now() where review_id = $1",
        review,
    )
    await _by_statement(
        scene,
        "insert into approvals (review_id, org_id, run_id, step, digest, approver, roles, expires_at, signature) "
        "select review_id, org_id, run_id, step, act ->> 'digest', 'bob', '{reviewer}', now() + interval '1 day', $2 "
        "from reviews where review_id = $1",
        review,
        "f" * 64,
    )
    await scene.forge_decision(run, "pay", scene.act(review).digest)
    await scene.taken(run, "review_decided")
    await scene.resume(run)
    await scene.nothing_happens(run)
    assert scene.why(run) == {"forged"}


def _statement(statement: str, error: type[Exception]) -> Attack:
    """A statement about the approval that the database refuses; the approval is then revoked, so that nothing is paid."""

    async def attack(scene: Scene) -> None:
        run, review = await scene.approved_while_paused()
        with pytest.raises(error):
            await _by_statement(scene, statement)
        await scene.app.reviews.revoke(scene.bob, review)
        with pytest.raises(asyncpg.PostgresError):
            await _by_statement(scene, "update approvals set revoked_at = null, revoked_by = null")
        await scene.resume(run)
        await scene.nothing_happens(run)

    return attack


# -- an approval used for something else ------------------------------------------------------------------------------------


async def _of_another_run(scene: Scene) -> None:
    """The approval of one run, moved to another that asks for the same thing."""
    first, review = await scene.approved_while_paused()
    run, other = await scene.asked()
    await scene.pause(run)
    scene.tamper("update approvals set run_id = %s where review_id = %s", run, review)
    await scene.forge_decision(run, "pay", scene.act(other).digest)
    await scene.taken(run, "review_decided")
    await scene.resume(run)
    await scene.nothing_happens(run)
    assert scene.why(run) == {"forged"}
    await scene.end(first)


async def _of_another_step(scene: Scene) -> None:
    """The approval of the second call, which is made with the same arguments, at the first; and the other way round."""
    run, review = await scene.approved_while_paused("both")
    scene.resign(review, step="more")
    await scene.resume(run)
    await scene.nothing_happens(run)


async def _of_the_step_for_its_fallback(scene: Scene) -> None:
    run, review = await scene.asked("ladder")
    await scene.approve(review)
    await scene.taken(run, "approval_needed", 2)
    await until(lambda: scene.open_reviews(run), lambda: "no second question")
    (again,) = scene.open_reviews(run)
    assert (scene.act(again).tool, scene.act(again).step) == ("refund", "pay~1")
    scene.tamper("update approvals set step = 'pay~1' where review_id = %s", review)
    await scene.forge_decision(run, "pay", scene.act(again).digest)
    await scene.taken(run, "approval_needed", 3)
    assert scene.why(run) == {"forged"}
    await scene.end(run)


def _other_definition(change: Callable[[Path], None]) -> Attack:
    """The run is put onto another version of its workflow between the decision and the call."""

    async def attack(scene: Scene) -> None:
        run, _ = await scene.approved_while_paused()
        change(scene.app.project)
        await scene.app.admin.deploy(scene.desk.admin, scene.app.read_project())
        query = "select version from workflow_heads where name = 'bare'"
        scene.tamper("update runs set version = %s where run_id = %s", scene.seen.rows(query)[0][0], run)
        await scene.resume(run)
        await scene.nothing_happens(run)
        assert scene.why(run) == {"mismatch"}

    return attack


def _edited(file: str, old: str, new: str) -> Callable[[Path], None]:
    def change(project: Path) -> None:
        text = (project / file).read_text() if (project / file).exists() else ""
        assert old in text
        (project / file).write_text(text.replace(old, new, 1))

    return change


def _new_policy(project: Path) -> None:
    from interlock.policy.cedar import DEFAULT_POLICY

    (project / "policies/main.cedar").write_text(DEFAULT_POLICY + "\n// another one\n")


ATTACKS: dict[str, Attack] = {
    "approved after it was rejected": _twice,
    "approved after the run's end": _after_the_end,
    "approved after the deadline": _after_the_deadline,
    "approved by who edited it": _who_edited_it,
    "revoked": _revoked_in_time,
    "an approved greeting": _a_greeting,
    "a greeting that claims to cover it": _a_greeting_past_the_check,
    "decided before it was asked": _before_it_was_asked,
    "a forged decision": _forged_decision,
    "forged twice": _forged_twice,
    "forged about another act": _forged_about_another_act,
    "forged rows": _forged_rows,
    "used up by statement": _statement(
        "update approvals set digest = '0', consumed_by = 'x', consumed_at = now()", asyncpg.PostgresError
    ),
    "prolonged by statement": _statement("update approvals set expires_at = 'infinity'", asyncpg.PostgresError),
    "another approver by statement": _statement("update approvals set approver = 'carol'", asyncpg.PostgresError),
    "deleted by statement": _statement("delete from approvals", asyncpg.InsufficientPrivilegeError),
    "truncated by statement": _statement("truncate approvals", asyncpg.InsufficientPrivilegeError),
    "the act of a review changed": _statement("update reviews set act = null", asyncpg.PostgresError),
    "what a review shows changed": _statement("""update reviews set show = '{}'""", asyncpg.PostgresError),
    "of another run": _of_another_run,
    "of another step": _of_another_step,
    "of the step for its fallback": _of_the_step_for_its_fallback,
    "another workflow version": _other_definition(_edited("workflows/bare.yaml", "output: {}", "output: {a: 1}")),
    "other arguments in the definition": _other_definition(_edited("workflows/bare.yaml", "amount: 5", "amount: 9999")),
    "another policy version": _other_definition(_new_policy),
    "other code of the tool": _other_definition(_edited("tools/refund/main.py", "\n\n\n", "\n\n\nOTHER = 1\n\n\n")),
    "another contract of the tool": _other_definition(
        _edited("tools/refund/tool.yaml", "description: ", "description: It ")
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
async def test_an_attack(name: str, scene: Scene) -> None:
    await ATTACKS[name](scene)


def test_there_are_enough() -> None:
    assert len(TAMPERED) + len(PEOPLE) + len(ATTACKS) + 5 >= 40
