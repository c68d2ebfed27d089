"""Evidence of a chaos run after its end: outcomes of the runs, files of large values, text kept in the clear."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from interlock.app import App
from interlock.chaos.hostile import CANARY
from interlock.chaos.report import FaultOutcome
from interlock.store.database import Row
from interlock.store.objects import Objects
from interlock.store.sweeper import ObjectSweeper

_OUTCOMES = """
select runs.run_id, runs.status,
    coalesce((select jsonb_agg(event order by seq) from journal where journal.run_id = runs.run_id), '[]') as journal,
    (select count(*) = coalesce(max(seq), 0) from journal where journal.run_id = runs.run_id) as whole,
    coalesce((select jsonb_object_agg(step, status) from effects where effects.run_id = runs.run_id), '{}') as ledger
    from runs where runs.run_id = any($1::text[])
"""
_OBJECTS = "select object from artifacts where object is not null"
_TABLES = """
select table_name from information_schema.table_privileges
    where table_schema = 'public' and privilege_type = 'SELECT' and grantee = current_user order by 1
"""
_HOLDS = 'select count(*) from "{}" as t where t::text like $1'


class Evidence:
    """Reads the database of a chaos run with statements of its own, as the organisation of the run.

    Args:
        home: directory of the chaos run; the workers' logs are below it.
    """

    def __init__(self, app: App, home: Path, org_id: str) -> None:
        self._app = app
        self._home = home
        self._org_id = org_id

    async def outcomes(self, orders: Mapping[str, tuple[str, str]]) -> list[FaultOutcome]:
        """Outcomes of the runs that still exist, with kind and order of each."""
        return [
            FaultOutcome(
                row["run_id"],
                *orders[row["run_id"]],
                row["status"],
                row["ledger"],
                row["journal"],
                gaps=not row["whole"],
            )
            for row in await self._fetch(_OUTCOMES, list(orders))
        ]

    async def objects(self) -> tuple[set[str], set[str]]:
        """Names of the files of large values, and of those that rows refer to, once what no commit named is swept."""
        directory = self._app.data / "objects"
        await ObjectSweeper(self._app.database, Objects.local(directory)).sweep(grace_seconds=0.0)
        referenced = {str(row["object"]) for row in await self._fetch(_OBJECTS)}
        files = (directory / "artifacts" / self._org_id).rglob("*")
        return {str(file.relative_to(directory)) for file in files if file.is_file()}, referenced

    async def in_the_clear(self) -> list[str]:
        """Tables and logs that hold the person named in hostile answers, whose texts may be stored encrypted only."""
        found = []
        for table in await self._fetch(_TABLES):
            (row,) = await self._fetch(_HOLDS.format(table["table_name"]), f"%{CANARY}%")
            if row["count"]:
                found.append(f"table {table['table_name']}: {row['count']} rows")
        logs = (self._home / "log").glob("worker*")
        found += [f"log {file.name}" for file in logs if CANARY in file.read_text(errors="replace")]
        return [f"text of a hostile answer is kept in the clear: {one}" for one in found]

    async def _fetch(self, query: str, *arguments: object) -> list[Row]:
        async def read() -> list[Row]:
            async with self._app.database.connection(self._org_id) as connection:
                return list(await connection.fetch(query, *arguments))

        return list(await self._app.database.retrying(read))
