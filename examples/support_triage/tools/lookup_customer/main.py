"""Reads one customer from the file that lies beside this one."""

import sqlite3
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("customers.sqlite")


def run(customer_id: str) -> dict[str, Any]:
    """The customer's record; LookupError if there is no such customer (trying again cannot help)."""
    # immutable=1: the directory is read-only and no other process writes, so SQLite needs neither locks nor a journal.
    database = sqlite3.connect(f"{FILE.as_uri()}?mode=ro&immutable=1", uri=True)
    try:
        database.row_factory = sqlite3.Row
        row = database.execute("select * from customers where id = ?", (customer_id,)).fetchone()
    finally:
        database.close()
    if row is None:
        raise LookupError(f"There is no customer {customer_id!r}; check the ticket's customer_id.")
    return dict(row)


def health() -> dict[str, Any]:
    """Answers if the file can be read."""
    run("cus-001")
    return {"ok": True}
