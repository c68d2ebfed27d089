"""review list, show, approve, reject, revoke."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Literal

import typer
from rich.table import Column, Table

from interlock.base.errors import InvalidInput
from interlock.base.json import Json
from interlock.cli.connection import SELF_APPROVAL, connect, segment, settings_here
from interlock.cli.console import errors, out, print_json, print_next_worker, print_page, status
from interlock.services.views.reviews import ReviewPage, ReviewView

group = typer.Typer(help="Reviews: questions that wait for a person's decision.", no_args_is_help=True)

Note = Annotated[str, typer.Option(help="Reason; recorded in the audit log.")]


@group.command("list")
def list_reviews(
    every: Annotated[bool, typer.Option("--all", help="Also decided ones.")] = False,
    after: Annotated[str | None, typer.Option(help="The last review of the previous page.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List open reviews, oldest first."""

    async def main() -> list[ReviewView]:
        async with connect() as api:
            wanted = "all" if every else None
            return (await api.get(ReviewPage, "/v1/reviews", status=wanted, after=after, limit=limit)).reviews

    table = Table(
        Column("review", no_wrap=True, min_width=30), "workflow", "status", "question", "by", box=None, pad_edge=False
    )
    print_page(
        asyncio.run(main()),
        table,
        lambda one: (one.review_id, one.workflow, status(one.status), one.title, one.decided_by or ""),
        as_json=as_json,
    )


@group.command("show")
def show(review_id: str) -> None:
    """Print one review, with all values for the reviewer."""

    async def main() -> ReviewView:
        async with connect() as api:
            return await api.get(ReviewView, f"/v1/reviews/{segment(review_id)}")

    print_json(asyncio.run(main()))


@group.command("approve")
def approve(
    review_id: str,
    note: Note = "",
    output: Annotated[
        str | None, typer.Option(help="For an interrupted tool call that took effect: its output, as JSON.")
    ] = None,
) -> None:
    """Approve a review; the run continues."""
    try:
        value = json.loads(output) if output is not None else None
    except ValueError as error:
        raise InvalidInput(f"--output is not JSON: {error}") from error
    _decide(review_id, "approve", note, value)


@group.command("reject")
def reject(review_id: str, note: Note = "") -> None:
    """Reject a review; the run takes the other branch, or fails and its effects are compensated."""
    _decide(review_id, "reject", note, None)


@group.command("revoke")
def revoke(review_id: str) -> None:
    """Revoke an approval before the tool was called with it."""

    async def main() -> ReviewView:
        async with connect() as api:
            return await api.post(ReviewView, f"/v1/reviews/{segment(review_id)}/revocation", {})

    review = asyncio.run(main())
    out.print(f"revoked: {review.title} (run {review.run_id})")


def _decide(review_id: str, decision: Literal["approve", "reject"], note: str, output: Json) -> None:
    async def main() -> tuple[ReviewView, str | None]:
        async with connect() as api:
            body = {"decision": decision, "note": note, "output": output}
            decided = await api.post(ReviewView, f"/v1/reviews/{segment(review_id)}/decision", body)
            return decided, api.url

    review, url = asyncio.run(main())
    out.print(f"{review.status}: {review.title} (run {review.run_id})")
    if url is None and decision == "approve" and settings_here().review.self_approval is None:
        errors.print(SELF_APPROVAL, style="dim")
    print_next_worker(url)
