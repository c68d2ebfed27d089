"""keys create, list, revoke."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.table import Table

from interlock.cli.connection import connect, segment
from interlock.cli.console import AsJson, moment, out, print_answer, print_json
from interlock.services.views.installation import IssuedKey, KeyList, KeyView

group = typer.Typer(help="API keys of your organisation.", no_args_is_help=True)


@group.command("create")
def create(
    user: str,
    role: Annotated[list[str], typer.Option(help="admin, developer, operator, reviewer or viewer; may be repeated.")],
    as_json: AsJson = False,
) -> None:
    """Issue a key; it is shown once."""

    async def main() -> IssuedKey:
        async with connect() as api:
            return await api.post(IssuedKey, "/v1/keys", {"user_id": user, "roles": role})

    made = asyncio.run(main())
    print_answer(made, made.api_key, as_json=as_json)


@group.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List keys, without their secrets."""

    async def main() -> list[KeyView]:
        async with connect() as api:
            return (await api.get(KeyList, "/v1/keys")).keys

    found = asyncio.run(main())
    if as_json:
        print_json(found)
        return
    table = Table("key", "user", "roles", "created", "revoked", box=None, pad_edge=False)
    for one in found:
        table.add_row(
            one.key_id,
            one.user_id,
            ", ".join(one.roles),
            moment(one.created_at),
            moment(one.revoked_at),
        )
    out.print(table)


@group.command("revoke")
def revoke(key_id: str, as_json: AsJson = False) -> None:
    """Revoke a key; all processes refuse it within two seconds."""

    async def main() -> None:
        async with connect() as api:
            await api.delete(f"/v1/keys/{segment(key_id)}")

    asyncio.run(main())
    print_answer({"key_id": key_id}, f"revoked {key_id}", as_json=as_json)
