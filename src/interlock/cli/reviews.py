"""review list, show, approve, reject, revoke."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

import typer

from interlock.base.json import Json
from interlock.cli.connection import SELF_APPROVAL, connect, segment, settings_here
from interlock.cli.console import (
    AsJson,
    errors,
    out,
    print_answer,
    print_json,
    print_next_page,
    print_next_worker,
    status,
)
from interlock.cli.inputs import read_json
from interlock.cli.listing import ListRow, print_rows
from interlock.services.views.reviews import ReviewPage, ReviewView

group = typer.Typer(help="Reviews: questions that wait for a person's decision.", no_args_is_help=True)

Note = Annotated[str, typer.Option(help="Reason; recorded in the audit log.")]


@group.command("list")
def list_reviews(
    every: Annotated[bool, typer.Option("--all", help="Also decided ones.")] = False,
    after: Annotated[str | None, typer.Option(help="The last review of the previous page.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 50,
    as_json: AsJson = False,
) -> None:
    """List open reviews, oldest first."""

    async def main() -> ReviewPage:
        async with connect() as api:
            wanted = "all" if every else None
            return await api.get(ReviewPage, "/v1/reviews", status=wanted, after=after, limit=limit)

    page = asyncio.run(main())
    if as_json:
        print_json(page.reviews)
    elif page.reviews:
        rows = [
            ListRow((one.review_id, one.workflow, status(one.status), one.decided_by or ""), one.title)
            for one in page.reviews
        ]
        print_rows(("review", "workflow", "status", "by"), rows, note="question", leave_out=("by", "workflow"))
    else:
        out.print("nothing waits for a decision")
    print_next_page("--after", page.next)


@group.command("show")
def show(review_id: str, as_json: AsJson = False) -> None:  # noqa: ARG001  JSON is its only form
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
        str | None,
        typer.Option(
            help="For an interrupted tool call that took effect: its output: JSON, @FILE, or - for standard input."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Approve a review; the run continues."""
    value = read_json(output, option="--output") if output is not None else None
    _decide(review_id, "approve", note, value, as_json=as_json)


@group.command("reject")
def reject(review_id: str, note: Note = "", as_json: AsJson = False) -> None:
    """Reject a review; the run takes the other branch, or fails and its effects are compensated."""
    _decide(review_id, "reject", note, None, as_json=as_json)


@group.command("revoke")
def revoke(review_id: str, as_json: AsJson = False) -> None:
    """Revoke an approval before the tool was called with it."""

    async def main() -> ReviewView:
        async with connect() as api:
            return await api.post(ReviewView, f"/v1/reviews/{segment(review_id)}/revocation", {})

    review = asyncio.run(main())
    print_answer(review, f"revoked: {review.title} (run {review.run_id})", as_json=as_json)


def _decide(review_id: str, decision: Literal["approve", "reject"], note: str, output: Json, *, as_json: bool) -> None:
    async def main() -> tuple[ReviewView, str | None]:
        async with connect() as api:
            body = {"decision": decision, "note": note, "output": output}
            decided = await api.post(ReviewView, f"/v1/reviews/{segment(review_id)}/decision", body)
            return decided, api.url

    review, url = asyncio.run(main())
    print_answer(review, f"{review.status}: {review.title} (run {review.run_id})", as_json=as_json)
    if url is None and decision == "approve" and settings_here().review.self_approval is None:
        errors.print(SELF_APPROVAL, style="dim")
    print_next_worker(url)
