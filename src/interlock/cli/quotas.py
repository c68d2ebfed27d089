"""quota list, set, remove."""

from __future__ import annotations

import asyncio
from typing import Annotated
from urllib.parse import urlencode

import typer

from interlock.base.json import JsonObject
from interlock.cli.connection import connect
from interlock.cli.console import AsJson, out, print_answer, print_json
from interlock.cli.listing import ListRow, print_rows
from interlock.services.views.installation import QuotaList, QuotaView

group = typer.Typer(
    help="Limits of your organisation, its workflows and tools: concurrency and rate.",
    no_args_is_help=True,
)
ScopeArgument = Annotated[str, typer.Argument(help="org, workflow or tool.")]
Name = Annotated[str, typer.Argument(help="Name of the workflow or tool; the organisation needs none.")]


@group.command("list")
def list_quotas(as_json: AsJson = False) -> None:
    """List the quotas in force."""

    async def main() -> list[QuotaView]:
        async with connect() as api:
            return (await api.get(QuotaList, "/v1/quotas")).quotas

    found = asyncio.run(main())
    if as_json:
        print_json(found)
        return
    if not found:
        out.print("no quotas")
        return
    print_rows(("scope", "name", "at once", "rate"), [_row(one) for one in found])


def _row(one: QuotaView) -> ListRow:
    rate = "" if one.rate is None else f"{one.rate} in {one.per_seconds:g} s"
    return ListRow((one.scope, one.name, "" if one.concurrency is None else str(one.concurrency), rate))


@group.command("set")
def set_quota(
    scope: ScopeArgument,
    name: Name = "",
    concurrency: Annotated[int | None, typer.Option(help="Concurrent runs or calls; 0 admits none.")] = None,
    rate: Annotated[int | None, typer.Option(help="Runs started, or calls made, in the time of --per.")] = None,
    per: Annotated[float, typer.Option(help="Seconds.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Set or replace a quota; an option that is not given is not limited."""
    body: JsonObject = {"scope": scope, "name": name, "concurrency": concurrency, "rate": rate, "per_seconds": per}

    async def main() -> None:
        async with connect() as api:
            await api.put("/v1/quotas", body)

    asyncio.run(main())
    print_answer(body, f"set the quota of {_what(scope, name)}", as_json=as_json)


@group.command("remove")
def remove(scope: ScopeArgument, name: Name = "", as_json: AsJson = False) -> None:
    """Remove a quota."""

    async def main() -> None:
        async with connect() as api:
            await api.delete("/v1/quotas?" + urlencode({"scope": scope, "name": name}, errors="surrogateescape"))

    asyncio.run(main())
    print_answer({"scope": scope, "name": name}, f"removed the quota of {_what(scope, name)}", as_json=as_json)


def _what(scope: str, name: str) -> str:
    return f"{scope} {name}" if name else scope
