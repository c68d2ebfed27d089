"""events refused, requeue, key."""

from __future__ import annotations

from typing import Annotated

import typer

from interlock.base.errors import InvalidInput
from interlock.cli.console import AsJson, moment, out, print_answer, print_json
from interlock.cli.fleet import login
from interlock.cli.installation import opened
from interlock.cli.listing import ListRow, print_rows
from interlock.services.use_cases import Services
from interlock.services.views.installation import RefusedEventView

group = typer.Typer(
    help="Events for receivers, such as the webhook: those that were not taken, and the key of their signatures.",
    no_args_is_help=True,
)


@group.command("refused")
def refused(as_json: AsJson = False) -> None:
    """List events that their receivers refused, oldest first; they are not sent again by themselves."""

    async def look(services: Services) -> list[RefusedEventView]:
        return await services.administration.refused_events()

    found = opened(look)
    if as_json:
        print_json(found)
        return
    if not found:
        out.print("no event was refused")
        return
    rows = [
        ListRow((str(one.event_id), one.sink, one.topic, one.run_id, str(one.tries), moment(one.failed_at)), one.reason)
        for one in found
    ]
    columns = ("event", "receiver", "topic", "run", "tries", "refused")
    print_rows(columns, rows, note="reason", leave_out=("tries", "refused", "topic"))


@group.command("key")
def key(as_json: AsJson = False) -> None:
    """Print the key of the webhook's signatures, in hexadecimal; docs/operations.md shows how a receiver uses it."""

    async def look(services: Services) -> str:
        return await services.administration.webhook_key()

    found = opened(look)
    print_answer({"key": found}, found, as_json=as_json)


@group.command("requeue")
def requeue(
    event: Annotated[int | None, typer.Argument(help="Only this one; `interlock events refused` lists them.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All that were refused.")] = False,
    as_json: AsJson = False,
) -> None:
    """Send refused events again, with the same ids; later events of the same run may have arrived meanwhile."""
    if (event is None) != every:
        raise InvalidInput("say which: an event's number, or --all")

    async def ask(services: Services) -> int:
        return await services.administration.requeue_events(event, login=login())

    requeued = opened(ask)
    text = f"{requeued} to be sent again" if requeued else "no event was refused"
    print_answer({"requeued": requeued}, text, as_json=as_json)
