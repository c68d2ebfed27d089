"""External service of the demo: a small bank that pays refunds and counts every request.

    python bank.py --db FILE --port N --port-file FILE [faults]

It is the independent counter that shows whether a refund was ever paid twice, so it shares no code with Interlock,
records every POST before it processes it, and commits with `synchronous=FULL` before it answers: `kill -9` and a
power failure lose no answered request.

    POST /refunds               header Idempotency-Key; body ticket_id, customer_id, amount, currency, reason.
                                201 new; 200 and "replayed": true for the same key and body; 422 for the same key
                                with another body; 400 if something is missing.
    POST /refunds/{id}/reverse  header Idempotency-Key; 200, 404, 422.
    GET  /refunds, /refunds?key=K, /refunds?ticket_id=T     {"refunds": [...]}
    GET  /count                 {"requests", "refunds", "reversals", "tickets_with_more_than_one_refund"}

`requests` counts all received POSTs, with any outcome. A reversed refund still counts as a refund.
Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import sqlite3
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

MAX_BODY = 64 * 1024  # bytes
MAX_AMOUNT = 10_000
TEXTS = ("ticket_id", "customer_id", "currency", "reason")

SCHEMA = """
create table if not exists requests (
    number integer primary key autoincrement, path text not null, key text, at real not null);
create table if not exists answers (
    key text primary key, fingerprint text not null, answer text not null);
create table if not exists refunds (
    number integer primary key autoincrement, key text, ticket_id text not null, customer_id text not null,
    amount real not null, currency text not null, reason text not null, at real not null);
create table if not exists reversals (
    number integer primary key autoincrement, refund integer not null references refunds, key text, at real not null);
create index if not exists refunds_key on refunds (key);
"""

Answer = tuple[int, dict[str, Any]]


class Ledger:
    """The bank's book: one SQLite file, one writer at a time."""

    def __init__(self, file: Path, *, idempotent: bool) -> None:
        self._idempotent = idempotent
        self._lock = threading.Lock()
        self._database = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
        self._database.row_factory = sqlite3.Row
        self._database.execute("pragma journal_mode = wal")
        self._database.execute("pragma synchronous = full")
        self._database.executescript(SCHEMA)

    def note(self, path: str, key: str | None) -> int:
        """Writes the request down, durably, before anything is done about it; returns its number."""
        with self._lock:
            sql = "insert into requests (path, key, at) values (?, ?, ?)"
            return self._database.execute(sql, (path, key, time.time())).lastrowid or 0

    def refund(self, key: str, body: dict[str, Any]) -> Answer:
        if problem := _problem(body):
            return 400, {"error": problem}

        def pay() -> Answer:
            values = (key, *(body[name] for name in TEXTS), float(body["amount"]), time.time())
            number = self._database.execute(
                "insert into refunds (key, ticket_id, customer_id, currency, reason, amount, at)"
                " values (?, ?, ?, ?, ?, ?, ?)",
                values,
            ).lastrowid
            return 201, self._refunds("where number = ?", number)[0]

        return self._once(key, f"refund {json.dumps(body, sort_keys=True)}", pay)

    def reverse(self, key: str, refund_id: str) -> Answer:
        digits = refund_id.removeprefix("ref-")
        number = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 18 else 0

        def take_back() -> Answer:
            if not self._refunds("where number = ?", number):
                return 404, {"error": f"There is no refund {refund_id!r}."}
            done = self._database.execute("select 1 from reversals where refund = ?", (number,)).fetchone()
            if not done or not self._idempotent:
                sql = "insert into reversals (refund, key, at) values (?, ?, ?)"
                self._database.execute(sql, (number, key, time.time()))
            return 200, self._refunds("where number = ?", number)[0]

        return self._once(key, f"reverse {refund_id}", take_back)

    def _once(self, key: str, meaning: str, act: Any) -> Answer:
        """Runs `act` and keeps its answer in one transaction; a known key gets the kept answer instead."""
        fingerprint = hashlib.sha256(meaning.encode()).hexdigest()
        with self._lock:
            self._database.execute("begin immediate")
            try:
                known = self._database.execute("select * from answers where key = ?", (key,)).fetchone()
                if known and self._idempotent:
                    if known["fingerprint"] != fingerprint:
                        return 422, {"error": "This Idempotency-Key was used before with another body."}
                    return 200, {**json.loads(known["answer"]), "replayed": True}
                status, answer = act()
                if status < 300:
                    sql = "insert or replace into answers values (?, ?, ?)"
                    self._database.execute(sql, (key, fingerprint, json.dumps(answer)))
                return status, answer
            except BaseException:
                self._database.execute("rollback")
                raise
            finally:
                if self._database.in_transaction:
                    self._database.execute("commit")

    def refunds(self, key: str | None, ticket_id: str | None) -> list[dict[str, Any]]:
        with self._lock:
            return self._refunds(
                "where (?1 is null or key = ?1) and (?2 is null or ticket_id = ?2) order by number", key, ticket_id
            )

    def _refunds(self, where: str, *values: Any) -> list[dict[str, Any]]:
        is_reversed = "exists (select 1 from reversals where refund = refunds.number)"
        sql = f"select *, {is_reversed} as reversed from refunds {where}"
        return [
            {
                "refund_id": f"ref-{row['number']:06}",
                **{name: row[name] for name in (*TEXTS, "amount", "key", "at")},
                "status": "reversed" if row["reversed"] else "paid",
            }
            for row in self._database.execute(sql, values)
        ]

    def count(self) -> dict[str, int]:
        with self._lock:
            row = self._database.execute(
                "select (select count(*) from requests) as requests, (select count(*) from refunds) as refunds,"
                " (select count(*) from reversals) as reversals, (select count(*) from"
                " (select 1 from refunds group by ticket_id having count(*) > 1)) as tickets_with_more_than_one_refund"
            ).fetchone()
            return dict(row)


