"""Makes the example's data files from the collected customer messages; same input, same files.

    python data/build.py PATH/TO/source.jsonl

The source has one JSON object a line: id, text, category, source, licence (300 messages of the test splits of
banking77 and CLINC150). Written:

- `data/tickets.jsonl`: 96 messages that the demo and the measurements run; the first 24 are the demo's default.
- `tools/retrieve_examples/pool.jsonl`: all other messages, with the authors' labels (`annotations.tsv`). It lies
  in the tool's own directory because a tool sees no other.
- `tools/lookup_customer/customers.sqlite`: 60 invented customers.

Choice and order depend on the seed, the source's category and the hand label `wants_refund`; on nothing that a
model or a retriever answered.
"""

from __future__ import annotations

import csv
import hashlib
import json
import random
import re
import sqlite3
import sys
from datetime import date, timedelta
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TOOLS = HERE.parent / "tools"
SEED = 20261123
RUN_SIZE = 96
FIRST_SIZE = 24
FIRST_REFUNDS = 3  # more than their share (1.5), so that the short demo shows the review and the refund
CUSTOMERS = 60

Row = dict[str, Any]

FIRST_NAMES = "Ada Bela Chidi Dana Elif Farid Greta Hugo Ines Jonas Keiko Lena Marco Nadia Oskar Priya Rosa Samir Tove"
LAST_NAMES = "Abara Brandt Dubois Eriksen Fontana Gruber Hansen Jansen Kowalski Moreau Nakata Okafor Petrov Quinn Silva"
COUNTRIES = [("GB", "GBP"), ("DE", "EUR"), ("FR", "EUR"), ("ES", "EUR"), ("US", "USD"), ("PL", "PLN"), ("SE", "SEK")]


def systematic(rows: list[Row], size: int, rng: random.Random) -> list[Row]:
    """Every n-th row from a random start: keeps the proportions of whatever the rows are sorted by."""
    step = len(rows) / size
    start = rng.random() * step
    return [rows[int(start + index * step)] for index in range(size)]


def stratum(rows: list[Row], rng: random.Random) -> list[Row]:
    """The rows by source and fine category, in random order within a category."""
    rows = sorted(rows, key=lambda row: row["id"])
    rng.shuffle(rows)
    return sorted(rows, key=lambda row: (row["source"], row["category"]))


def choose(rows: list[Row], refunds: set[str]) -> tuple[list[Row], list[Row]]:
    """The tickets that run, in their order, and the rest."""
    rng = random.Random(SEED)
    yes = stratum([row for row in rows if row["id"] in refunds], rng)
    no = stratum([row for row in rows if row["id"] not in refunds], rng)
    share = round(RUN_SIZE * len(yes) / len(rows))
    run_yes, run_no = systematic(yes, share, rng), systematic(no, RUN_SIZE - share, rng)
    first = systematic(run_yes, FIRST_REFUNDS, rng) + systematic(run_no, FIRST_SIZE - FIRST_REFUNDS, rng)
    rng.shuffle(first)
    taken = {row["id"] for row in first}
    later = [row for row in run_yes + run_no if row["id"] not in taken]
    rng.shuffle(later)
    run = first + later
    taken = {row["id"] for row in run}
    return run, [row for row in rows if row["id"] not in taken]


def make_customers() -> list[tuple[Any, ...]]:
    """Invented people; any likeness is chance. E-mail addresses are at example.com, which nobody can own."""
    rng = random.Random(SEED)
    names = [(first, last) for first in FIRST_NAMES.split() for last in LAST_NAMES.split()]
    customers: list[tuple[Any, ...]] = []
    for number, (first, last) in enumerate(rng.sample(names, CUSTOMERS), start=1):
        country, currency = rng.choice(COUNTRIES)
        customers.append(
            (
                f"cus-{number:03}",
                f"{first} {last}",
                f"{first}.{last}@example.com".lower(),
                rng.choices(["free", "plus", "premium"], [6, 3, 1])[0],
                (date(2018, 1, 1) + timedelta(days=rng.randrange(2800))).isoformat(),
                country,
                rng.choices([0, 1, 2, 3], [12, 5, 2, 1])[0],
                round(rng.lognormvariate(5.5, 1.0), 2),
                round(rng.lognormvariate(3.3, 0.8), 2),
                currency,
            )
        )
    return customers


def write_customers(customers: list[tuple[Any, ...]], path: Path) -> None:
    path.unlink(missing_ok=True)
    database = sqlite3.connect(path)
    database.execute(
        "create table customers (id text primary key, name text not null, email text not null, plan text not null,"
        " since text not null, country text not null, open_cases integer not null, lifetime_value real not null,"
        " last_payment_amount real not null, last_payment_currency text not null) strict, without rowid"
    )
    database.executemany(f"insert into customers values ({', '.join('?' * 10)})", customers)
    database.commit()
    database.close()


def write_lines(rows: list[Row], path: Path) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def plain(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def main(source: Path) -> None:
    rows: list[Row] = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    labels: dict[str, str] = json.loads((HERE / "categories.json").read_text(encoding="utf-8"))["categories"]
    with (HERE / "annotations.tsv").open(encoding="utf-8", newline="") as file:
        notes = {note["id"]: note for note in csv.DictReader(file, delimiter="\t")}
    refunds = {key for key, note in notes.items() if note["wants_refund"] == "yes"}

    run, rest = choose(rows, refunds)
    if {plain(row["text"]) for row in run} & {plain(row["text"]) for row in rest}:
        sys.exit("A message is both among the tickets and in the pool; change SEED or drop one of them.")
    unlabelled = [row["id"] for row in rest if not notes.get(row["id"], {}).get("summary")]
    if unlabelled:
        sys.exit(f"annotations.tsv: no summary for {', '.join(unlabelled)}; add a line for each.")

    customers = make_customers()
    tickets = []
    for row in run:
        number = int.from_bytes(hashlib.sha256(row["id"].encode()).digest()[:8], "big") % len(customers)
        tickets.append(
            {
                "id": row["id"],
                "text": row["text"],
                "category": row["category"],
                "label": labels[row["category"]],
                "wants_refund": row["id"] in refunds,
                "customer_id": customers[number][0],
                "source": row["source"],
                "licence": row["licence"],
            }
        )
    pool = [
        {
            "id": row["id"],
            "text": row["text"],
            "label": labels[row["category"]],
            "urgency": int(notes[row["id"]]["urgency"]),
            "wants_refund": row["id"] in refunds,
            "summary": notes[row["id"]]["summary"],
            "category": row["category"],
            "source": row["source"],
            "licence": row["licence"],
        }
        for row in rest
    ]
    write_lines(tickets, HERE / "tickets.jsonl")
    write_lines(pool, TOOLS / "retrieve_examples" / "pool.jsonl")
    write_customers(customers, TOOLS / "lookup_customer" / "customers.sqlite")
    print(f"{len(tickets)} tickets, {len(pool)} examples, {len(customers)} customers")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python data/build.py PATH/TO/source.jsonl")
    main(Path(sys.argv[1]))
