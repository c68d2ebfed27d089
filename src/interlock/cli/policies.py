"""policies list, show, activate."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from interlock.cli.connection import connect, segment
from interlock.cli.console import AsJson, moment, print_answer, print_json
from interlock.cli.listing import ListRow, print_rows
from interlock.services.views.policies import PolicyActivation, PolicySetList, PolicySetText, PolicySetView

group = typer.Typer(
    help="Policy sets of your organisation. The active one applies to every call, also of runs in flight.",
    no_args_is_help=True,
)
Policy = Annotated[str, typer.Argument(help="The version or its beginning, or built-in.")]


@group.command("list")
def list_policies(as_json: AsJson = False) -> None:
    """List the policy sets, newest first."""

    async def main() -> list[PolicySetView]:
        async with connect() as api:
            return (await api.get(PolicySetList, "/v1/policies")).policies

    found = asyncio.run(main())
    if as_json:
        print_json(found)
        return
    print_rows(("policy set", "status", "stored", "by"), [_row(one) for one in found], leave_out=("by", "stored"))


def _row(one: PolicySetView) -> ListRow:
    name = "built-in" if one.built_in else one.version
    return ListRow((name, "active" if one.active else "", moment(one.created_at), one.created_by or ""))


@group.command("show")
def show(policy: Policy, as_json: AsJson = False) -> None:
    """Print the Cedar text of a policy set."""

    async def main() -> PolicySetText:
        async with connect() as api:
            return await api.get(PolicySetText, f"/v1/policies/{segment(policy)}")

    found = asyncio.run(main())
    print_answer(found, found.text, as_json=as_json)


@group.command("activate")
def activate(policy: Policy, as_json: AsJson = False) -> None:
    """Put a policy set in force for every call, also of runs in flight."""

    async def main() -> PolicyActivation:
        async with connect() as api:
            return await api.post(PolicyActivation, f"/v1/policies/{segment(policy)}/activate", {})

    found = asyncio.run(main())
    name = "the built-in policy set" if found.built_in else f"policy set {found.version}"
    text = f"{name} is active" if found.changed else f"nothing to do: {name} is active already"
    print_answer(found, text, as_json=as_json)
