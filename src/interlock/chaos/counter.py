"""Oracle: a counter service outside the system. Every mutating tool of a chaos run calls it, and it counts the effects.

    python counter.py --db FILE --port-file FILE

It shares no code with Interlock and imports the standard library only. Every effect is in its own SQLite file before it
answers (`synchronous=FULL`), so no fault, of the system under test or its own, loses a counted effect.

    POST /honours/effects       header Idempotency-Key; body {"business"}. A repeated key gets the first answer.
    POST /plain/effects         performs the effect at every request and ignores the key.
    POST /effects/N/reversal    header Idempotency-Key; reverses an effect; a repeated key gets the first answer.
    GET  /effects?key=K         {"effects": [...]}: used by a tool's probe.
    GET  /effects?business=B    the same by business id, as a person would look it up.
    GET  /book                  {"effects", "reversals", "requests"}: all records, for the verdict.
    GET  /struck                {"struck", "busy"}: requests hit by a fault so far; requests in progress.
    POST /faults                {"mode", "seconds", "requests"}: a fault for the next requests, for at most that time.

A fault hits requests to effects and reversals, probes included: `refuse` closes the connection unread, `hang` never
answers and performs nothing, `drop` performs the effect and closes the connection, `late` performs the effect and never
answers, `slow` waits before it performs the effect.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypedDict
from urllib.parse import parse_qs, urlsplit

MAX_BODY = 64 * 1024  # bytes
HANG_SECONDS = 8.0  # longer than any tool of a chaos run waits
SLOW_SECONDS = 3.4  # longer than a lease of a chaos run, but below its tools' timeout, also on a busy host

SCHEMA = """
create table if not exists effects (
    number integer primary key autoincrement, business text not null, key text, at real not null);
create table if not exists reversals (
    number integer primary key autoincrement, effect integer not null references effects, key text, at real not null);
create table if not exists answers (key text primary key, answer text not null);
create table if not exists requests (
    number integer primary key autoincrement, method text not null, path text not null, key text, struck text, at real not null);
create index if not exists effects_key on effects (key);
create index if not exists effects_business on effects (business);
"""

HttpAnswer = tuple[int, Mapping[str, object]]


class FoundEffect(TypedDict):
    """An effect as it can be looked up; `effect` is its number."""

    effect: int
    business: str


class EffectLine(FoundEffect):
    key: str | None
    at: float


class ReversalLine(TypedDict):
    effect: int
    key: str | None
    at: float


class RequestLine(TypedDict):
    """A request, and the fault that struck it."""

    method: str
    path: str
    key: str | None
    struck: str | None
    at: float


class Records(TypedDict):
    """The whole book, each part in its order."""

    effects: list[EffectLine]
    reversals: list[ReversalLine]
    requests: list[RequestLine]


class Book:
    """Record of performed effects: one SQLite file, one writer at a time."""

    def __init__(self, file: Path) -> None:
        self._lock = threading.Lock()
        self._database = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
        self._database.row_factory = sqlite3.Row
        self._database.execute("pragma journal_mode = wal")
        self._database.execute("pragma synchronous = full")
        self._database.executescript(SCHEMA)

    def note(self, method: str, path: str, key: str | None, struck: str | None) -> None:
        """Records a request before it is processed."""
        with self._lock:
            self._database.execute(
                "insert into requests (method, path, key, struck, at) values (?, ?, ?, ?, ?)",
                (method, path, key, struck, time.time()),
            )

    def effect(self, business: str, key: str, *, honour: bool) -> HttpAnswer:
        """Performs an effect; with `honour` once for each key."""

        def work() -> HttpAnswer:
            sql = "insert into effects (business, key, at) values (?, ?, ?)"
            number = self._database.execute(sql, (business, key, time.time())).lastrowid
            return 201, {"effect": number, "business": business}

        return self._once(key if honour else None, work)

    def reversal(self, effect: int, key: str) -> HttpAnswer:
        """Reverses an effect. A reversal with another key counts as a second one."""

        def work() -> HttpAnswer:
            if not self._database.execute("select 1 from effects where number = ?", (effect,)).fetchone():
                return 404, {"error": f"there is no effect {effect}"}
            self._database.execute(
                "insert into reversals (effect, key, at) values (?, ?, ?)", (effect, key, time.time())
            )
            return 201, {"effect": effect, "reversed": True}

        return self._once(key, work)

    def _once(self, key: str | None, work: Callable[[], HttpAnswer]) -> HttpAnswer:
        with self._lock:
            self._database.execute("begin immediate")
            try:
                kept = self._database.execute("select answer from answers where key = ?", (key,)).fetchone()
                if kept is not None:
                    return 200, json.loads(kept["answer"])
                status, answer = work()
                if key is not None and status == 201:
                    self._database.execute("insert into answers values (?, ?)", (key, json.dumps(answer)))
                return status, answer
            finally:
                self._database.execute("commit")

    def find(self, column: str, value: str) -> list[FoundEffect]:
        assert column in {"key", "business"}
        return self._rows(f"select number as effect, business from effects where {column} = ? order by number", value)  # noqa: S608  see above

    def struck(self) -> int:
        """Number of requests hit by a fault."""
        return int(self._rows("select count(*) as n from requests where struck is not null")[0]["n"])

    def everything(self) -> Records:
        return {
            "effects": self._rows("select number as effect, business, key, at from effects order by number"),
            "reversals": self._rows("select effect, key, at from reversals order by number"),
            "requests": self._rows("select method, path, key, struck, at from requests order by number"),
        }

    def _rows(self, sql: str, *values: str) -> list[Any]:
        """Rows as dictionaries of the columns that `sql` names."""
        with self._lock:
            return [dict(row) for row in self._database.execute(sql, values)]


class Partition:
    """The current fault for requests; a new one replaces the old one.

    Attributes:
        busy: requests in progress; their effects are not in the book yet.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._mode: str | None = None
        self._left = 0
        self._until = 0.0
        self.busy = 0

    def work(self, change: int) -> None:
        """Changes the number of requests in progress."""
        with self._lock:
            self.busy += change

    def set(self, mode: str, seconds: float, requests: int) -> None:
        with self._lock:
            self._mode, self._left, self._until = mode, requests, time.monotonic() + seconds

    def take(self, *, mutating: bool) -> str | None:
        """The fault for an arriving request; faults of effects do not hit questions."""
        with self._lock:
            if (
                self._left <= 0
                or time.monotonic() > self._until
                or (self._mode in {"drop", "late", "slow"} and not mutating)
            ):
                return None
            self._left -= 1
            return self._mode


