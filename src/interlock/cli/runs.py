"""run, runs, show, trace, cancel."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from interlock.base.errors import InvalidInput
from interlock.base.json import JsonObject
from interlock.cli import exits
from interlock.cli.connection import Api, V, connect, segment
from interlock.cli.console import (
    AsJson,
    errors,
    moment,
    out,
    print_answer,
    print_json,
    print_next_page,
    seconds,
    status,
    usd,
    visible,
)
from interlock.cli.inputs import read_json
from interlock.cli.listing import ListRow, print_rows
from interlock.cli.waiting import (
    MAX_LINES,
    needs_a_person,
    print_failures,
    print_steps,
    print_value,
    print_waits,
    wait_text,
)
from interlock.services.views.reviews import ReviewPage
from interlock.services.views.runs import (
    Failures,
    FailureView,
    ReviewWait,
    RunPage,
    RunRef,
    RunResult,
    RunSummary,
    RunValues,
    RunView,
    SentSignal,
    SpanView,
    StartedRun,
    Trace,
    WorkerWait,
    is_over,
)

_POLL_SECONDS = 0.15
_WORKER_SECONDS = 3.0  # without a worker until it is said; one may be starting
_EXIT_CODES = {
    "waiting": exits.WAITING,
    "partial": exits.PARTIAL,
    "failed": exits.FAILED,
    "dead": exits.FAILED,
    "cancelled": exits.FAILED,
}


def register(cli: typer.Typer) -> None:
    cli.command("run")(run)
    cli.command("runs")(runs)
    cli.command("show")(show)
    cli.command("trace")(trace)
    cli.command("cancel")(cancel)
    cli.command("signal")(signal)
    cli.command("pause")(pause)
    cli.command("resume")(resume)


def run(
    workflow: str,
    value: Annotated[str, typer.Option("--input", "-i", help="JSON, @FILE, or - for standard input.")] = "{}",
    key: Annotated[
        str | None, typer.Option(help="Idempotency key: the same key with the same input is the same run.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start a run and follow it until it ends or waits for a person.

    The exit code is 0 if it succeeded, 7 if it failed or was cancelled, 10 if it waits for a person or a signal, and 11 if
    it ended as partial.
    """
    parsed = read_json(value, option="--input")

    async def main() -> tuple[RunView, RunResult | ReviewPage]:
        async with connect(worker=True) as api:
            headers = {"Idempotency-Key": _header(key)} if key else None
            body = {"workflow": workflow, "input": parsed}
            started = await api.post(StartedRun, "/v1/runs", body, headers=headers)
            if not as_json:
                again = "" if started.new else " (an existing run)"
                out.print(Text.assemble("run ", (started.run_id, "bold"), again))
            found = await _follow(api, started.run_id, quiet=as_json)
            if is_over(found.status):
                return found, await api.get(RunResult, f"/v1/runs/{found.run_id}/result")
            return found, await api.get(ReviewPage, "/v1/reviews", run_id=found.run_id)

    found, more = asyncio.run(main())
    if as_json:
        shown = more.to_json()
        shown.pop("next", None)  # of the page of reviews
        print_json(found.to_json() | shown)
    else:
        _print_outcome(found, more)
    if code := _EXIT_CODES.get(found.status, 0):
        raise typer.Exit(code)


