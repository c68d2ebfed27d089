"""Activation of policy sets: on record in the same commit, checked against what is deployed, by admins only."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from interlock.app import App
from interlock.base.errors import Conflict, Denied, InvalidSpec, NotFound
from interlock.identity.principal import ROLES, Principal
from interlock.policy.cedar import DEFAULT_POLICY, version_of
from interlock.policy.schema import Names
from interlock.store.commit import Commit
from interlock.store.rows import ActivatedPolicy, NewPolicySet

if TYPE_CHECKING:
    from conftest import AppFactory

NO_NAMES = Names(frozenset(), frozenset(), ROLES)
PERMIT = "permit(principal, action, resource);"
STRICT = 'forbid(principal, action == Action::"call_tool", resource);'


def activations(owner: psycopg.Connection[Any], org: str) -> list[tuple[str, str]]:
    """(version before, resource) of every activation on record."""
    rows = owner.execute(
        "select entry -> 'detail' ->> 'before', entry ->> 'resource' from audit "
        "where org_id = %s and entry ->> 'event_type' = 'policy.activated' order by seq",
        (org,),
    ).fetchall()
    return [(row[0], row[1]) for row in rows]


async def test_activations_are_listed_and_on_record(app: App, admin: Principal, owner: psycopg.Connection[Any]) -> None:
    use = app.services.policies
    [built_in] = await use.policies(admin)
    assert (built_in.built_in, built_in.active, built_in.version) == (True, True, version_of(DEFAULT_POLICY))
    assert (await use.activate(admin, "built-in")).changed is False
    first = await use.activate_text(admin, PERMIT, NO_NAMES)
    assert (first.version, first.changed) == (version_of(PERMIT), True)
    assert (await use.activate_text(admin, PERMIT, NO_NAMES)).changed is False
    second = await use.activate_text(admin, STRICT, NO_NAMES)
    assert app.policies.of(admin.org_id).version == second.version, "in force in this process before the answer"
    assert [(one.version, one.active) for one in await use.policies(admin)] == [
        (second.version, True),
        (first.version, False),
        (built_in.version, False),
    ]
    shown = await use.policy(admin, first.version[:6])
    assert (shown.text, shown.created_by, shown.active) == (PERMIT, admin.user_id, False)
    assert (await use.policy(admin, "built-in")).text == DEFAULT_POLICY
    assert (await use.activate(admin, first.version[:6])).changed
    assert (await use.activate(admin, first.version)).changed is False
    assert (await use.activate(admin, "built-in")).changed
    assert app.policies.of(admin.org_id).version == built_in.version
    one, two = f"policy:{first.version}", f"policy:{second.version}"
    assert activations(owner, admin.org_id) == [
        ("built-in", one), (first.version, two), (second.version, one), (first.version, "policy:built-in"),
    ]  # fmt: skip
    assert (await app.audit.verify(admin.org_id)).ok


async def test_a_refused_commit_leaves_neither_entry_nor_policy(
    app: App, admin: Principal, owner: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry and the change are one commit: the row that the database refuses takes the other with it."""
    submit = app.committer.submit

    async def refused(commit: Commit) -> None:
        assert commit.audit
        commit.activated_policies = [ActivatedPolicy(org_id=admin.org_id, version="0" * 16, activated_by="x")]
        await submit(commit)

    monkeypatch.setattr(app.committer, "submit", refused)
    with pytest.raises(Exception, match="foreign key"):
        await app.services.policies.activate_text(admin, PERMIT, NO_NAMES)
    assert activations(owner, admin.org_id) == []
    assert owner.execute("select count(*) from policy_sets").fetchone() == (0,)
    await app.active_policies.refresh()
    assert app.policies.of(admin.org_id).version == version_of(DEFAULT_POLICY)


