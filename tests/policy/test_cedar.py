from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from interlock.base.errors import InvalidSpec
from interlock.policy.cedar import DEFAULT_POLICY, CedarPolicy
from interlock.policy.decision import NO_APPROVAL, ApprovalFacts, Decision, PolicyEngine, Question

if TYPE_CHECKING:
    from conftest import AppFactory


def _approval(**changes: Any) -> dict[str, Any]:
    facts = {
        "present": True,
        "roles": ["reviewer"],
        "quorum": 1,
        "digest_matches": True,
        "reviews": [],
        "approvers": [],
    }
    return {"approval": {**facts, **changes}}


APPROVED = _approval()
EVERYTHING = "permit(principal, action, resource);"


async def ask(policy: CedarPolicy, **changes: Any) -> Decision:
    values: dict[str, Any] = {
        "user_id": "ada",
        "org_id": "acme",
        "roles": frozenset({"operator"}),
        "action": "call_tool",
        "resource": "pay",
        "attributes": {"effect": "mutating"},
        "context": {"approval": NO_APPROVAL.to_json()},
    }
    return await policy.decide(Question(**(values | changes)))


# -- the policy that everybody starts with ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({"action": "call_model", "resource": "default", "attributes": {}}, ("models",)),
        ({"attributes": {"effect": "pure"}}, ("pure-tools",)),
        ({"context": APPROVED}, ("approved-mutations",)),
    ],
)
async def test_the_default_permits(changes: dict[str, Any], reasons: tuple[str, ...]) -> None:
    policy = CedarPolicy()
    assert await ask(policy, **changes) == Decision(True, reasons, policy.version)


@pytest.mark.parametrize(
    "changes",
    [
        {},  # a mutating call without an approval
        {"context": {}},
        {"context": {"reviewed": True}},
        {"context": _approval(digest_matches=False)},  # another call was approved
        {"context": _approval(present=False)},
        {"context": _approval(digest_matches="true")},
        {"context": _approval(digest_matches=1)},
        {"attributes": {}},
        {"attributes": {"effect": "Pure"}},
        {"attributes": {"effect": "unheard of"}, "context": APPROVED},
        {"action": "call_tools", "attributes": {"effect": "pure"}},
    ],
)
async def test_the_default_refuses_and_says_why(changes: dict[str, Any]) -> None:
    answer = await ask(CedarPolicy(), **changes)
    assert not answer.allowed
    assert answer.reasons
    assert all(answer.reasons)


async def test_a_remembered_answer_is_not_given_to_another_question() -> None:
    policy = CedarPolicy()
    assert (await ask(policy, context=APPROVED)).allowed
    assert not (await ask(policy, context=_approval(present=1))).allowed  # which Python takes for the same
    assert not (await ask(policy, context=_approval(present=1.0))).allowed
    assert not (await ask(policy, context=_approval(present=False))).allowed
    assert (await ask(policy, context=APPROVED)).allowed


# -- doubt is a no ---------------------------------------------------------------------------------------------------


async def test_where_nothing_permits_the_answer_is_no() -> None:
    for text in ("", "// only a comment", 'permit(principal == User::"eve", action, resource);'):
        assert (await ask(CedarPolicy(text))).reasons == ("no policy permits it",)


@pytest.mark.parametrize(
    "condition",
    ["context.missing", "resource.missing == 1", "principal.missing", "context.approval > 3", "resource.effect.inner"],
)
@pytest.mark.parametrize("effect", ["permit", "forbid"])
async def test_a_policy_that_cannot_be_evaluated_refuses_although_another_permits(condition: str, effect: str) -> None:
    answer = await ask(CedarPolicy(f"{EVERYTHING} {effect}(principal, action, resource) when {{ {condition} }};"))
    assert not answer.allowed
    assert "error" in answer.reasons[0]


@pytest.mark.parametrize("value", [None, 2.5, 2**70, object(), b"x", {1, 2}, float("nan"), "\ud800"])
async def test_a_question_that_cedar_cannot_be_asked_is_refused(value: Any) -> None:
    policy = CedarPolicy(EVERYTHING)
    assert (await ask(policy)).allowed
    assert not (await ask(policy, context={"value": value})).allowed
    assert not (await ask(policy, attributes={"value": value})).allowed


async def test_lists_and_records_can_be_asked_about() -> None:
    policy = CedarPolicy('permit(principal, action, resource) when { context.tags.contains("a") && context.r.x == 1 };')
    for _ in range(2):
        assert (await ask(policy, context={"tags": ["a", "b"], "r": {"x": 1}})).allowed
        assert not (await ask(policy, context={"tags": ["b"], "r": {"x": 1}})).allowed


async def test_forbid_beats_permit_and_is_named() -> None:
    policy = CedarPolicy(f'{EVERYTHING} @id("not-pay") forbid(principal, action, resource == Tool::"pay");')
    assert await ask(policy) == Decision(False, ("not-pay",), policy.version)
    assert (await ask(policy, resource="look")).allowed


