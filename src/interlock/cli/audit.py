"""audit list, verify, export, key."""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from interlock.base.errors import IntegrityError, InvalidInput
from interlock.cli.connection import connect
from interlock.cli.console import AsJson, moment, out, print_answer, print_json, print_next_page, status
from interlock.cli.listing import ListRow, print_rows
from interlock.services.views.audit import AuditEntryView, AuditKeys, AuditPage, AuditVerdict

group = typer.Typer(help="The audit log: every action, hash-chained and signed.", no_args_is_help=True)


@group.command("verify")
def verify(as_json: AsJson = False) -> None:
    """Verify every entry: its hash, its position in the chain, its signature."""

    async def main() -> AuditVerdict:
        async with connect() as api:
            return await api.get(AuditVerdict, "/v1/audit/verify")

    verdict = asyncio.run(main())
    if as_json:
        print_json(verdict)
    if not verdict.ok:
        raise IntegrityError(f"audit: TAMPERED: {verdict.problem}; {verdict.verified} entries before it are valid")
    if not as_json:
        out.print(f"audit: {verdict.verified} entries verified")


@group.command("list")
def list_entries(
    run_id: Annotated[str | None, typer.Option("--run", help="Only entries of this run.")] = None,
    after: Annotated[int, typer.Option(help="Only entries after this number.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    as_json: AsJson = False,
) -> None:
    """Entries in order."""

    async def main() -> AuditPage:
        async with connect() as api:
            return await api.get(AuditPage, "/v1/audit", run_id=run_id, after=after, limit=limit)

    page = asyncio.run(main())
    if as_json:
        print_json(page.entries)
    elif page.entries:
        columns = ("#", "time", "what", "decision", "on", "who")
        print_rows(columns, [_row(one) for one in page.entries], leave_out=("who", "decision", "time"))
    else:
        out.print("no entries")
    print_next_page("--after", page.next)


def _row(one: AuditEntryView) -> ListRow:
    entry = one.entry
    time = moment(datetime.fromisoformat(str(entry["timestamp"])))
    what, who, on = (str(entry[name]) for name in ("event_type", "actor", "resource"))
    return ListRow((str(one.seq), time, what, status(str(entry["decision"])), on, who))


@group.command("export")
def export(file: Path, as_json: AsJson = False) -> None:
    """Write the whole log as JSON lines, for the stand-alone verifier or another archive."""

    async def main() -> int:
        partial = file.with_name(f"{file.name}.part")  # the file gets its final name only when it is complete
        async with connect() as api:
            count = 0
            with partial.open("w", encoding="utf-8") as target:
                try:
                    async for line in api.lines("/v1/audit/export"):
                        target.write(line + "\n")
                        count += 1
                except BaseException:
                    partial.unlink()
                    raise
            partial.replace(file)
            return count

    try:
        count = asyncio.run(main())
    except OSError as error:
        raise InvalidInput(f"{file}: cannot be written: {error.strerror}") from error
    print_answer({"file": str(file), "entries": count}, f"{count} entries in {file}", as_json=as_json)


@group.command("key")
def key(as_json: AsJson = False) -> None:
    """Print the public keys that verify this installation's entries; keep a copy where the log's operators cannot change it."""

    async def main() -> AuditKeys:
        async with connect() as api:
            return await api.get(AuditKeys, "/v1/audit/key")

    found = asyncio.run(main())
    lines = [f"{key_id}={raw}" for key_id, raw in found.keys.items()]
    print_answer(found, "\n".join(lines), as_json=as_json)
