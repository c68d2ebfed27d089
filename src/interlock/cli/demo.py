"""demo: the support-triage example end to end, on real messages, with a real model, through the HTTP API."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, TypedDict

import httpx
import typer
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.table import Table

from interlock.api.server import Server
from interlock.app import App
from interlock.base import loop
from interlock.base.errors import IntegrityError, InterlockError, InvalidInput, NotFound, StepError, Unavailable
from interlock.base.json import JsonObject
from interlock.base.settings import Settings, load_settings
from interlock.cli.connection import Api
from interlock.cli.console import errors, out, seconds, short, status, usd
from interlock.gateway.weights import ensure_weights
from interlock.sandbox.check import probe_sandbox
from interlock.services.views.audit import AuditVerdict
from interlock.services.views.reviews import ReviewPage, ReviewView
from interlock.services.views.runs import RunPage, RunResult, RunSummary, RunView, StartedRun, is_over
from interlock.telemetry import logs

WORKFLOW = "support_triage"
_POLL_SECONDS = 0.4
_BANK_SECONDS = 60.0


class Ticket(TypedDict):
    """A customer's message, and what a person says about it: `label` is its category."""

    id: str
    customer_id: str
    text: str
    label: str
    wants_refund: bool


@dataclass(slots=True)
class Demo:
    """One demo: its directory and its tickets."""

    example: Path
    home: Path
    tickets: list[Ticket]

    @property
    def state(self) -> Path:
        return self.home / "demo.json"


def register(cli: typer.Typer) -> None:
    cli.command("demo")(demo)


def demo(
    tickets: Annotated[int, typer.Option(min=1, help="Number of customer messages.")] = 24,
    resume: Annotated[bool, typer.Option(help="Finish an interrupted or killed demo.")] = False,
    home: Annotated[Path | None, typer.Option(help="Directory of the demo's state.")] = None,
) -> None:
    """Run the support-triage example end to end; all processes end afterwards."""
    began = time.monotonic()
    place = (home or _default_home()).resolve()
    try:
        _require_sandbox()
        prepared = _prepare(place, tickets, resume=resume)
        settings = _settings(prepared)
        if any(pin.startswith("local:") for pin in settings.models.values()):
            _fetch_weights()
        ok = loop.run(_run(prepared, settings))
    except KeyboardInterrupt:
        errors.print("\ninterrupted; `interlock demo --resume` finishes the demo")
        raise
    except OSError as error:
        raise Unavailable(f"{place}: {error.strerror or error}; choose another place with --home") from error
    out.print(f"done in {time.monotonic() - began:.0f} s; nothing keeps running", style="dim")
    if not ok:
        raise typer.Exit(StepError.exit_code)


# -- setting up ------------------------------------------------------------------------------------------------


def _require_sandbox() -> None:
    problems = asyncio.run(probe_sandbox())
    if problems:
        raise Unavailable(" ".join(problems))


def _default_home() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "interlock" / "demo"


def example_directory() -> Path:
    """The example: inside the installed package, or beside the sources of a checkout."""
    packaged = Path(str(resources.files("interlock"))) / "_examples" / WORKFLOW
    checkout = Path(str(resources.files("interlock"))).parents[1] / "examples" / WORKFLOW
    for place in (packaged, checkout):
        if (place / "workflows").is_dir():
            return place
    raise NotFound(f"the example {WORKFLOW} is not part of this installation; run the demo from a checkout")


def _prepare(home: Path, count: int, *, resume: bool) -> Demo:
    example = example_directory()
    lines = (example / "data" / "tickets.jsonl").read_text(encoding="utf-8").splitlines()
    everything = [json.loads(line) for line in lines]
    prepared = Demo(example, home, [])
    if resume:
        if not prepared.state.exists():
            raise NotFound(f"there is no demo to resume at {home}; start one with `interlock demo`")
        count = int(json.loads(prepared.state.read_text())["tickets"])
    elif count > len(everything):
        raise InvalidInput(f"the example has {len(everything)} tickets; ask for that many at most")
    else:
        if home.exists():
            if not prepared.state.exists() and any(home.iterdir()):
                raise InvalidInput(f"{home} is not empty and was not made by the demo; choose another with --home")
            shutil.rmtree(home)
        home.mkdir(parents=True)
        prepared.state.write_text(json.dumps({"tickets": count}))
    prepared.tickets = everything[:count]
    return prepared


def _settings(prepared: Demo) -> Settings:
    port_file = prepared.home / "bank.port"
    port = _start_port(port_file)
    settings = load_settings(prepared.example)
    review = settings.review.model_copy(update={"self_approval": True})
    return settings.model_copy(
        update={"data_dir": prepared.home / "data", "review": review, "variables": {"bank": f"127.0.0.1:{port}"}}
    )


def _start_port(port_file: Path) -> int:
    """The bank's port: the same after a resume, because the deployed tool may reach only this address."""
    if port_file.exists():
        return int(port_file.read_text())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    port_file.write_text(str(port))
    return port