async def test_only_admins_activate_and_nothing_of_another_organisation(
    app: App, admin: Principal, other_admin: Principal, owner: psycopg.Connection[Any]
) -> None:
    use = app.services.policies
    mine = (await use.activate_text(admin, PERMIT, NO_NAMES)).version
    for role in ROLES - {"admin"}:
        principal = Principal("eve", admin.org_id, frozenset({role}))
        with pytest.raises(Denied):
            await use.activate(principal, "built-in")
        with pytest.raises(Denied):
            await use.activate_text(principal, STRICT, NO_NAMES)
        assert len(await use.policies(principal)) == 2
    for call in (use.policy, use.activate):
        for name in (mine, "", "nosuch", "%", "BUILT-IN"):
            with pytest.raises(NotFound):
                await call(other_admin, name)
    assert len(await use.policies(other_admin)) == 1
    assert app.policies.of(other_admin.org_id).version == version_of(DEFAULT_POLICY)
    assert activations(owner, other_admin.org_id) == []


async def test_an_ambiguous_beginning_is_refused(app: App, admin: Principal) -> None:
    use = app.services.policies
    for number in range(17):  # two of them begin with the same digit
        await use.activate_text(admin, f"{PERMIT} // {number}", NO_NAMES)
    digits = [one.version[0] for one in await use.policies(admin) if not one.built_in]
    twice = next(digit for digit in digits if digits.count(digit) > 1)
    with pytest.raises(Conflict, match="several policy sets begin with"):
        await use.activate(admin, twice)


async def test_an_activation_is_checked_against_what_is_deployed(
    app: App, admin: Principal, owner: psycopg.Connection[Any]
) -> None:
    """The text was stored in a time in which it had no fault."""
    use, before = app.services.policies, app.policies.of(admin.org_id).version
    stale = 'permit(principal, action, resource == Tool::"gone");'
    stored = NewPolicySet(org_id=admin.org_id, version=version_of(stale), text=stale, created_by="ada")
    await app.committer.submit(Commit(admin.org_id, new_policies=[stored]))
    with pytest.raises(InvalidSpec, match=r':1: "gone" is no known tool'):
        await use.activate(admin, version_of(stale))
    for text in (
        stale,
        "permit(",
        'permit(principal, action == Action::"call_tool", resource) when { resource.efect == 1 };',
    ):
        with pytest.raises(InvalidSpec):
            await use.activate_text(admin, text, NO_NAMES)
    assert app.policies.of(admin.org_id).version == before
    assert activations(owner, admin.org_id) == []


async def test_activations_at_once_end_in_the_last_one_on_record(
    app: App, admin: Principal, owner: psycopg.Connection[Any]
) -> None:
    use = app.services.policies
    await asyncio.gather(*(use.activate_text(admin, f"{PERMIT} // {number}", NO_NAMES) for number in range(20)))
    [active] = [one for one in await use.policies(admin) if one.active]
    recorded = activations(owner, admin.org_id)
    assert len(recorded) == 20
    assert recorded[-1][1] == f"policy:{active.version}"
    assert app.policies.of(admin.org_id).version == active.version
    assert (await app.audit.verify(admin.org_id)).ok


async def test_deploying_activates_the_projects_policies_and_without_any_changes_nothing(
    app_factory: AppFactory, admin: Principal, project: Path, owner: psycopg.Connection[Any]
) -> None:
    app = await app_factory()
    assert (await app.admin.deploy(admin, app.read_project())).policy is None
    (project / "policies").mkdir()
    (project / "policies/main.cedar").write_text(STRICT)
    deployed = await app.admin.deploy(admin, app.read_project())
    assert (deployed.workflows, deployed.policy) == ([], version_of(STRICT)), "the workflow's version stays"
    assert (await app.admin.deploy(admin, app.read_project())).lines() == []
    developer = Principal("dev", admin.org_id, frozenset({"developer"}))
    assert (await app.admin.deploy(developer, app.read_project())).lines() == [], (
        "who changes no policy needs no right to"
    )
    (project / "policies/main.cedar").write_text(PERMIT)
    with pytest.raises(Denied, match=r"policy\.activate"):
        await app.admin.deploy(developer, app.read_project())
    (project / "policies/main.cedar").unlink()
    assert (await app.admin.deploy(admin, app.read_project())).policy is None
    assert app.policies.of(admin.org_id).version == version_of(STRICT)
    assert activations(owner, admin.org_id) == [("built-in", f"policy:{version_of(STRICT)}")]
