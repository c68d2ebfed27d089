"""What the tests of engine, kernel and demo share: a model that answers by schema, a bank outside, workers as processes.

Nothing here is Interlock's: the bank is a process with its own SQLite file, the observer reads tables past row-level security, and
`story` judges a journal by rules of its own instead of by the machine's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest
from aiohttp import web

from interlock.testing import Behaviour, FakeProvider, answer

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLE = REPOSITORY / "examples" / "support_triage"
PATIENCE = 150.0  # seconds without the awaited progress until a test gives up; two leases of `settings` and more

TERMINAL = {"succeeded", "partial", "failed", "cancelled", "dead"}


# -- the model at the far end of the wire ------------------------------------------------------------------------


class Model(FakeProvider):
    """Answers by the schema's title, so that runs may ask in any order; a gate holds the answers of one title back.

    What `script` queued goes first, as in `FakeProvider`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[str, Any] = {}
        self._gates: dict[str, tuple[int, asyncio.Event]] = {}

    @property
    def pin(self) -> str:
        return "openai:fake"

    @property
    def providers(self) -> dict[str, Any]:
        """The setting that makes `openai` this fake."""
        return {"openai": {"base_url": self.url}}

    def hold(self, title: str, *, after: int = 0) -> None:
        """From now on, or once so many requests for it have come in."""
        self._gates[title] = (after, asyncio.Event())

    def release(self, title: str) -> None:
        self._gates.pop(title)[1].set()

    def release_all(self) -> None:
        """Answers all held requests, so that an application that waits for them can close."""
        while self._gates:
            self._gates.popitem()[1][1].set()

    def asked(self, title: str) -> int:
        """Requests for this title so far."""
        return sum(title_of(request.body) == title for request in self.requests)

    async def _behave(self, request: web.Request, body: dict[str, Any], behaviour: Behaviour) -> web.StreamResponse:
        title = title_of(body)
        if title in self._gates and self.asked(title) > self._gates[title][0]:
            await self._gates[title][1].wait()
        if behaviour is self._always and title in self.answers:
            behaviour = answer(self.answers[title])
        return await super()._behave(request, body, behaviour)


def title_of(body: Mapping[str, Any]) -> str:
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema", {})
    return str(schema.get("title", ""))


# -- the world outside -------------------------------------------------------------------------------------------


class Bank:
    """`examples/support_triage/bank.py` as a process. What it did is read from its file, not asked of it."""

    def __init__(self, directory: Path, *flags: str) -> None:
        directory.mkdir(parents=True)
        self._file = directory / "bank.sqlite"
        ready = directory / "port"
        self._hold = directory / "hold"
        program = str(Path(__file__).with_name("held_bank.py"))
        command = [sys.executable, program, "--db", str(self._file), "--port-file", str(ready), *flags]
        with (directory / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE
        while not ready.exists():
            assert self._process.poll() is None, (directory / "log").read_text()
            assert time.monotonic() < deadline, "the bank does not start"
            time.sleep(0.02)
        self.address = f"127.0.0.1:{ready.read_text()}"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def hold(self, *, after: int = 0) -> None:
        """From now on it does what it is asked to and answers only the first few POSTs of all, until `release`."""
        part = self._hold.with_suffix(".part")
        part.write_text(str(after))
        part.replace(self._hold)

    def release(self) -> None:
        self._hold.unlink()

    def rows(self, table: str) -> list[dict[str, Any]]:
        return bank_rows(self._file, table)

    @property
    def requests(self) -> int:
        """POSTs that arrived, whatever became of them."""
        return len(self.rows("requests"))

    @property
    def refunds(self) -> Counter[str]:
        """Refunds by ticket: the counter that must never show 2."""
        return Counter(row["ticket_id"] for row in self.rows("refunds"))

    @property
    def reversed_tickets(self) -> list[str]:
        """Tickets whose refund was taken back, in that order; one that was taken back twice is there twice."""
        tickets = {row["number"]: row["ticket_id"] for row in self.rows("refunds")}
        return [tickets[row["refund"]] for row in self.rows("reversals")]


def bank_rows(file: Path, table: str) -> list[dict[str, Any]]:
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=60)) as database:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute(f"select * from {table} order by number")]


# -- definitions -------------------------------------------------------------------------------------------------

PERMIT_ALL = "permit(principal, action, resource);\n"

