"""Views of deployed workflows and their versions."""

from __future__ import annotations

from datetime import datetime

from interlock.services.views.base import View


class WorkflowView(View):
    """A deployed workflow and the version that new runs get."""

    name: str
    version: str
    updated_at: datetime
    description: str | None


class WorkflowList(View):
    """Deployed workflows, by name."""

    workflows: list[WorkflowView]


class VersionView(View):
    """A version: when and by whom deployed, how many runs are on it, and the digests of what it consists of."""

    version: str
    head: bool
    deployed_at: datetime
    deployed_by: str
    running: int
    prompts: dict[str, str]
    tools: dict[str, str]
    models: dict[str, str]


class VersionList(View):
    """A workflow's versions, newest first."""

    versions: list[VersionView]
