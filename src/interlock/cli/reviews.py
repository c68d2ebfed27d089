"""review list, show, approve, reject."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any, Literal

import typer
from rich.table import Column, Table

from interlock.base.errors import InvalidInput
from interlock.cli.connection import connect, segment
from interlock.cli.console import out, print_json, status
from interlock.services.views.reviews import ReviewPage, ReviewView

group = typer.Typer(help="Decide what waits for a person.", no_args_is_help=True)

Note = Annotated[str, typer.Option(help="Why; goes on record.")]


@group.command("list")
def list_reviews(
    every: Annotated[bool, typer.Option("--all", help="Decided ones too.")] = False,
    after: Annotated[str | None, typer.Option(help="The last review of the page before.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Open reviews, oldest first."""

    async def main() -> list[ReviewView]:
        async with connect() as api:
            wanted = "all" if every else None
            return (await api.get(ReviewPage, "/v1/reviews", status=wanted, after=after, limit=limit)).reviews

    found = asyncio.run(main())
    if as_json:
        print_json(found)
        return
    table = Table(
        Column("review", no_wrap=True, min_width=30), "workflow", "status", "question", "by", box=None, pad_edge=False
    )
    for one in found:
        table.add_row(one.review_id, one.workflow, status(one.status), one.title, one.decided_by or "")
    out.print(table if found else "nothing waits for a decision")


@group.command("show")
def show(review_id: str) -> None:
    """One review, with everything the reviewer is to see."""

    async def main() -> ReviewView:
        async with connect() as api:
            return await api.get(ReviewView, f"/v1/reviews/{segment(review_id)}")

    print_json(asyncio.run(main()))


@group.command("approve")
def approve(
    review_id: str,
    note: Note = "",
    output: Annotated[
        str | None, typer.Option(help="For a cut-off tool that did its work: what it gave, as JSON.")
    ] = None,
) -> None:
    """Approve; the run goes on."""
    try:
        value = json.loads(output) if output is not None else None
    except ValueError as error:
        raise InvalidInput(f"--output is not JSON: {error}") from error
    _decide(review_id, "approve", note, value)


@group.command("reject")
def reject(review_id: str, note: Note = "") -> None:
    """Reject; the run takes its other way, or fails and undoes what it did."""
    _decide(review_id, "reject", note, None)


def _decide(review_id: str, decision: Literal["approve", "reject"], note: str, output: Any) -> None:
    async def main() -> tuple[ReviewView, str | None]:
        async with connect() as api:
            body = {"decision": decision, "note": note, "output": output}
            decided = await api.post(ReviewView, f"/v1/reviews/{segment(review_id)}/decision", body)
            return decided, api.url

    review, url = asyncio.run(main())
    out.print(f"{review.status}: {review.title} (run {review.run_id})")
    if url is None:
        out.print("no server runs here; the run goes on with the next `interlock dev` or `interlock worker`")