NOTE_TOOL = """\
name: note
description: Says what it was told.
effect: pure
input: {type: object, properties: {text: {type: string}}, required: [text]}
output: {type: object, properties: {text: {type: string}, done: {type: boolean}}, required: [text]}
"""
NOTE_CODE = """\
def run(text):
    return {"text": text, "done": True}
"""
BOOM_TOOL = """\
name: boom
description: Always fails, for good.
effect: pure
input: {type: object}
output: {type: object}
"""
BOOM_CODE = """\
def run():
    raise RuntimeError("boom")
"""
# A probe that knows that the refund happened, and not what came of it.
HUSH = """

answer = probe


def probe(input, context):
    return {"happened": answer(input, context)["happened"]}
"""
THINK = (
    "{title: think, type: object, required: [verdict, words],"
    " properties: {verdict: {enum: [good, bad]}, words: {type: string}}}"
)
PROMPT = """\
slots:
  text: {type: string, maxLength: 4000}
messages:
  - {role: user, content: "Think about {{ text }}"}
"""
INPUT = """\
  type: object
  properties:
    ticket: {type: string}
    customer: {type: string}
    text: {type: string}
    amount: {type: number}
  required: [ticket]
  additionalProperties: false
"""


def write(directory: Path, files: Mapping[str, str]) -> None:
    """Writes files of a project, by path."""
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def refund_tool(name: str, variable: str, *promises: str, timeout: float = 30, code: str = "") -> dict[str, str]:
    """The example's refund tool under another name, with the given promises in its contract and one bank in reach."""
    lines = [*(f"{promise}: true" for promise in promises), f"timeout: {timeout}"]
    contract = (EXAMPLE / "tools" / "issue_refund" / "tool.yaml").read_text()
    kept = [
        line
        for line in contract.splitlines()
        if not line.startswith(("name:", "egress:", "honours_idempotency:", "compensate:", "probe:", "timeout:"))
    ]
    text = "\n".join([f"name: {name}", f'egress: ["${{{variable}}}"]', *lines, *kept]) + "\n"
    main = (EXAMPLE / "tools" / "issue_refund" / "main.py").read_text()
    main = main.replace("TIMEOUT = 20 ", "TIMEOUT = 200 ") + code  # longer than a busy machine stands still
    return {f"tools/{name}/tool.yaml": text, f"tools/{name}/main.py": main}


def pay(step: str, tool: str, variable: str, *, ticket: str = "$input.ticket", attempts: int = 3) -> str:
    """A step that pays a refund, as YAML; the retries are quick."""
    return textwrap.dedent(f"""\
        - id: {step}
          kind: tool
          tool: {tool}
          retry: {{max_attempts: {attempts}, backoff: 0.05, max_backoff: 0.1}}
          input:
            ticket_id: {ticket}
            customer_id: cus-001
            amount: 5
            currency: EUR
            reason: asked for
            bank_url: http://${{{variable}}}
        """)


def think(step: str = "think", *, timeout: float = 300, attempts: int = 3, backoff: float = 0.05) -> str:
    """A model step, as YAML."""
    return textwrap.dedent(f"""\
        - id: {step}
          kind: model
          prompt: think
          values: {{text: $input.text}}
          output: {THINK.replace("title: think", f"title: {step}")}
          max_tokens: 50
          timeout: {timeout}
          retry: {{max_attempts: {attempts}, backoff: {backoff}, max_backoff: {max(backoff, 0.1)}}}
        """)


NOTE = "- {id: note, kind: tool, tool: note, input: {text: $input.ticket}}\n"
BOOM = "- {id: boom, kind: tool, tool: boom}\n"
ASK = "- {id: ask, kind: review, title: Shall we?, show: {ticket: $input.ticket}, on_reject: continue}\n"


def workflow(name: str, *steps: str, allow: str = "", output: str = "{}", extra: str = "") -> dict[str, str]:
    """A workflow file of the given steps."""
    body = textwrap.indent("".join(steps), "  ")
    text = f"name: {name}\ninput:\n{INPUT}subject: $input.customer\nallow: [{allow}]\n{extra}steps:\n{body}output: {output}\n"
    return {f"workflows/{name}.yaml": text}


# -- looking -----------------------------------------------------------------------------------------------------