def runs(
    state: Annotated[str | None, typer.Option("--status", help="Only runs with this status.")] = None,
    workflow: Annotated[str | None, typer.Option(help="Only runs of this workflow.")] = None,
    before: Annotated[str | None, typer.Option(help="The last run of the previous page.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 20,
    as_json: AsJson = False,
) -> None:
    """List runs, newest first."""

    async def main() -> RunPage:
        async with connect() as api:
            query = {"status": state, "workflow": workflow, "before": before, "limit": limit}
            return await api.get(RunPage, "/v1/runs", **query)

    page = asyncio.run(main())
    if as_json:
        print_json(page.runs)
    elif page.runs:
        columns = ("run", "workflow", "status", "started", "seconds", "steps", "tokens", "USD")
        optional = ("steps", "tokens", "USD", "seconds", "workflow", "started")
        print_rows(columns, [_row(one) for one in page.runs], note="why", leave_out=optional)
    else:
        out.print("no runs yet" if before is None else "no earlier runs")
    print_next_page("--before", page.next)


def _row(one: RunSummary) -> ListRow:
    tokens = str(one.input_tokens + one.output_tokens)
    took = seconds(one.created_at, one.finished_at)
    cells = (one.run_id, one.workflow, status(one.status), moment(one.created_at), took)
    return ListRow((*cells, str(one.steps_done), tokens, usd(one)), one.reason or "")


def show(
    run_id: str,
    reveal: Annotated[bool, typer.Option(help="Show personal data in the output; recorded in the audit log.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a run: its steps, values, effects, result, and of failed tools the traceback and the last output."""

    async def main() -> tuple[RunView, RunValues, Failures, RunResult | None]:
        async with connect() as api:
            found = await api.get(RunView, f"/v1/runs/{segment(run_id)}")
            values = await api.get(RunValues, f"/v1/runs/{found.run_id}/values")
            failures = await api.get(Failures, f"/v1/runs/{found.run_id}/failures")
            if not is_over(found.status):
                return found, values, failures, None
            result = await api.get(RunResult, f"/v1/runs/{found.run_id}/result", reveal=reveal or None)
            return found, values, failures, result

    found, values, failures, result = asyncio.run(main())
    if as_json:
        print_json(found.to_json() | values.to_json() | failures.to_json() | (result.to_json() if result else {}))
    else:
        _print_run(found, values.values, failures.failures, result)


def _print_run(found: RunView, values: JsonObject, failures: list[FailureView], result: RunResult | None) -> None:
    out.print(Text.assemble(found.run_id, "  ", status(found.status), f"  {found.workflow}@{found.version}"))
    if found.reason:
        out.print(f"  {found.reason}")
    tokens = f"{found.input_tokens} tokens in, {found.output_tokens} out"
    took = seconds(found.created_at, found.finished_at) or "…"
    out.print(f"  by {found.user_id}, {tokens}, USD {usd(found)}, {took} s")
    if found.flags:
        out.print(f"  flags: {', '.join(found.flags)}")
    print_waits(found)
    print_value("input", values["input"])
    print_steps(found.steps, values)
    print_failures(failures)
    for effect in found.effects[:MAX_LINES]:
        out.print(
            Text.assemble("\neffect ", effect.tool, "  ", status(effect.status), f"  key {effect.idempotency_key}")
        )
    if len(found.effects) > MAX_LINES:
        out.print(f"\n… and {len(found.effects) - MAX_LINES} more effects")
    if result is not None:
        out.print()
        print_value("output", result.output)


def trace(run_id: str, as_json: AsJson = False) -> None:
    """Show a run's trace as a waterfall."""

    async def main() -> list[SpanView]:
        async with connect() as api:
            return (await api.get(Trace, f"/v1/runs/{segment(run_id)}/trace")).spans

    spans = asyncio.run(main())
    if as_json:
        print_json(spans)
    elif not spans:
        out.print("no spans yet")
    else:
        out.print(waterfall(spans))


def cancel(
    run_id: str,
    reason: Annotated[str, typer.Option(help="Recorded in the audit log.")] = "",
    as_json: AsJson = False,
) -> None:
    """Cancel a run; its effects are compensated if their tools can."""
    answer = _post(RunRef, f"/v1/runs/{segment(run_id)}/cancel", {"reason": reason})
    print_answer(answer, f"asked {run_id} to stop", as_json=as_json)


def signal(
    run_id: str,
    name: str,
    payload: Annotated[str, typer.Option("--payload", "-p", help="JSON, @FILE, or - for standard input.")] = "{}",
    key: Annotated[str | None, typer.Option(help="The same key counts once, however often it is sent.")] = None,
    as_json: AsJson = False,
) -> None:
    """Send a signal to a run, whose workflow waits for it now or later."""
    body = {"payload": read_json(payload, option="--payload")}
    headers = {"Idempotency-Key": _header(key)} if key else None
    sent = _post(SentSignal, f"/v1/runs/{segment(run_id)}/signals/{segment(name)}", body, headers)
    text = f"sent {name} to {run_id}" if sent.new else f"{name} was sent to {run_id} already"
    print_answer(sent, text, as_json=as_json)


def pause(
    run_id: str,
    reason: Annotated[str, typer.Option(help="Recorded in the audit log.")] = "",
    as_json: AsJson = False,
) -> None:
    """Pause a run: work under way is finished, and no new work starts until `interlock resume`."""
    answer = _post(RunRef, f"/v1/runs/{segment(run_id)}/pause", {"reason": reason})
    print_answer(answer, f"asked {run_id} to pause", as_json=as_json)


def resume(run_id: str, as_json: AsJson = False) -> None:
    """Resume a paused run."""
    answer = _post(RunRef, f"/v1/runs/{segment(run_id)}/resume", {})
    print_answer(answer, f"asked {run_id} to resume", as_json=as_json)


def _post(view: type[V], path: str, body: JsonObject, headers: dict[str, str] | None = None) -> V:
    async def main() -> V:
        async with connect() as api:
            return await api.post(view, path, body, headers=headers)

    return asyncio.run(main())


def waterfall(spans: list[SpanView], width: int = 40) -> Table:
    """Spans as bars over the run's time, children under their parents."""
    begin = min(span.start_ns for span in spans)
    end = max(span.end_ns for span in spans)
    scale = width / max(end - begin, 1)
    known = {span.span_id for span in spans}
    table = Table("span", "", "ms", "tokens", "", box=None, pad_edge=False)

    def add(parent: str | None, depth: int) -> None:
        for span in spans:
            inside = span.parent_id == parent if parent else span.parent_id not in known
            if not inside:
                continue
            attributes = span.attributes
            left = int((span.start_ns - begin) * scale)
            length = max(1, int((span.end_ns - span.start_ns) * scale))
            bar = Text(" " * left + "█" * min(length, width - left), style="green" if span.ok else "red")
            tokens = _number(attributes, "tokens.input") + _number(attributes, "tokens.output")
            attempt = _number(attributes, "step.attempt")
            note = str(attributes.get("error.type", "")) + (f" attempt {attempt}" if attempt > 1 else "")
            name = Text("  " * depth + span.name)
            table.add_row(name, bar, f"{(span.end_ns - span.start_ns) / 1e6:.1f}", str(tokens or ""), note)
            add(span.span_id, depth + 1)

    add(None, 0)
    return table


def _number(attributes: JsonObject, name: str) -> int:
    value = attributes.get(name)
    return value if isinstance(value, int) else 0


async def _follow(api: Api, run_id: str, *, quiet: bool) -> RunView:
    shown: dict[str, tuple[str, int]] = {}
    warned, began = False, time.monotonic()
    while True:
        found = await api.get(RunView, f"/v1/runs/{run_id}")
        for step in found.steps:
            now = (str(step.status), step.attempt)
            if shown.get(step.id) != now and not quiet:
                said = visible(step.error or "")
                out.print(Text.assemble("  ", f"{step.id:24}", status(step.status), f"  {said}"))
            shown[step.id] = now
        if is_over(found.status) or (found.status == "waiting" and needs_a_person(found.waits_for)):
            return found
        orphan = next((one for one in found.waits_for if isinstance(one, WorkerWait)), None)
        if orphan is not None and not warned and time.monotonic() - began > _WORKER_SECONDS:
            warned = True
            errors.print(f"{found.status}; waits for {wait_text(run_id, orphan)}", style="yellow", soft_wrap=True)
        await asyncio.sleep(_POLL_SECONDS)


def _print_outcome(found: RunView, more: RunResult | ReviewPage) -> None:
    if isinstance(more, RunResult):
        out.print(Text.assemble("", status(found.status), f"  {visible(found.reason or '')}"))
        print_json(more.output)
        return
    for review in more.reviews:
        most = f", until {moment(review.deadline)}" if review.deadline else ""
        out.print(f"waits for a person: {review.title} (role {review.role}{most})", style="yellow", soft_wrap=True)
        print_value("", review.show)
        out.print(f"  interlock review approve {review.review_id}\n  interlock review reject {review.review_id}")
    for wait in found.waits_for:
        if not isinstance(wait, ReviewWait):
            out.print(f"waits for {wait_text(found.run_id, wait)}", style="yellow", soft_wrap=True)


def _header(key: str) -> str:
    if not (key.isascii() and key.isprintable()):
        raise InvalidInput("--key: an idempotency key has printable ASCII characters only; choose another")
    return key
