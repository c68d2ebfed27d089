"""What each role may do, said a second time: a change of the table needs a change here."""

from __future__ import annotations

import pytest

from interlock.base.errors import Denied
from interlock.identity.principal import _GRANTS, ROLES, Principal

MAY = {
    "run.start": "developer operator",
    "run.read": "developer operator reviewer viewer",
    "run.cancel": "operator",
    "run.signal": "developer operator",
    "run.pause": "operator",
    "dead_letter.read": "operator",
    "dead_letter.decide": "operator",
    "value.reveal": "operator",
    "review.read": "developer operator reviewer viewer",
    "review.decide": "reviewer",
    "audit.read": "operator viewer",
    "workflow.read": "developer operator reviewer viewer",
    "workflow.deploy": "developer",
    "policy.read": "developer operator reviewer viewer",
    "policy.activate": "",
    "key.manage": "",
    "quota.manage": "",
}


def somebody(*roles: str) -> Principal:
    return Principal("eve", "acme", frozenset(roles))


def test_every_action_is_in_the_table() -> None:
    assert set(_GRANTS) == set(MAY)
    assert {"admin", "developer", "operator", "reviewer", "viewer"} == ROLES


@pytest.mark.parametrize("action", MAY)
def test_each_role_may_what_the_table_says(action: str) -> None:
    allowed = {role for role in ROLES if somebody(role).may(action)}
    assert allowed == {"admin", *MAY[action].split()}
    assert not somebody().may(action)
    for role in ROLES - allowed:
        with pytest.raises(Denied) as error:
            somebody(role).require(action)
        assert action in error.value.message
        assert all(name in error.value.message for name in allowed)
    for role in allowed:
        somebody(role).require(action)


def test_roles_add_up_and_nothing_more() -> None:
    both = somebody("viewer", "reviewer")
    assert both.may("review.decide")
    assert both.may("audit.read")
    assert not both.may("run.cancel")
    for name in ("Admin", "admin ", "administrator", "root"):
        assert not any(somebody(name).may(action) for action in MAY)


def test_an_action_nobody_knows_is_a_bug_and_no_permission() -> None:
    with pytest.raises(KeyError):
        somebody("operator").may("run.explode")


def test_a_principal_survives_the_way_through_a_row() -> None:
    principal = Principal("josé,ø", "acme", ROLES)
    assert Principal.from_json(principal.to_json()) == principal
    assert principal.actor == "user:josé,ø"