class Observer:
    """Reads the tables as their owner: what really stands there, whatever the application says."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection

    def rows(self, query: str, *values: Any) -> list[Any]:
        return self.connection.execute(query, values).fetchall()  # type: ignore[arg-type]

    def run(self, run_id: str) -> dict[str, Any]:
        names = ("status", "reason", "input_tokens", "output_tokens", "output", "flags", "steps")
        row = self.rows(f"select {', '.join(names)} from runs where run_id = %s", run_id)[0]
        return dict(zip(names, row, strict=True))

    def status(self, run_id: str) -> str:
        return str(self.rows("select status from runs where run_id = %s", run_id)[0][0])

    def journal(self, run_id: str) -> list[dict[str, Any]]:
        return [row[0] for row in self.rows("select event from journal where run_id = %s order by seq", run_id)]

    def kinds(self, run_id: str) -> list[str]:
        """The journal in short: `step_succeeded pay`, `timer_fired retry:pay`."""
        return [
            f"{event['type']} {event.get('step') or event.get('timer') or ''}".strip() for event in self.journal(run_id)
        ]

    def effect(self, run_id: str, step: str = "pay") -> str | None:
        found = self.rows("select status from effects where run_id = %s and step = %s", run_id, step)
        return found[0][0] if found else None

    def audit(self, run_id: str) -> list[dict[str, Any]]:
        return [
            row[0] for row in self.rows("select entry from audit where entry ->> 'run_id' = %s order by seq", run_id)
        ]

    def queue(self, run_id: str) -> dict[str, Any] | None:
        found = self.rows(
            "select worker, fence, available_at::text, available_at <= now() from queue where run_id = %s", run_id
        )
        return dict(zip(("worker", "fence", "available_at", "ready"), found[0], strict=True)) if found else None

    def lapse(self, *, worker: str | None = None, run: str | None = None) -> None:
        """Ends leases now: those of a silent worker, which then counts as dead, or that of one run.

        Tests have long leases, so that none runs out because the machine is busy; where one is to run out, it is made to.
        """
        silent = "update workers set seen_at = now() - interval '1 hour' where worker_id = %s"
        self.connection.execute(silent, (worker,))
        for (held,) in self.rows("select run_id from queue where worker = %s", worker):
            self.age_calls(held)
        ended = "update queue set lease_until = now() - interval '1 second' where worker = %s or worker is not null and run_id = %s"
        self.connection.execute(ended, (worker, run))

    def age_calls(self, run: str) -> None:
        """Makes its calls under way begin an hour earlier: who takes the run over waits until a tool's deadline is past."""
        query = "update effects set updated_at = now() - interval '1 hour' where run_id = %s and status = 'executing'"
        self.connection.execute(query, (run,))

    async def finished(self, *run_ids: str) -> list[str]:
        """Waits until all of these are over; their statuses."""

        def over() -> bool:
            return all(self.status(run_id) in TERMINAL for run_id in run_ids)

        await until(over, lambda: f"unfinished: {[(one, self.status(one), self.kinds(one)) for one in run_ids]}")
        return [self.status(run_id) for run_id in run_ids]

    async def review(self, run_id: str, purpose: str = "approve") -> str:
        """Waits for the run's open review of this purpose; its id."""
        query = "select review_id from reviews where run_id = %s and purpose = %s and status = 'open'"
        await until(
            lambda: bool(self.rows(query, run_id, purpose)),
            lambda: f"no {purpose} review; {self.run(run_id)} {self.kinds(run_id)}",
        )
        return str(self.rows(query, run_id, purpose)[0][0])

    async def asleep(self, run_id: str) -> None:
        """Waits until no worker holds the run and none is to take it before something happens."""

        def free() -> bool:
            row = self.queue(run_id)
            return row is not None and row["worker"] is None and not row["ready"]

        await until(free, lambda: f"not asleep: {self.queue(run_id)} {self.run(run_id)}")

    def everywhere(self) -> str:
        """Every value of every column of every table as text, for searching; ciphertext as hexadecimal."""
        tables = self.rows("select tablename from pg_tables where schemaname = 'public'")
        return "\n".join(str(row[0]) for (table,) in tables for row in self.rows(f'select t::text from "{table}" t'))

    def story(self, *run_ids: str) -> None:
        """Judges journals by rules of their own: no gap, one beginning, no step done twice, nothing after an end."""
        for run_id in run_ids:
            numbers = [row[0] for row in self.rows("select seq from journal where run_id = %s order by seq", run_id)]
            assert numbers == list(range(1, len(numbers) + 1)), f"{run_id}: {numbers}"
            events = self.journal(run_id)
            count = Counter(event["type"] for event in events)
            assert count["run_started"] == 1, f"{run_id}: {count}"
            outcomes = Counter(
                (event["step"], event["attempt"], event["type"].startswith("comp"))
                for event in events
                if event["type"].startswith(("step_", "comp"))
            )
            assert set(outcomes.values()) <= {1}, f"{run_id}: an attempt ended twice: {outcomes}"
            done = Counter(event["step"] for event in events if event["type"] == "step_succeeded")
            assert set(done.values()) <= {1}, f"{run_id}: a step succeeded twice: {done}"
            ended = [one for one in self.audit(run_id) if one["event_type"] == "run.finished"]
            assert len(ended) == (self.status(run_id) in TERMINAL), f"{run_id}: ended {len(ended)} times"


