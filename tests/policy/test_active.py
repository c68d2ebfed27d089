"""The copy of the active policy sets that each process keeps: current, per organisation, and closed where it cannot know."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from interlock.admission.refresh import StateRefresh
from interlock.policy.active import ActivePolicies
from interlock.policy.cedar import DEFAULT_POLICY, CedarPolicy, version_of
from interlock.policy.decision import NO_APPROVAL, Question, decide
from interlock.store.database import Database

if TYPE_CHECKING:
    from conftest import Tenant

PERMIT = "permit(principal, action, resource);"
FORBID = "forbid(principal, action, resource);"


def put(owner: psycopg.Connection[Any], org: str, text: str | None, *, version: str | None = None) -> str:
    """Activates a policy set by its rows, as another process would; None is the built-in one."""
    if text is None:
        owner.execute("update active_policies set version = null where org_id = %s", (org,))
        return ""
    version = version or version_of(text)
    owner.execute(
        "insert into policy_sets (org_id, version, text, created_by) values (%s, %s, %s, 'ada') on conflict do nothing",
        (org, version, text),
    )
    owner.execute(
        "insert into active_policies (org_id, version, activated_by) values (%s, %s, 'ada') "
        "on conflict (org_id) do update set version = excluded.version",
        (org, version),
    )
    return version


async def permits(policies: ActivePolicies, org: str) -> bool:
    question = Question("ada", org, frozenset(), "call_tool", "pay", {"effect": "mutating", "scopes": []}, {})
    return (await decide(policies.of(org), question.approved(NO_APPROVAL))).allowed


@pytest.fixture
def orgs(tenants: tuple[Tenant, Tenant]) -> tuple[str, str]:
    return tenants[0].org_id, tenants[1].org_id


@pytest.fixture
async def policies(database: Database) -> ActivePolicies:
    policies = ActivePolicies(database)
    await policies.refresh()
    return policies


async def test_before_the_first_refresh_everything_is_refused(database: Database, orgs: tuple[str, str]) -> None:
    policies = ActivePolicies(database)
    assert not await permits(policies, orgs[0])
    assert policies.of(orgs[0]).version == "none"
    await policies.refresh()
    assert policies.of(orgs[0]).version == version_of(DEFAULT_POLICY)


async def test_each_organisation_has_its_own(
    policies: ActivePolicies, owner: psycopg.Connection[Any], orgs: tuple[str, str]
) -> None:
    ours, theirs = orgs
    version = put(owner, ours, PERMIT)
    await policies.refresh()
    assert policies.of(ours).version == version
    assert await permits(policies, ours)
    assert policies.of(theirs).version == version_of(DEFAULT_POLICY)
    assert not await permits(policies, theirs)
    put(owner, ours, FORBID)
    put(owner, theirs, PERMIT)
    await policies.refresh()
    assert not await permits(policies, ours)
    assert await permits(policies, theirs)
    put(owner, theirs, None)
    await policies.refresh()
    assert policies.of(theirs).version == version_of(DEFAULT_POLICY)


async def test_what_is_in_memory_is_not_parsed_again(
    policies: ActivePolicies, owner: psycopg.Connection[Any], orgs: tuple[str, str]
) -> None:
    put(owner, orgs[0], PERMIT)
    await policies.refresh()
    first = policies.of(orgs[0])
    await policies.refresh()
    assert policies.of(orgs[0]) is first


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("permit(", None),
        ("permit(principal, action, resource); ", "0" * 16),  # not the text that was activated
        ("permit(principal == ?principal, action, resource);", None),
        (f"permit(principal, action, resource) when {{ {'true && ' * 20_000} true }};", None),
    ],
    ids=["no Cedar", "another text", "a template", "too deep"],
)
async def test_a_damaged_policy_set_refuses_its_organisation_only(
    policies: ActivePolicies, owner: psycopg.Connection[Any], orgs: tuple[str, str], text: str, version: str | None
) -> None:
    ours, theirs = orgs
    put(owner, theirs, PERMIT)
    put(owner, ours, PERMIT)
    await policies.refresh()
    assert await permits(policies, ours)
    damaged = put(owner, ours, text, version=version)
    for _ in range(2):
        await policies.refresh()
        assert not await permits(policies, ours)
        assert policies.of(ours).version == damaged
        assert await permits(policies, theirs)
    put(owner, ours, PERMIT)
    await policies.refresh()
    assert await permits(policies, ours)


async def test_a_text_changed_in_its_row_is_not_trusted_by_a_new_process(
    database: Database, owner: psycopg.Connection[Any], orgs: tuple[str, str]
) -> None:
    put(owner, orgs[0], FORBID)
    owner.execute("update policy_sets set text = %s", (PERMIT,))
    policies = ActivePolicies(database)
    await policies.refresh()
    assert not await permits(policies, orgs[0])


async def test_refreshes_at_once_do_not_bring_an_old_state_back(
    policies: ActivePolicies, owner: psycopg.Connection[Any], orgs: tuple[str, str]
) -> None:
    versions = []
    waiting = []
    for number in range(12):
        versions.append(put(owner, orgs[0], f"{PERMIT} // {number}"))
        waiting.append(asyncio.create_task(policies.refresh()))
        await asyncio.sleep(0)
    await asyncio.gather(*waiting)
    assert policies.of(orgs[0]).version == versions[-1]


@pytest.fixture
async def watched(database: Database) -> AsyncIterator[ActivePolicies]:
    """As a worker has it, with a poll that never comes in time: only a notification helps."""
    policies = ActivePolicies(database)
    watch = StateRefresh(database, [policies.refresh], poll_seconds=3600)
    await watch.start()
    while not watch._listener.listening:
        await asyncio.sleep(0.01)
    yield policies
    await watch.close()


async def test_a_notification_brings_an_activation_at_once(
    watched: ActivePolicies, owner: psycopg.Connection[Any], orgs: tuple[str, str]
) -> None:
    rows = (
        f"""[{{"org_id": "{orgs[0]}", "version": "{version_of(PERMIT)}", "text": "{PERMIT}", "created_by": "ada"}}]"""
    )
    owner.execute("select settle_v1_new_policies(%s::jsonb)", (rows,))
    rows = f"""[{{"org_id": "{orgs[0]}", "version": "{version_of(PERMIT)}", "activated_by": "ada"}}]"""
    owner.execute("select settle_v1_activated_policies(%s::jsonb)", (rows,))
    async with asyncio.timeout(60):
        while not await permits(watched, orgs[0]):
            await asyncio.sleep(0.01)


async def test_a_database_that_is_away_changes_nothing(
    policies: ActivePolicies, owner: psycopg.Connection[Any], orgs: tuple[str, str], database: Database
) -> None:
    put(owner, orgs[0], FORBID)
    await policies.refresh()
    await database.close()
    with pytest.raises(Exception, match=r"."):
        await policies.refresh()
    assert not await permits(policies, orgs[0])
    assert isinstance(policies.of(orgs[0]), CedarPolicy)