def _problem(body: dict[str, Any]) -> str | None:
    """What is wrong with a refund's body, in one sentence; None if nothing is."""
    for name in TEXTS:
        value = body.get(name)
        if not isinstance(value, str) or not 0 < len(value) <= 500:
            return f"{name} must be a text of 1 to 500 characters."
    amount = body.get("amount")
    if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 < amount <= MAX_AMOUNT:
        return f"amount must be a number above 0 and up to {MAX_AMOUNT}."
    if len(body["currency"]) != 3 or not body["currency"].isalpha():
        return "currency must be a code of three letters."
    return None


class Bank(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, ledger: Ledger, faults: argparse.Namespace) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.ledger, self.faults = ledger, faults


class Handler(BaseHTTPRequestHandler):
    server: Bank
    timeout = 30  # seconds a silent client may hold a thread

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query, keep_blank_values=True)
        if url.path == "/count":
            self._answer(200, self.server.ledger.count())
        elif url.path == "/refunds":
            key, ticket = query.get("key", [None])[0], query.get("ticket_id", [None])[0]
            self._answer(200, {"refunds": self.server.ledger.refunds(key, ticket)})
        else:
            self._answer(404, {"error": "Here are /refunds and /count."})

    def do_POST(self) -> None:
        path, faults = urlsplit(self.path).path, self.server.faults
        key = self.headers.get("Idempotency-Key")
        number = self.server.ledger.note(path, key)
        body = self._body()
        if faults.fail_every and number % faults.fail_every == 0:
            return self._answer(500, {"error": "The bank failed before doing anything (as it was told to)."})
        status, answer = self._do(path, key, body)
        if faults.delay:
            time.sleep(faults.delay)
        if status < 300 and faults.drop_after_effect_every and number % faults.drop_after_effect_every == 0:
            self.close_connection = True  # the effect is kept, but the caller gets no answer
            return None
        return self._answer(status, answer)

    def _do(self, path: str, key: str | None, body: dict[str, Any] | None) -> Answer:
        steps = path.strip("/").split("/")
        if body is None:
            return 400, {"error": f"The body must be a JSON object of at most {MAX_BODY} bytes."}
        if not key or len(key) > 200:
            return 400, {"error": "The header Idempotency-Key must have 1 to 200 characters."}
        if steps == ["refunds"]:
            return self.server.ledger.refund(key, body)
        if len(steps) == 3 and steps[0] == "refunds" and steps[2] == "reverse":
            return self.server.ledger.reverse(key, steps[1])
        return 404, {"error": "Post to /refunds or /refunds/{id}/reverse."}

    def _body(self) -> dict[str, Any] | None:
        length = self.headers.get("Content-Length") or ""
        if not length.isascii() or not length.isdigit() or int(length) > MAX_BODY:
            return None
        try:
            body = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            return None
        return body if isinstance(body, dict) else None

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 (the base class names it so)
        """Silent: the ledger is the log."""


def main() -> None:
    parser = argparse.ArgumentParser(description="A small bank for the demo and the tests.")
    parser.add_argument("--db", type=Path, required=True, help="SQLite file; made if absent, kept if present")
    parser.add_argument("--port", type=int, default=0, help="0 takes any free port")
    parser.add_argument("--port-file", type=Path, help="the port is written here once the bank answers")
    parser.add_argument("--fail-every", type=int, default=0, metavar="N", help="500 to every Nth POST, before doing it")
    parser.add_argument(
        "--drop-after-effect-every", type=int, default=0, metavar="N", help="do every Nth POST, then hang up"
    )
    parser.add_argument("--delay", type=float, default=0, metavar="SECONDS", help="wait after the effect, then answer")
    parser.add_argument("--no-idempotency", action="store_true", help="ignore the key: every POST is a new effect")
    arguments = parser.parse_args()
    bank = Bank(arguments.port, Ledger(arguments.db, idempotent=not arguments.no_idempotency), arguments)
    port = bank.server_address[1]
    if arguments.port_file:
        # Renamed into place, so that a reader never sees an empty file.
        part = arguments.port_file.with_suffix(".part")
        part.write_text(str(port), encoding="ascii")
        part.replace(arguments.port_file)
    print(f"The bank listens at http://127.0.0.1:{port}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        bank.serve_forever()


if __name__ == "__main__":
    main()