async def until(
    condition: Callable[[], Any] | Callable[[], Awaitable[Any]], describe: Callable[[], str], seconds: float = PATIENCE
) -> None:
    """Waits for a condition; fails with a description when nothing comes of it."""
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if asyncio.iscoroutine(result):
            result = await result
        if result:
            return
        if time.monotonic() > deadline:
            pytest.fail(f"no progress: {describe()}")
        await asyncio.sleep(0.03)


def read_log(file: Path) -> list[dict[str, Any]]:
    """The lines of a JSON log; one that was cut by a kill is left out."""
    lines = []
    for line in file.read_text().splitlines() if file.exists() else []:
        with contextlib.suppress(ValueError):
            lines.append(json.loads(line))
    return lines


# -- workers as processes ----------------------------------------------------------------------------------------


class WorkerProcess:
    """A worker in a process of its own (`worker_process.py`), which may be told to kill itself at some point.

    `lapse` ends the leases of a worker by its id.
    """

    def __init__(self, directory: Path, config: Mapping[str, Any], lapse: Callable[[str], Awaitable[None]]) -> None:
        directory.mkdir(parents=True)
        self._lapse = lapse
        self.log_file = directory / "log.jsonl"
        self._output = directory / "output"
        self._ready = directory / "ready"
        self._stopping = directory / "stopping"
        given = {**config, "log": str(self.log_file), "ready": str(self._ready), "stopping": str(self._stopping)}
        command = [sys.executable, str(Path(__file__).with_name("worker_process.py")), json.dumps(given)]
        # Short, because the sandboxes' sockets are in it, and ours, because a killed process does not clear up.
        self._temporary = tempfile.TemporaryDirectory(prefix="ilw-", ignore_cleanup_errors=True)
        environment = clean_environment(TMPDIR=self._temporary.name)
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)

    async def ready(self) -> WorkerProcess:
        await until(
            lambda: self._ready.exists() or self.process.poll() is not None, lambda: "the worker does not start"
        )
        assert self.process.poll() is None, self._output.read_text()
        return self

    def log(self, event_type: str) -> list[dict[str, Any]]:
        return [line for line in read_log(self.log_file) if line["event_type"] == event_type]

    @property
    def worker_id(self) -> str:
        """Its name in the queue; empty until it says so."""
        started = self.log("worker.started")
        return str(started[0]["structured_data"]["worker"]) if started else ""

    async def ended(self) -> int:
        """Waits for its end; the exit status, negative for a signal. If it died, its leases end as well."""
        await until(lambda: self.process.poll() is not None, lambda: f"the worker lives: {self._output.read_text()}")
        if self.process.returncode != 0:
            await self.lapse()
        return int(self.process.returncode)

    async def stop(self) -> None:
        """Stops it (SIGSTOP) for longer than its leases last."""
        self.send(signal.SIGSTOP)
        await until(self.stopped, lambda: "the worker goes on")
        await self.lapse()

    async def lapse(self) -> None:
        """Its leases run out."""
        await self._lapse(self.worker_id)

    def stopping(self) -> bool:
        """Whether it has heard that it is to drain."""
        return self._stopping.exists()

    def stopped(self) -> bool:
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._temporary.cleanup()


def clean_environment(**extra: str) -> dict[str, str]:
    """This process's environment without settings of Interlock, plus `extra`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("INTERLOCK_")}
    return {**kept, **extra}
