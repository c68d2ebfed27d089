"""dead-letters list, show, requeue, discard."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from interlock.base.json import JsonObject
from interlock.cli.connection import connect, segment
from interlock.cli.console import AsJson, out, print_answer, print_json, print_next_page, print_next_worker, status
from interlock.cli.inputs import read_json
from interlock.cli.listing import ListRow, print_rows
from interlock.services.views.dead_letters import DeadLetterDetail, DeadLetterPage, DeadLetterView

group = typer.Typer(help="The dead-letter queue: finally failed work that waits for an operator.", no_args_is_help=True)

Note = Annotated[str, typer.Option(help="Reason; recorded in the audit log.")]


@group.command("list")
def list_dead_letters(
    every: Annotated[bool, typer.Option("--all", help="Also decided and closed ones.")] = False,
    run: Annotated[str | None, typer.Option(help="Only dead letters of this run.")] = None,
    after: Annotated[str | None, typer.Option(help="The last dead letter of the previous page.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 50,
    as_json: AsJson = False,
) -> None:
    """List open dead letters, oldest first."""

    async def main() -> DeadLetterPage:
        async with connect() as api:
            query = {"status": "all" if every else None, "run_id": run, "after": after, "limit": limit}
            return await api.get(DeadLetterPage, "/v1/dead-letters", **query)

    page = asyncio.run(main())
    if as_json:
        print_json(page.dead_letters)
    elif page.dead_letters:
        optional = ("about", "workflow", "step", "run")
        columns = ("dead_letter", "status", "run", "workflow", "step", "about")
        print_rows(columns, [_row(one) for one in page.dead_letters], note="why", leave_out=optional)
    else:
        out.print("nothing waits for a decision")
    print_next_page("--after", page.next)


def _row(one: DeadLetterView) -> ListRow:
    cells = (one.dead_letter_id, status(one.status), one.run_id, one.workflow, one.step, one.purpose)
    return ListRow(cells, one.reason)


@group.command("show")
def show(dead_letter_id: str, as_json: AsJson = False) -> None:  # noqa: ARG001  JSON is its only form
    """Print one dead letter as JSON. Its `input` can be edited and passed to `requeue --input @FILE`."""

    async def main() -> DeadLetterDetail:
        async with connect() as api:
            return await api.get(DeadLetterDetail, f"/v1/dead-letters/{segment(dead_letter_id)}")

    print_json(asyncio.run(main()))


@group.command("requeue")
def requeue(
    dead_letter_id: str,
    note: Note = "",
    value: Annotated[
        str | None,
        typer.Option(
            "--input",
            "-i",
            help="JSON, @FILE, or - for standard input: other arguments, or the edited output of `show`.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Retry the step, its compensation, or the whole run."""
    arguments = None
    if value is not None:
        arguments = read_json(value, option="--input")
        if isinstance(arguments, dict) and arguments.get("dead_letter_id") == dead_letter_id:
            arguments = arguments.get("input")
    decided, url = _post(dead_letter_id, "requeue", {"note": note, "input": arguments})
    place = f"{decided.step or 'the run'} (run {decided.run_id})"
    text = f"requeued as run {decided.new_run}" if decided.new_run else f"requeued: {place}"
    print_answer(decided, text, as_json=as_json)
    print_next_worker(url)


@group.command("discard")
def discard(dead_letter_id: str, note: Note = "", as_json: AsJson = False) -> None:
    """Give up: a held step fails its run, an effect that was not compensated stays, a failed run stays failed."""
    decided, url = _post(dead_letter_id, "discard", {"note": note})
    text = f"discarded: {decided.step or 'the run'} (run {decided.run_id})"
    print_answer(decided, text, as_json=as_json)
    print_next_worker(url)


def _post(dead_letter_id: str, what: str, body: JsonObject) -> tuple[DeadLetterView, str | None]:
    async def main() -> tuple[DeadLetterView, str | None]:
        async with connect() as api:
            return await api.post(DeadLetterView, f"/v1/dead-letters/{segment(dead_letter_id)}/{what}", body), api.url

    return asyncio.run(main())
