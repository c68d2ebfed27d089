"""Who may decide a review: a role that nobody can have would make a run wait for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from interlock.base.errors import InvalidSpec
from interlock.base.settings import Settings
from interlock.definitions.project import read_project
from interlock.identity.principal import ROLES

WORKFLOW = """\
name: ask
input: {type: object}
steps:
  - id: sure
    kind: review
    title: Sure?
    role: %s
"""


def _write(project: Path, role: str) -> None:
    (project / "workflows" / "ask.yaml").write_text(WORKFLOW % role)


@pytest.mark.parametrize("role", sorted(ROLES))
def test_roles_that_people_have(project: Path, role: str) -> None:
    _write(project, role)
    assert set(read_project(project, Settings()).definitions) == {"ask"}


@pytest.mark.parametrize("role", ["nobody", "Reviewer", "'reviewer '", "''"])
def test_a_role_that_no_user_can_have_is_named_with_its_place(project: Path, role: str) -> None:
    _write(project, role)
    with pytest.raises(InvalidSpec) as refused:
        read_project(project, Settings())
    assert refused.value.message.startswith('workflows/ask.yaml:7: steps.0.role: step "sure": no user can have role')
    assert "reviewer" in refused.value.message
