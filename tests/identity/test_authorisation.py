"""Every use case against every role: the table below is written by hand, and a use case it does not name fails here.

What is called concerns nothing that exists, so an allowed call ends in NotFound or an empty list, and a refused one in Denied.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, get_args

import pytest

from interlock.admission.quotas import Quota
from interlock.app import App
from interlock.base.errors import Denied, InterlockError
from interlock.identity.principal import ROLES, Permission, Principal
from interlock.policy.schema import Names
from interlock.services.use_cases import Services
from interlock.store.commit import Commit

READERS = {"developer", "operator", "reviewer", "viewer"}
KEEPERS = {"operator"}
AUDITORS = {"operator", "viewer"}
STARTERS = {"developer", "operator"}

NO_NAMES = Names(frozenset(), frozenset(), ROLES)

Call = Callable[[Services, Principal, App], Awaitable[Any]]


async def _never() -> Principal:
    raise AssertionError("the stream was not read")


# (service, method) → the roles that may, an admin aside, and a call of it.
USE_CASES: dict[tuple[str, str], tuple[set[str], Call]] = {
    ("access", "me"): (set(ROLES), lambda s, p, a: s.access.me(p)),
    ("submission", "accept"): (STARTERS, lambda s, p, a: s.submission.accept(p, "none", {}, None)),
    ("submission", "propose"): (STARTERS, lambda s, p, a: s.submission.propose(p, "none", {}, "key")),
    ("runs", "page"): (READERS, lambda s, p, a: s.runs.page(p)),
    ("runs", "get"): (READERS, lambda s, p, a: s.runs.get(p, "none")),
    ("runs", "result"): (READERS, lambda s, p, a: s.runs.result(p, "none")),
    ("runs", "values"): (READERS, lambda s, p, a: s.runs.values(p, "none")),
    ("runs", "failures"): (READERS, lambda s, p, a: s.runs.failures(p, "none")),
    ("runs", "trace"): (READERS, lambda s, p, a: s.runs.trace(p, "none")),
    ("followers", "follow"): (
        READERS,
        lambda s, p, a: s.followers.follow(p, "none", 0, authenticate=_never, stopping=asyncio.Event()),
    ),
    ("followers", "entries"): (READERS, lambda s, p, a: _all(s.followers.entries(p, "none"))),
    ("signals", "signal"): (STARTERS, lambda s, p, a: s.signals.signal(p, "none", "go", {})),
    ("signals", "pause"): (KEEPERS, lambda s, p, a: s.signals.pause(p, "none")),
    ("signals", "resume"): (KEEPERS, lambda s, p, a: s.signals.resume(p, "none")),
    ("signals", "cancel"): (KEEPERS, lambda s, p, a: s.signals.cancel(p, "none")),
    ("reviews", "page"): (READERS, lambda s, p, a: s.reviews.page(p)),
    ("reviews", "get"): (READERS, lambda s, p, a: s.reviews.get(p, "none")),
    ("reviews", "decide"): ({"reviewer"}, lambda s, p, a: s.reviews.decide(p, "none", "approve", "")),
    ("reviews", "revoke"): ({"reviewer"}, lambda s, p, a: s.reviews.revoke(p, "none")),
    ("dead_letters", "page"): (KEEPERS, lambda s, p, a: s.dead_letters.page(p)),
    ("dead_letters", "get"): (KEEPERS, lambda s, p, a: s.dead_letters.get(p, "none")),
    ("dead_letters", "requeue"): (KEEPERS, lambda s, p, a: s.dead_letters.requeue(p, "none")),
    ("dead_letters", "discard"): (KEEPERS, lambda s, p, a: s.dead_letters.discard(p, "none")),
    ("administration", "deploy"): ({"developer"}, lambda s, p, a: s.administration.deploy(p, a.read_project())),
    ("administration", "roll_back"): ({"developer"}, lambda s, p, a: s.administration.roll_back(p, "none", "0")),
    ("administration", "workflows"): (READERS, lambda s, p, a: s.administration.workflows(p)),
    ("administration", "versions"): (READERS, lambda s, p, a: s.administration.versions(p, "none")),
    ("administration", "keys"): (set(), lambda s, p, a: s.administration.keys(p)),
    ("administration", "issue_key"): (set(), lambda s, p, a: s.administration.issue_key(p, "x", frozenset({"viewer"}))),
    ("administration", "revoke_key"): (set(), lambda s, p, a: s.administration.revoke_key(p, "none")),
    ("administration", "quotas"): (set(), lambda s, p, a: s.administration.quotas(p)),
    ("administration", "set_quota"): (set(), lambda s, p, a: s.administration.set_quota(p, Quota("org", rate=1))),
    ("administration", "remove_quota"): (set(), lambda s, p, a: s.administration.remove_quota(p, "tool", "none")),
    ("policies", "policies"): (READERS, lambda s, p, a: s.policies.policies(p)),
    ("policies", "policy"): (READERS, lambda s, p, a: s.policies.policy(p, "none")),
    ("policies", "activate"): (set(), lambda s, p, a: s.policies.activate(p, "none")),
    ("policies", "activate_text"): (set(), lambda s, p, a: s.policies.activate_text(p, "", NO_NAMES)),
    ("policies", "propose_text"): (set(), lambda s, p, a: s.policies.propose_text(p, "", NO_NAMES, Commit(p.org_id))),
    ("audit", "page"): (AUDITORS, lambda s, p, a: s.audit.page(p)),
    ("audit", "verify"): (AUDITORS, lambda s, p, a: s.audit.verify(p)),
    ("audit", "public_keys"): (AUDITORS, lambda s, p, a: s.audit.public_keys(p)),
    ("audit", "export"): (AUDITORS, lambda s, p, a: s.audit.export(p)),
}

# Without a principal, and why.
UNGUARDED = {
    ("access", "authenticate"),  # makes the principal
    ("submission", "propose_again"),  # called by dead letters, which checked; starts what a principal started before
    ("followers", "close"),
    ("followers", "wake"),
    ("policies", "committed"),  # they show nothing
    ("administration", "workers"),
    ("administration", "ask_to_drain"),
    ("administration", "refused_events"),
    ("administration", "requeue_events"),
    ("administration", "ensure_org"),
    ("administration", "webhook_key"),
    ("administration", "local_principal"),  # for those who can open the installation's database
    ("health", "ready"),  # for probes, which have no key
    ("health", "database"),  # the same, for the process itself
    *(
        ("refusals", one) for one in ("start", "close", "flush", "note_denied", "note_unauthenticated")
    ),  # they only record
}


async def _all(found: Any) -> list[Any]:
    return [one async for one in found]


def test_the_table_names_every_use_case(app: App) -> None:
    there = {
        (name, method)
        for name in Services.__dataclass_fields__
        for method, _ in inspect.getmembers(getattr(app.services, name), callable)
        if not method.startswith("_")
    }
    assert there == USE_CASES.keys() | UNGUARDED


@pytest.mark.parametrize("role", sorted(ROLES))
async def test_every_role_may_what_the_table_says(app: App, role: str) -> None:
    principal = Principal("someone", "acme", frozenset({role}))
    for case, (roles, call) in USE_CASES.items():
        allowed = role == "admin" or role in roles
        try:
            await call(app.services, principal, app)
            denied = False
        except Denied as error:
            denied = f"this key has {role}" in error.message
        except InterlockError:
            denied = False
        assert denied is not allowed, (case, role)


async def test_nobody_without_a_role_may_anything(app: App) -> None:
    nobody = Principal("someone", "acme", frozenset())
    for case, (_, call) in USE_CASES.items():
        if case == ("access", "me"):
            continue
        with pytest.raises(Denied):
            await call(app.services, nobody, app)


def test_every_permission_is_granted_and_required_somewhere() -> None:
    for permission in get_args(Permission):
        assert Principal("ada", "acme", frozenset({"admin"})).may(permission)
        assert not Principal("eve", "acme", frozenset()).may(permission)
