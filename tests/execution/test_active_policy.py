"""The active policy and runs in flight: an activation counts at the next call, also between an approval and its call."""

from __future__ import annotations

import json
from pathlib import Path

import aiohttp
import cedarpy
import pytest

from engines.conftest import Desk, OpenApp
from engines.harness import PERMIT_ALL, Bank, Model, Observer, pay, think, until, workflow
from interlock.identity.principal import Principal
from interlock.policy.cedar import DEFAULT_POLICY, CedarPolicy, version_of
from interlock.policy.decision import Decision, PolicyEngine, Question
from interlock.policy.schema import parsed_schema
from policy.opa import OpaEngine, OpaPolicies, OpaServer

from .approving import Scene
from .conftest import Deploy

PAY = pay("pay", "refund", "bank")
NO_REFUND = f'{PERMIT_ALL} @id("no-refund") forbid(principal, action, resource == Tool::"refund");'


@pytest.fixture
async def scene(deploy: Deploy, project: Path, seen: Observer, bank: Bank, admin: Principal) -> Scene:
    """The built-in policy, under which every refund asks for an approval."""
    (project / "policies/main.cedar").unlink()
    desk = await deploy(
        workflow("bare", PAY, allow="refund"),
        workflow("think_pay", think(), PAY, allow="refund"),
        review={"self_approval": False},
    )
    return Scene(desk, seen, bank, Principal("bob", admin.org_id, frozenset({"reviewer"})))


async def activate(scene: Scene, text: str) -> str:
    """Activates a policy set as an admin does; its version."""
    use, names = scene.app.services.policies, scene.app.read_project().names
    return (await use.activate_text(scene.desk.admin, text, names)).version


def decided(seen: Observer, run: str) -> list[tuple[str, str, str]]:
    """(event, decision, policy) of the calls on record."""
    kinds = {"model.call", "tool.call"}
    entries = [one for one in seen.audit(run) if one["event_type"] in kinds]
    return [(one["event_type"], one["decision"], one["policy_version"]) for one in entries]


async def test_an_activation_applies_to_the_next_call_of_a_run_in_flight(scene: Scene, model: Model) -> None:
    before = scene.app.policies.of(scene.bob.org_id).version
    model.hold("think")
    refused, paid = await scene.desk.start("think_pay"), await scene.desk.start("think_pay", ticket="paid")
    await until(lambda: model.asked("think") == 2, lambda: "the model is not asked")
    strict = await activate(scene, NO_REFUND)
    model.release("think")
    assert await scene.seen.finished(refused, paid) == ["failed", "failed"]
    for run in (refused, paid):
        assert decided(scene.seen, run) == [("model.call", "allow", before), ("tool.call", "deny", strict)]
    assert scene.bank.requests == 0

    model.hold("think", after=2)
    paid = await scene.desk.start("think_pay", ticket="paid")
    await until(lambda: model.asked("think") == 3, lambda: "the model is not asked")
    lax = await activate(scene, PERMIT_ALL)
    model.release("think")
    assert await scene.seen.finished(paid) == ["succeeded"]
    assert decided(scene.seen, paid) == [("model.call", "allow", strict), ("tool.call", "allow", lax)]
    assert scene.bank.refunds == {"paid": 1}


async def test_a_stricter_policy_between_approval_and_call_refuses_the_call(scene: Scene) -> None:
    run, _ = await scene.approved_while_paused()
    await activate(scene, NO_REFUND)
    await scene.resume(run)
    assert await scene.seen.finished(run) == ["failed"]
    assert scene.bank.requests == 0
    assert scene.seen.rows("select consumed_at from approvals") == [(None,)]


async def test_another_policy_between_approval_and_call_asks_again(scene: Scene) -> None:
    run, first = await scene.approved_while_paused()
    version = await activate(scene, f"{DEFAULT_POLICY}// stricter elsewhere\n")
    await scene.resume(run)
    await scene.taken(run, "approval_needed", 2)
    assert scene.why(run) == {"mismatch"}
    assert scene.bank.requests == 0
    second = await scene.seen.review(run, "approve_act")
    assert (scene.act(first).policy, scene.act(second).policy) == (version_of(DEFAULT_POLICY), version)
    await scene.approve(second)
    assert await scene.seen.finished(run) == ["succeeded"]
    assert sum(scene.bank.refunds.values()) == 1


async def test_another_policy_while_the_question_is_open_asks_again(scene: Scene) -> None:
    run, first = await scene.asked()
    await activate(scene, f"{DEFAULT_POLICY}// another\n")
    await scene.approve(first)
    await scene.taken(run, "approval_needed", 2)
    assert scene.bank.requests == 0
    await scene.approve(await scene.seen.review(run, "approve_act"))
    assert await scene.seen.finished(run) == ["succeeded"]


async def test_a_damaged_policy_set_stops_a_run_in_flight(scene: Scene, model: Model) -> None:
    model.hold("think")
    run = await scene.desk.start("think_pay")
    await until(lambda: model.asked("think") == 1, lambda: "the model is not asked")
    scene.tamper(
        "insert into policy_sets (org_id, version, text, created_by) values (%s, 'damaged', %s, 'x')",
        scene.bob.org_id,
        PERMIT_ALL,
    )
    scene.tamper(
        "insert into active_policies (org_id, version, activated_by) values (%s, 'damaged', 'x')", scene.bob.org_id
    )
    await until(lambda: scene.app.policies.of(scene.bob.org_id).version == "damaged", lambda: "not read")
    model.release("think")
    assert await scene.seen.finished(run) == ["failed"]
    assert decided(scene.seen, run)[-1] == ("tool.call", "deny", "damaged")
    assert scene.bank.requests == 0


# -- other engines, by the same port -----------------------------------------------------------------------------------------


