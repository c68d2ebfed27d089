"""versions."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.text import Text

from interlock.cli.connection import Api, connect, segment
from interlock.cli.console import AsJson, moment, out, print_json
from interlock.services.views.deployments import VersionList, VersionView, WorkflowList


def register(cli: typer.Typer) -> None:
    cli.command("versions")(versions)


def versions(workflow: Annotated[str | None, typer.Argument()] = None, as_json: AsJson = False) -> None:
    """List a workflow's versions, newest first, with their parts; without a name, the head version of every workflow."""

    async def main() -> dict[str, list[VersionView]]:
        async with connect() as api:
            names = [workflow] if workflow else await _deployed(api)
            of = {name: f"/v1/workflows/{segment(name)}/versions" for name in names}
            return {name: (await api.get(VersionList, path)).versions for name, path in of.items()}

    found = asyncio.run(main())
    if as_json:
        shown = {name: [one.to_json() for one in versions] for name, versions in found.items()}
        print_json(shown[workflow] if workflow else shown)
        return
    for name, all_of_it in found.items():
        for one in all_of_it if workflow else [one for one in all_of_it if one.head]:
            _print_version(name, one)
    if not found:
        out.print("nothing is deployed yet")


async def _deployed(api: Api) -> list[str]:
    return [one.name for one in (await api.get(WorkflowList, "/v1/workflows")).workflows]


def _print_version(name: str, one: VersionView) -> None:
    head = ("  head: used by new runs", "green") if one.head else ""
    out.print(Text.assemble((f"{name}@{one.version}", "bold"), head))
    running = f"{one.running} runs in progress" if one.running != 1 else "1 run in progress"
    out.print(f"  deployed {moment(one.deployed_at)} by {one.deployed_by}; {running}")
    for what, digests in (("models", one.models), ("prompts", one.prompts), ("tools", one.tools)):
        if digests:
            pins = ", ".join(f"{key} {value if what == 'models' else value[:12]}" for key, value in digests.items())
            out.print(f"  {what}: {pins}", soft_wrap=True)