class Handler(BaseHTTPRequestHandler):
    """One request. `book` and `partition` are set on the class that `serve` makes."""

    book: Book
    partition: Partition
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path == "/book":
            self._answer(200, self.book.everything())
            return
        if parts.path == "/struck":
            self._answer(200, {"struck": self.book.struck(), "busy": self.partition.busy})
            return
        query = parse_qs(parts.query)
        column = next((name for name in ("key", "business") if name in query), None)
        if parts.path != "/effects" or column is None:
            self._answer(404, {"error": "no such page"})
        elif column == "business":
            self._answer(
                200, {"effects": self.book.find(column, query[column][0])}
            )  # people are not affected by partitions
        elif self._struck() not in {"refuse", "hang"}:
            self._answer(200, {"effects": self.book.find(column, query[column][0])})

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        try:
            body = json.loads(self.rfile.read(min(length, MAX_BODY)) or b"{}")
        except ValueError:
            self._answer(400, {"error": "the body is not JSON"})
            return
        if self.path == "/faults":
            self.partition.set(str(body["mode"]), float(body["seconds"]), int(body["requests"]))
            self._answer(200, {})
            return
        self.partition.work(1)
        try:
            self._meet(self._struck(), body)
        finally:
            self.partition.work(-1)

    def _meet(self, fault: str | None, body: Mapping[str, object]) -> None:
        """Performs the effect, or not, according to the fault."""
        if fault in {"refuse", "hang"}:
            return
        if fault == "slow":
            time.sleep(SLOW_SECONDS)
        answer = self._work(body)
        if fault == "late":
            time.sleep(HANG_SECONDS)
        if fault in {"drop", "late"}:
            self.close_connection = True
            return
        self._answer(*answer)

    def _work(self, body: Mapping[str, object]) -> HttpAnswer:
        key, parts = self.headers.get("Idempotency-Key"), self.path.strip("/").split("/")
        if not key:
            return 400, {"error": "Idempotency-Key is missing"}
        business = body.get("business")
        match parts:
            case ["honours" | "plain" as manner, "effects"] if isinstance(business, str):
                return self.book.effect(business, key, honour=manner == "honours")
            case ["effects", number, "reversal"] if number.isdigit():
                return self.book.reversal(int(number), key)
        return 404, {"error": "no such page, or no business id"}

    def _struck(self) -> str | None:
        fault = self.partition.take(mutating=self.command == "POST")
        self.book.note(self.command, self.path, self.headers.get("Idempotency-Key"), fault)
        if fault == "hang":
            time.sleep(HANG_SECONDS)
        if fault in {"refuse", "hang"}:
            self.close_connection = True
        return fault

    def _answer(self, status: int, value: Mapping[str, object]) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):  # the client was killed meanwhile
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Logs nothing, because the book is the log."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        """Ignores a caller that was killed during its request, because such faults are expected here."""


def serve(file: Path, port_file: Path) -> None:
    """Serves until killed; writes its port when it listens."""
    kind = type("BookHandler", (Handler,), {"book": Book(file), "partition": Partition()})
    server = _Server(("127.0.0.1", 0), kind)
    temporary = port_file.with_suffix(".new")
    temporary.write_text(str(server.server_address[1]))
    temporary.replace(port_file)
    server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="count the effects of a chaos run")
    parser.add_argument("--db", type=Path, required=True)
    parser.add_argument("--port-file", type=Path, required=True)
    given = parser.parse_args()
    serve(given.db, given.port_file)
