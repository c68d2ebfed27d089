"""Lists in terminals of several widths, times of people, pages: real processes, over a server that has fixed answers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from .conftest import QUESTION, Cli, FakeModel, fixed_server

RUN, LETTER, REVIEW = (f"{kind}_01m8q0sjx{'0' * 17}" for kind in ("run", "ltr", "rev"))
WHY = "step charge failed after three attempts: the far side refused every one of them, and said that the card is gone"
KEY = "k" * 26
VERSION = "0123456789abcdef" * 4
ANSWERS: dict[str, Any] = {
    "/v1/runs": {
        "runs": [
            {"run_id": RUN, "workflow": "support_triage_of_mails", "version": VERSION, "status": status, "reason": WHY,
             "flags": [], "idempotency_key": "", "trace_id": "", "input_tokens": 123456, "output_tokens": 7,
             "created_at": "2026-01-02T20:00:00Z", "started_at": None, "finished_at": "2026-01-02T20:00:41Z",
             "user_id": "ada", "steps_done": 12, "usd": None, "usd_priced": "1.2345", "unpriced_calls": 3}
            for status in ("compensating", "succeeded")
        ],
        "next": RUN,
    },
    "/v1/reviews": {
        "reviews": [
            {"review_id": REVIEW, "run_id": RUN, "workflow": "support_triage_of_mails", "step": "ask", "purpose": "approve",
             "title": WHY, "role": "reviewer", "show": {}, "status": "approved", "decided_by": "bartholomew", "note": None,
             "created_at": "2026-01-02T20:00:00Z", "requester": "ada", "act": None}
        ]
    },
    "/v1/keys": {
        "keys": [
            {"key_id": KEY, "user_id": "bartholomew", "roles": ["admin", "developer", "operator", "reviewer"],
             "created_at": "2026-01-02T20:00:00Z", "revoked_at": None}
        ]
    },
}  # fmt: skip
WORDS = {
    "runs": ("/v1/runs", [RUN, "compensating", "succeeded"], WHY),
    "review list --all": ("/v1/reviews", [REVIEW, "approved"], WHY),
    "keys list": ("/v1/keys", [KEY, "bartholomew"], ""),
}


@pytest.fixture(scope="module")
def fixed() -> Iterator[str]:
    with fixed_server(ANSWERS.__getitem__) as url:
        yield url


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("command", WORDS)
def test_ids_and_states_are_whole(command: str, columns: int, fixed: str, bare: Cli) -> None:
    _, words, note = WORDS[command]
    said = bare.ok(*command.split(), INTERLOCK_URL=fixed, COLUMNS=str(columns)).out
    lines = said.splitlines()
    assert max(map(len, lines)) <= columns, said
    for word in words:
        assert any(word in line.split() for line in lines), (word, said)
    assert "…" not in said
    assert note in " ".join(said.split())


def test_wide_terminals_and_pipes_get_one_line_for_each(fixed: str, bare: Cli) -> None:
    lines = bare.ok("runs", INTERLOCK_URL=fixed, COLUMNS="320").out.splitlines()
    assert len(lines) == 3
    assert all(line.endswith(WHY) for line in lines[1:])
    assert lines[0].split()[-1] == "why"


def test_times_are_local_with_their_date(fixed: str, bare: Cli) -> None:
    # Not by the fork: the C library reads TZ once in a process.
    environment = {**bare.env, "INTERLOCK_URL": fixed, "TZ": "IST-5:30"}
    command = [sys.executable, "-m", "interlock.cli.main", "runs"]
    done = subprocess.run(command, cwd=bare.directory, env=environment, capture_output=True, text=True, check=True)
    assert "2026-01-03 01:30:00" in done.stdout
    assert os.environ.get("TZ") != "IST-5:30"


def test_the_next_page_is_named(fixed: str, bare: Cli) -> None:
    done = bare.ok("runs", INTERLOCK_URL=fixed)
    assert done.err == f"more with --before {RUN}\n"
    assert bare.ok("keys", "list", INTERLOCK_URL=fixed).err == ""


def test_pages_hold_everything_once(cli: Cli, model: FakeModel) -> None:
    started = [cli.ok("run", "answer", "-i", QUESTION, "--json").json["run_id"] for _ in range(3)]
    found: list[str] = []
    for _ in range(2):
        before = ("--before", found[-1]) if found else ()
        found += [run["run_id"] for run in cli.ok("runs", "--limit", "2", *before, "--json").json]
    assert found == started[::-1]
    whole = cli.ok("audit", "list", "--json").json
    parts: list[Any] = []
    while page := cli.ok(
        "audit", "list", "--limit", "7", "--after", str(parts[-1]["seq"] if parts else 0), "--json"
    ).json:
        parts += page
    assert parts == whole
    for entry in whole:
        assert entry["entry"]["timestamp"].endswith(("Z", "+00:00"))
