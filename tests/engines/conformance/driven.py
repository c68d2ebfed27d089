"""The other drivers: a real engine over a real database, all scenarios side by side in one application.

A script goes on only when the database's journal shows that what it said before has happened. So the order of events is the
script's, whatever an engine does at once, and no machine is too slow.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from structlog.testing import capture_logs

from interlock.app import App
from interlock.app.worker import make_engine
from interlock.base.labels import DEFINED
from interlock.base.refs import Ref
from interlock.base.settings import Settings
from interlock.execution.engine import EngineServices
from interlock.guard.gate import composed
from interlock.identity.principal import Principal
from interlock.machine.events import event_to_json
from interlock.store.commit import Commit
from interlock.store.rows import ArtifactRow, NewSignal

from .scenario import OUTCOMES, TOLD_TYPES, Entry, Record, Scenario, line, normalised, told_event
from .scripted import ScriptedSteps
from .world import MODELS

PATIENCE = 180.0
"""Seconds without what a script waits for, until it gives up."""

REVIEW = {"self_approval": True}  # one person plays everybody
_LOOK_SECONDS = 0.01
_ENDINGS = {"succeeded", "partial", "failed", "cancelled", "dead"}


class Observer:
    """Reads the tables as their owner, and wakes whoever waits for them to change."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection
        self.journals: dict[str, list[dict[str, Any]]] = {}
        self._looked = asyncio.Event()

    async def watch(self) -> None:
        while True:
            for run_id, count in await self.rows("select run_id, count(*) from journal group by run_id"):
                known = self.journals.setdefault(run_id, [])
                if count > len(known):
                    query = "select event from journal where run_id = %s and seq > %s order by seq"
                    known += [row[0] for row in await self.rows(query, run_id, len(known))]
            looked, self._looked = self._looked, asyncio.Event()
            looked.set()
            await asyncio.sleep(_LOOK_SECONDS)

    async def rows(self, query: str, *values: Any) -> list[Any]:
        cursor = await self._connection.execute(query, values)  # type: ignore[arg-type]
        return await cursor.fetchall()

    async def until(self, condition: Callable[[], bool], what: Callable[[], str]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"no progress: {what()}"
            await self._looked.wait()

    async def people(self, run_id: str) -> dict[str, list[str]]:
        """What the run asked people: `step purpose status`, in the order it did."""
        reviews = await self.rows(
            "select step, purpose, status from reviews where run_id = %s order by created_at, review_id", run_id
        )
        dead_letters = await self.rows(
            "select step, purpose, status from dead_letters where run_id = %s and purpose <> 'run' "
            "order by created_at, dead_letter_id",
            run_id,
        )
        return {"reviews": [" ".join(row) for row in reviews], "dead_letters": [" ".join(row) for row in dead_letters]}


class Run:
    """One scenario's run."""

    def __init__(self, app: App, steps: ScriptedSteps, seen: Observer, admin: Principal, scenario: Scenario) -> None:
        self._app, self._steps, self._seen, self._admin = app, steps, seen, admin
        self._scenario = scenario
        self._length = 0
        self.run_id = ""

    async def prepare(self) -> None:
        """The run in the queue, and what it is told before anybody drives it."""
        accepting = self._app.submission.accept(self._admin, self._scenario.workflow_name, self._scenario.given, None)
        self.run_id, _ = await accepting
        for entry in self._scenario.before:
            if entry.verb == "expect":
                await self._expect(entry.target)
            else:
                await self._tell(entry)
        self._length = sum(entry.verb != "expect" and not entry.ignored for entry in self._scenario.before)
        cancelled = any(entry.verb == "cancel" for entry in self._scenario.before)
        self._length += not cancelled  # else it never starts

    async def play(self) -> Record:
        script = self._scenario.script
        await self._happened("the start", script)
        for number, entry in enumerate(script, start=1):
            await self._enter(entry, script[number:])
        await self._seen.until(lambda: not self._steps.waiting(self.run_id), self._where)
        return await self._record()

    def _where(self) -> str:
        journal = [line(event) for event in self._seen.journals.get(self.run_id, [])]
        return f"{self._scenario.id}: waiting {self._steps.waiting(self.run_id)}, journal {journal}"

    async def _happened(self, what: str, ahead: list[Entry]) -> None:
        """Waits until the journal is as long as the script has come; only timers may have gone ahead."""
        journals = self._seen.journals
        timers = len(list(itertools.takewhile(lambda entry: entry.verb == "timer", ahead)))
        await self._seen.until(
            lambda: len(journals.get(self.run_id, ())) >= self._length, lambda: f"{what}: {self._where()}"
        )
        assert len(journals[self.run_id]) <= self._length + timers, f"more happened than {what}: {self._where()}"

    async def _enter(self, entry: Entry, ahead: list[Entry]) -> None:
        if entry.verb == "expect":
            await self._expect(entry.target)
            return
        if entry.verb in OUTCOMES:
            kind = "compensate" if entry.verb in {"undone", "undo_fails"} else "perform"
            step = str(entry.target)
            under_way = self._steps.under_way
            await self._seen.until(
                lambda: under_way(self.run_id, kind, step) is not None, lambda: f"{entry}: {self._where()}"
            )
            self._steps.answer(self.run_id, kind, entry, self._app.clock.now())
        elif entry.verb != "timer":
            await self._tell(entry)
        if entry.ignored:
            await self._heard(entry)
        else:
            self._length += 1
            await self._happened(str(entry), ahead)

    async def _heard(self, entry: Entry) -> None:
        """Waits until what the machine will ignore has come in."""
        deadline = time.monotonic() + PATIENCE
        while await self._seen.rows("select from signals where run_id = %s", self.run_id):
            assert time.monotonic() < deadline, f"{entry} is not taken in: {self._where()}"
            await asyncio.sleep(_LOOK_SECONDS)

    # -- telling -------------------------------------------------------------------------------------------------

    async def _tell(self, entry: Entry) -> None:
        """Through its door; what no door lets through, because nobody waits for it any more, as a row of `signals`."""
        app, admin, target = self._app, self._admin, str(entry.target)
        match entry.verb:
            case "cancel":
                await app.signals.cancel(admin, self.run_id, target)
            case _ if entry.verb == "again" or entry.ignored:
                await self._tell_directly(entry)
            case "approve" | "reject":
                review = await self._open("reviews", "review_id", target)
                await app.reviews.decide(admin, review, entry.verb, "", entry.options.get("value"))  # type: ignore[arg-type]
            case "signal":
                await app.signals.signal(
                    admin, self.run_id, target, entry.options.get("facts", {}), entry.options["id"]
                )
            case "pause":
                await app.signals.pause(admin, self.run_id, target)
            case "resume":
                await app.signals.resume(admin, self.run_id)
            case "requeue":
                dead_letter = await self._open("dead_letters", "dead_letter_id", target)
                await app.dead_letters.requeue(admin, dead_letter, "", entry.options.get("input"))
            case _:
                await app.dead_letters.discard(admin, await self._open("dead_letters", "dead_letter_id", target))

    async def _open(self, table: str, key: str, step: str) -> str:
        """The open review or letter of a step."""
        query = f"select {key} from {table} where run_id = %s and step = %s and status = 'open'"
        rows = await self._seen.rows(query, self.run_id, step)
        assert len(rows) == 1, f"{len(rows)} open {table} of {step}: {self._where()}"
        return str(rows[0][0])

    async def _tell_directly(self, entry: Entry) -> None:
        if entry.verb == "again":
            journal = self._seen.journals[self.run_id]
            await self._submit(next(event for event in reversed(journal) if event["type"] in TOLD_TYPES), [])
            return
        sealed = await self._app.artifacts.seal(self._admin.org_id, composed(entry.options), DEFINED)
        event = event_to_json(told_event(entry, self._app.clock.now(), lambda _: sealed.ref))
        await self._submit(event, [sealed.row])

    async def _submit(self, event: dict[str, Any], artifacts: list[ArtifactRow]) -> None:
        signal = NewSignal(org_id=self._admin.org_id, run_id=self.run_id, event=event)
        await self._app.committer.submit(Commit(self._admin.org_id, artifacts=artifacts, new_signals=[signal]))

    # -- looking -------------------------------------------------------------------------------------------------

    async def _expect(self, wanted: dict[str, Any]) -> None:
        if "under_way" in wanted:
            waiting = self._steps.waiting
            await self._seen.until(lambda: waiting(self.run_id) == wanted["under_way"], self._where)
        rows = await self._seen.rows("select status from runs where run_id = %s", self.run_id)
        found = {"status": rows[0][0], "under_way": wanted.get("under_way"), **await self._seen.people(self.run_id)}
        assert {name: found[name] for name in wanted} == wanted, self._where()

    async def _record(self) -> Record:
        query = "select status, reason, output from runs where run_id = %s"
        status, reason, output = (await self._seen.rows(query, self.run_id))[0]
        assert status in _ENDINGS, f"the script ends and the run does not: {status}: {self._where()}"
        effects = await self._seen.rows("select step, status from effects where run_id = %s", self.run_id)
        # A dead run keeps its claims: it may be taken up again.
        for table in ("queue", "signals", *(() if status == "dead" else ("claims",))):
            left = await self._seen.rows(f"select from {table} where run_id = %s", self.run_id)
            assert not left, f"over, and still in {table}: {self._where()}"
        query = "select from dead_letters where run_id = %s and purpose = 'run' and status = 'open'"
        asked = await self._seen.rows(query, self.run_id)
        assert len(asked) == (status == "failed"), "whether to try the whole of it again is asked of a failed run"
        opened = await self._app.artifacts.open(self._admin.org_id, Ref.from_json(output))
        events = [normalised(event) for event in self._seen.journals[self.run_id]]
        works = sorted(self._steps.works.get(self.run_id, []))
        people = await self._seen.people(self.run_id)
        return Record(events, status, reason, works, effects=dict(effects), output=opened, **people)


async def drive(
    project: Path, owner_url: str, data_dir: Path, admin: Principal, scenarios: list[Scenario], **settings: Any
) -> dict[str, Record | str]:
    """Plays scenarios on an engine; scenario id → its record, or why there is none."""
    database = {"url": owner_url, "pool_size": 8}
    worker = {"concurrency": 500, "lease_seconds": 60}
    given = Settings(database=database, data_dir=data_dir, models=MODELS, worker=worker, review=REVIEW, **settings)
    async with App(project, given) as app, await psycopg.AsyncConnection.connect(owner_url, autocommit=True) as owner:
        await app.admin.deploy(admin, app.read_project())
        steps, seen = ScriptedSteps(app.database, app.committer, app.approving.key), Observer(owner)
        runs = {scenario.id: Run(app, steps, seen, admin, scenario) for scenario in scenarios}
        for run in runs.values():
            await run.prepare()
        engine = make_engine(app, _services(app, steps))
        watching = asyncio.create_task(seen.watch())
        # Caught, because printing one run's error with all it knew would keep the others waiting.
        with capture_logs() as logs:
            await engine.start()
            try:
                played = await asyncio.gather(*(run.play() for run in runs.values()), return_exceptions=True)
            finally:
                steps.give_up()
                await engine.drain()
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
    return {
        name: _why(one, runs[name].run_id, logs) if isinstance(one, BaseException) else one
        for name, one in zip(runs, played, strict=True)
    }


def _why(error: BaseException, run_id: str, logs: list[Any]) -> str:
    """Why there is no record, with what the engine said about the run."""
    said = [str(one.get("message")) for one in logs if one["log_level"] == "error" and one.get("run_id") == run_id]
    return "\n".join([*traceback.format_exception(error), *said[-3:]])


def _services(app: App, steps: Any) -> EngineServices:
    return EngineServices(
        database=app.database,
        committer=app.committer,
        artifacts=app.artifacts,
        versions=app.versions,
        steps=steps,
        policies=app.policies,
        tracing=app.tracing,
        clock=app.clock,
    )
