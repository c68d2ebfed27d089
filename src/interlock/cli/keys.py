"""keys create, list, revoke."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from interlock.cli.connection import connect, segment
from interlock.cli.console import AsJson, moment, print_answer, print_json
from interlock.cli.listing import ListRow, print_rows
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
    columns = ("key", "user", "revoked", "created", "roles")
    print_rows(columns, [_row(one) for one in found], leave_out=("created", "roles"))


def _row(one: KeyView) -> ListRow:
    return ListRow((one.key_id, one.user_id, moment(one.revoked_at), moment(one.created_at), ", ".join(one.roles)))


@group.command("revoke")
def revoke(key_id: str, as_json: AsJson = False) -> None:
    """Revoke a key; all processes refuse it within two seconds."""

    async def main() -> None:
        async with connect() as api:
            await api.delete(f"/v1/keys/{segment(key_id)}")

    asyncio.run(main())
    print_answer({"key_id": key_id}, f"revoked {key_id}", as_json=as_json)