class Scripted:
    """Policies whose engine is another one at every look, as if each look came after an activation; the last one stays."""

    def __init__(self, *texts: str) -> None:
        self._engines = [CedarPolicy(text) for text in texts]
        self.questions: list[Question] = []

    def of(self, org_id: str) -> PolicyEngine:
        engine = self._engines.pop(0) if len(self._engines) > 1 else self._engines[0]
        return Noted(engine, self.questions)


class Noted:
    """An engine that keeps the questions."""

    immediate = False

    def __init__(self, engine: CedarPolicy, questions: list[Question]) -> None:
        self.version = engine.version
        self._engine = engine
        self._questions = questions

    async def decide(self, question: Question) -> Decision:
        self._questions.append(question)
        return await self._engine.decide(question)


async def start(open_app: OpenApp, project: Path, admin: Principal, policies: Scripted | OpaPolicies) -> Desk:
    for name, text in {
        **workflow("bare", PAY, allow="refund"),
        **workflow("think_pay", think(), PAY, allow="refund"),
    }.items():
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text(text)
    return Desk(await open_app(start_worker=True, deploy=True, policies=policies), admin)


async def test_a_policy_activated_just_before_the_dispatch_is_asked(
    open_app: OpenApp, project: Path, admin: Principal, seen: Observer, bank: Bank
) -> None:
    """The call was allowed, and its effect is intended already."""
    desk = await start(open_app, project, admin, Scripted(PERMIT_ALL, NO_REFUND))
    run = await desk.start("bare")
    assert await seen.finished(run) == ["failed"]
    assert bank.requests == 0
    assert seen.effect(run) == "failed"
    assert decided(seen, run) == [("tool.call", "deny", version_of(NO_REFUND))]


async def test_a_policy_activated_just_before_the_dispatch_may_want_an_approval(
    open_app: OpenApp, project: Path, admin: Principal, seen: Observer, bank: Bank
) -> None:
    desk = await start(open_app, project, admin, Scripted(PERMIT_ALL, DEFAULT_POLICY))
    run = await desk.start("bare", ticket="t")
    review = await seen.review(run, "approve_act")
    assert seen.effect(run) == "failed", "nothing is under way while a person thinks"
    assert bank.requests == 0
    await desk.decide(review, "approve")
    assert await seen.finished(run) == ["succeeded"]
    assert bank.refunds == {"t": 1}


async def test_a_question_is_opened_for_the_policy_that_asked_it(
    open_app: OpenApp, project: Path, admin: Principal, seen: Observer, bank: Bank
) -> None:
    """Another policy is active by the time the review opens; if it were read again, the review would never open."""
    texts = [f"{DEFAULT_POLICY}// {number}\n" for number in range(3)]
    desk = await start(open_app, project, admin, Scripted(*texts))
    run = await desk.start("bare", ticket="t")
    first = await seen.review(run, "approve_act")
    [(act,)] = seen.rows("select act from reviews where review_id = %s", first)
    assert act["policy"] == version_of(texts[0])
    await desk.decide(first, "approve")
    await until(lambda: seen.kinds(run).count("approval_needed pay") == 2, lambda: str(seen.kinds(run)))
    second = await seen.review(run, "approve_act")
    await desk.decide(second, "approve")
    await seen.finished(run)
    assert set(bank.refunds.values()) <= {1}


async def test_every_question_fits_the_schema(
    open_app: OpenApp, project: Path, admin: Principal, seen: Observer, bank: Bank
) -> None:
    """The schema that policies are checked against is the one of what the kernel asks."""
    policies = Scripted(DEFAULT_POLICY)
    desk = await start(open_app, project, admin, policies)
    run = await desk.start("think_pay")
    await desk.decide(await seen.review(run, "approve_act"), "approve")
    assert await seen.finished(run) == ["succeeded"]
    assert {one.action for one in policies.questions} == {"call_model", "call_tool"}
    assert any(one.context["approval"]["digest_matches"] for one in policies.questions)
    always = cedarpy.PolicySet.from_str("permit(principal, action, resource);")
    for one in policies.questions:
        user, thing = {"type": "User", "id": one.user_id}, "Tool" if one.action == "call_tool" else "Model"
        resource = {"type": thing, "id": one.resource}
        request = {"principal": user, "action": {"type": "Action", "id": one.action}, "resource": resource}
        entities = [
            {"uid": user, "attrs": {"org": one.org_id, "roles": sorted(one.roles)}, "parents": []},
            {"uid": resource, "attrs": dict(one.attributes), "parents": []},
        ]
        result = cedarpy.is_authorized(
            {**request, "context": json.loads(json.dumps(dict(one.context)))}, always, entities, parsed_schema()
        )
        assert result.allowed, result.diagnostics.errors
        broken = {**dict(one.context), "more": 1}
        assert not cedarpy.is_authorized({**request, "context": broken}, always, entities, parsed_schema()).allowed
    assert bank.requests == 1


async def test_an_engine_behind_http_decides_about_runs(
    open_app: OpenApp, project: Path, admin: Principal, seen: Observer, bank: Bank, model: Model
) -> None:
    async with OpaServer().running() as opa, aiohttp.ClientSession() as session:
        desk = await start(open_app, project, admin, OpaPolicies(OpaEngine(opa.url, session)))
        run = await desk.start("think_pay", ticket="t")
        assert await seen.finished(run) == ["succeeded"]
        assert bank.refunds == {"t": 1}
        assert decided(seen, run) == [("model.call", "allow", "bundle-1"), ("tool.call", "allow", "bundle-1")]
        opa.fault = "500"
        run = await desk.start("think_pay")
        assert await seen.finished(run) == ["failed"]
        assert decided(seen, run) == [("model.call", "deny", "bundle-1")]
        assert model.asked("think") == 1