# -- names are matched whole -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["bash_admin", "bas", "Bash", "bash ", " bash", "ba\u200bsh", "bash\n", "*", 'bash"'])
async def test_an_identifier_matches_itself_only(other: str) -> None:
    policy = CedarPolicy('permit(principal, action, resource == Tool::"bash");')
    assert (await ask(policy, resource="bash")).allowed
    assert not (await ask(policy, resource=other)).allowed


async def test_a_tool_and_a_model_of_one_name_are_two_things() -> None:
    policy = CedarPolicy('permit(principal, action, resource == Tool::"x");')
    assert (await ask(policy, resource="x")).allowed
    assert not (await ask(policy, action="call_model", resource="x")).allowed


async def test_users_organisations_and_roles_can_be_told_apart() -> None:
    policy = CedarPolicy(
        'permit(principal == User::"ada", action, resource) '
        'when { principal.org == "acme" && principal.roles.contains("operator") };'
    )
    assert (await ask(policy)).allowed
    assert not (await ask(policy, user_id="eve")).allowed
    assert not (await ask(policy, org_id="globex")).allowed
    assert not (await ask(policy, roles=frozenset({"viewer"}))).allowed
    assert not (await ask(policy, roles=frozenset())).allowed


@pytest.mark.parametrize(
    "name",
    [
        "José",
        "O'Brien",
        'quo"te',
        "back\\slash",
        "new\nline",
        "日本",
        "\u200b",
        "tab\t",
        "\x07",
        "😀",
        "",
        '" || true || "',
    ],
)
async def test_any_user_can_be_named(name: str) -> None:
    policy = CedarPolicy('permit(principal, action, resource) unless { principal == User::"eve" };')
    assert (await ask(policy, user_id=name)).allowed
    assert not (await ask(policy, user_id="eve")).allowed
    assert not (await ask(CedarPolicy('permit(principal == User::"eve", action, resource);'), user_id=name)).allowed


@pytest.mark.parametrize(
    ("condition", "facts"),
    [
        ('context.approval.roles.contains("admin")', ApprovalFacts(True, frozenset({"admin"}), 1, digest_matches=True)),
        ("context.approval.quorum >= 2", ApprovalFacts(True, frozenset({"reviewer"}), 2, digest_matches=True)),
        ("context.approval.digest_matches", ApprovalFacts(True, frozenset(), 1, digest_matches=True)),
        ("context.approval.present", ApprovalFacts(present=True)),
        ('context.approval.approvers.contains("bob")', ApprovalFacts(True, approvers=frozenset({"bob", "eve"}))),
        ('context.approval.reviews.contains("rev_1")', ApprovalFacts(True, reviews=frozenset({"rev_1"}))),
    ],
)
async def test_what_is_known_of_an_approval_can_be_asked_about(condition: str, facts: ApprovalFacts) -> None:
    policy = CedarPolicy(f"permit(principal, action, resource) when {{ {condition} }};")
    question = Question("ada", "acme", frozenset(), "call_tool", "pay", {}, {})
    assert (await policy.decide(question.approved(facts))).allowed
    assert not (await policy.decide(question.approved(NO_APPROVAL))).allowed


# -- versions and faults ---------------------------------------------------------------------------------------------


async def test_the_version_is_that_of_the_text() -> None:
    one, same, other = CedarPolicy(EVERYTHING), CedarPolicy(EVERYTHING), CedarPolicy(EVERYTHING + " ")
    assert one.version == same.version != other.version
    assert (await ask(one)).version == one.version
    assert CedarPolicy().version == CedarPolicy(DEFAULT_POLICY).version
    engine: PolicyEngine = one
    assert engine.version


@pytest.mark.parametrize(
    "text", ["permit(", "permit(principal);", "allow all", "permit(principal, action, resource)", "\0", "{}"]
)
def test_invalid_cedar_is_refused_with_the_place(text: str) -> None:
    with pytest.raises(InvalidSpec) as error:
        CedarPolicy(text, source="policies/main.cedar")
    assert error.value.message.startswith("policies/main.cedar: not valid Cedar: ")
    assert "\n" not in error.value.message


async def test_a_projects_policy_replaces_the_default(app_factory: AppFactory, project: Path) -> None:
    app = await app_factory()
    assert app.read_project().policy is None
    (project / "policies").mkdir()
    (project / "policies" / "main.cedar").write_text(EVERYTHING)
    assert app.read_project().policy == EVERYTHING
    (project / "policies" / "second.cedar").write_text("permit(")
    with pytest.raises(InvalidSpec, match=r"policies/second\.cedar"):
        app.read_project()


@pytest.mark.parametrize(
    "condition", ["(" * 1000 + "true" + ")" * 1000, "true && " * 900 + "true", "true && " * 30_000 + "true"]
)
def test_a_policy_that_would_end_the_process_is_refused(condition: str) -> None:
    with pytest.raises(InvalidSpec):
        CedarPolicy(f"permit(principal, action, resource) when {{ {condition} }};")