def _fetch_weights() -> None:
    columns = (TextColumn("{task.description:14}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=errors, transient=True) as progress:
        task = progress.add_task("model weights", total=None)
        ensure_weights(
            progress=lambda stage, done, total: progress.update(task, description=stage, completed=done, total=total)
        )


@asynccontextmanager
async def _bank(prepared: Demo, port: int) -> AsyncIterator[str]:
    """The external service: a separate process with its own database, which counts every refund."""
    ready = prepared.home / "bank.ready"
    ready.unlink(missing_ok=True)
    command = [sys.executable, str(prepared.example / "bank.py"), "--db", str(prepared.home / "bank.sqlite")]
    with (prepared.home / "bank.log").open("ab") as log:
        arguments = [*command, "--port", str(port), "--port-file", str(ready)]
        process = await asyncio.create_subprocess_exec(*arguments, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + _BANK_SECONDS
        while not ready.exists():
            if process.returncode is not None or time.monotonic() > deadline:
                raise Unavailable(
                    f"the demo's bank did not start on port {port}; its log is {prepared.home / 'bank.log'}"
                )
            await asyncio.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


# -- running ---------------------------------------------------------------------------------------------------


async def _run(prepared: Demo, settings: Settings) -> bool:
    logs.configure(level=settings.telemetry.log_level, file=prepared.home / "interlock.jsonl")
    async with AsyncExitStack() as stack:
        with errors.status("starting PostgreSQL …") as spinner:
            port = int(settings.variables["bank"].rpartition(":")[2])
            bank = await stack.enter_async_context(_bank(prepared, port))
            app = await stack.enter_async_context(App(prepared.example, settings))
            spinner.update("deploying the workflow …")
            principal, key = await app.admin.local_principal()
            await app.admin.deploy(principal, app.read_project())
            await app.start_worker()
            server = Server(app.services, host="127.0.0.1", port=0, payload_bytes=settings.limits.payload_bytes)
            await server.start()
            stack.push_async_callback(server.stop)
        headers = {"Authorization": f"Bearer {key}"}
        client = await stack.enter_async_context(
            httpx.AsyncClient(base_url=server.url, headers=headers, timeout=60, trust_env=False)
        )
        api = Api(client, url=server.url)
        out.print(f"API at {server.url}, bank at {bank}, model {settings.models['default']}")
        out.print("the demo decides the reviews of runs that it started itself (review.self_approval)", style="dim")
        out.print(f"{len(prepared.tickets)} real customer messages, all at once:")
        runs = await _submit(api, prepared)
        await _follow(api, prepared, runs)
        return await _report(api, prepared, runs, bank)


async def _submit(api: Api, prepared: Demo) -> dict[str, str]:
    """Starts a run for every ticket, all at once, with the ticket's id as idempotency key; returns ticket id → run id."""

    async def submit(ticket: Ticket) -> tuple[str, str]:
        value = {"ticket_id": ticket["id"], "customer_id": ticket["customer_id"], "text": ticket["text"]}
        body = {"workflow": WORKFLOW, "input": value}
        started = await api.post(StartedRun, "/v1/runs", body, headers={"Idempotency-Key": ticket["id"]})
        return ticket["id"], started.run_id

    return dict(await asyncio.gather(*(submit(ticket) for ticket in prepared.tickets)))


async def _follow(api: Api, prepared: Demo, runs: dict[str, str]) -> None:
    """Shows the runs live and decides their reviews, until all have ended."""
    seen: set[str] = set()
    with Live(console=out, refresh_per_second=5, transient=True) as live:
        while True:
            rows = (await api.get(RunPage, "/v1/runs", workflow=WORKFLOW, limit=200)).runs
            mine = {row.run_id: row for row in rows if row.run_id in runs.values()}
            for line in await _decide(api, runs):
                live.console.print(line)
            if out.is_terminal:
                live.update(_board(prepared, runs, mine))
            else:
                _lines(prepared, runs, mine, seen)
            if len(mine) == len(runs) and all(is_over(row.status) for row in mine.values()):
                return
            await asyncio.sleep(_POLL_SECONDS)


async def _decide(api: Api, runs: dict[str, str]) -> list[str]:
    """Decides open reviews as a person would, through the API: every other refund is rejected, the first is approved.

    The decision depends only on the tickets' order, so a resumed demo decides like the killed one.
    """
    said = []
    order = {run_id: number for number, run_id in enumerate(runs.values())}
    for review in (await api.get(ReviewPage, "/v1/reviews", limit=200)).reviews:
        if review.run_id not in order:
            continue
        decided = (await api.get(ReviewPage, "/v1/reviews", status="all", limit=200)).reviews
        earlier = [one for one in decided if one.status in {"approved", "rejected"} and one.run_id in order]
        decision = "reject" if len(earlier) % 2 else "approve"
        body = {"decision": decision, "note": "decided by the demo"}
        await api.post(ReviewView, f"/v1/reviews/{review.review_id}/decision", body)
        show = review.show
        assert isinstance(show, dict)  # what the example's reviews show
        verb = "approved" if decision == "approve" else "rejected"
        said.append(
            f"review {verb}: {show['amount']} {show['currency']} for {show['customer']} ({show['message'][:40]})"
        )
    return said


def _board(prepared: Demo, runs: dict[str, str], rows: dict[str, RunSummary]) -> Table:
    table = Table("ticket", "message", "status", "steps", "tokens", box=None, pad_edge=False, title_justify="left")
    counts = Counter(str(row.status) for row in rows.values())
    table.title = "   ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    room = max(4, out.height - 6)
    current = sorted(
        prepared.tickets,
        key=lambda ticket: is_over(rows[runs[ticket["id"]]].status) if runs[ticket["id"]] in rows else False,
    )
    for ticket in current[:room]:
        row = rows.get(runs[ticket["id"]])
        if row is not None:
            tokens = str(row.input_tokens + row.output_tokens)
            table.add_row(ticket["id"], ticket["text"][:56], status(row.status), str(row.steps_done), tokens)
    return table


def _lines(prepared: Demo, runs: dict[str, str], rows: dict[str, RunSummary], seen: set[str]) -> None:
    for ticket in prepared.tickets:
        row = rows.get(runs[ticket["id"]])
        if row is not None and is_over(row.status) and ticket["id"] not in seen:
            seen.add(ticket["id"])
            out.print(f"{len(seen)}/{len(runs)} {ticket['id']} {row.status} after {row.steps_done} steps")


# -- reporting -------------------------------------------------------------------------------------------------


async def _report(api: Api, prepared: Demo, runs: dict[str, str], bank: str) -> bool:
    table = Table(
        "ticket", "category", "urgency", "outcome", "steps", "tokens", "USD", "seconds", box=None, pad_edge=False
    )
    right, refunds_right, failed = 0, 0, 0
    for ticket in prepared.tickets:
        run = await api.get(RunView, f"/v1/runs/{runs[ticket['id']]}")
        output = (await api.get(RunResult, f"/v1/runs/{runs[ticket['id']]}/result")).output
        assert isinstance(output, dict)  # the output of the example's workflow
        right += output["category"] == ticket["label"]
        refunds_right += output["wants_refund"] == ticket["wants_refund"]
        failed += run.status != "succeeded"
        tokens = str(run.input_tokens + run.output_tokens)
        took = seconds(run.created_at, run.finished_at)
        urgency = str(output["urgency"] or "")
        table.add_row(
            ticket["id"],
            output["category"],
            urgency,
            _outcome(run, output),
            str(run.steps_done),
            tokens,
            usd(run),
            took,
        )
    out.print(table)
    count = len(prepared.tickets)
    commonest = Counter(ticket["label"] for ticket in prepared.tickets).most_common(1)[0][1]
    out.print(
        f"category right: {right}/{count} ({right / count:.0%}; always guessing the commonest: {commonest / count:.0%})"
    )
    out.print(f"refund wish right: {refunds_right}/{count} ({refunds_right / count:.0%})")
    doubled = await _count(bank)
    verdict = await api.get(AuditVerdict, "/v1/audit/verify")
    if not verdict.ok:
        raise IntegrityError(f"audit: TAMPERED: {verdict.problem}")
    out.print(f"audit: {verdict.verified} entries verified")
    _next(prepared, next(iter(runs.values())))
    return failed == 0 and not doubled


def _outcome(run: RunView, output: JsonObject) -> str:
    if run.status != "succeeded":
        return f"{run.status}: {run.reason}"
    if output["refund_id"]:
        return "replied, refunded"
    return "replied, refund rejected" if output["refund_approved"] is False else "replied"


async def _count(bank: str) -> int:
    """Prints the bank's record; returns the number of tickets with more than one refund, which must be 0."""
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            counted = (await client.get(f"{bank}/count")).json()
    except (httpx.HTTPError, ValueError) as error:
        raise InterlockError("the demo's bank does not report its count") from error
    doubled = int(counted["tickets_with_more_than_one_refund"])
    out.print(f"bank: {counted['refunds']} refunds issued, {doubled} tickets refunded twice")
    return doubled


def _next(prepared: Demo, run_id: str) -> None:
    lines = [f"cd {short(prepared.example)} && export INTERLOCK_DATA_DIR={short(prepared.home / 'data')}"]
    if shutil.which("interlock") is None:
        lines.insert(0, f". {short(Path(sys.prefix) / 'bin' / 'activate')}")
    lines += [f"interlock {command}" for command in (f"show {run_id}", f"trace {run_id}", "audit verify", "runs")]
    out.print("\nLook at what happened:", style="bold")
    for line in lines:
        out.print(f"  {line}", markup=False, soft_wrap=True)
    out.print("Make your own agent:", style="bold")
    out.print("  interlock init my-agent && cd my-agent && interlock dev", markup=False)
