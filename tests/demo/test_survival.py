"""`kill -9` of the demo's whole process group in the middle, then `--resume`: nothing is lost and nobody is paid twice.

The counter is the bank's own SQLite file, read here directly; the model is a fake at the far end of a real wire, so that
the moment of the kill is ours and not the processor's.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engines.harness import Model

CLASSIFY, REPLY = "Output of the step classify", "Output of the step draft_reply"
TICKETS = 8
LEASE = {"INTERLOCK_WORKER__LEASE_SECONDS": "3"}  # how long the dead worker's runs wait
PATIENCE = 300.0


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory outside pytest's own, whose parent another pytest of the same user closes for PostgreSQL's."""
    directory = Path(tempfile.mkdtemp(prefix="interlock-demo-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def refunds(home: Path) -> list[str]:
    """Ticket ids of the refunds that the bank paid, reversed or not."""
    file = home / "bank.sqlite"
    if not file.exists():
        return []
    try:
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=60) as bank:
            return [row[0] for row in bank.execute("select ticket_id from refunds")]
    except sqlite3.OperationalError:
        return []  # not made yet


async def start(home: Path, model: Model, *arguments: str) -> asyncio.subprocess.Process:
    given = {"models": {"default": model.pin}, "providers": model.providers}
    environment = {
        **os.environ,
        **{f"INTERLOCK_{name.upper()}": json.dumps(one) for name, one in given.items()},
    } | LEASE
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "interlock.cli.main", "demo", "--home", str(home), *arguments),
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )


async def until(demo: asyncio.subprocess.Process, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            assert demo.returncode is None, (await demo.communicate())[0].decode()
            await asyncio.sleep(0.02)


def kill_database(home: Path) -> None:
    """The server and all it started: PostgreSQL lives in a session of its own and survives its users."""
    postmaster = int((home / "data" / "pg" / "postmaster.pid").read_text().split()[0])
    os.killpg(os.getpgid(postmaster), signal.SIGKILL)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("moment", "database_too"), [("first refund", False), ("third refund", True), ("classifying", True)]
)
async def test_killed_in_the_middle_it_finishes_and_pays_nobody_twice(
    place: Path, moment: str, database_too: bool
) -> None:
    home = place / "demo"
    async with Model() as model:
        wish = {"category": "payments", "urgency": 3, "wants_refund": True, "summary": "Wants the money back."}
        model.answers = {CLASSIFY: wish, REPLY: {"reply": "Thank you for your message, a colleague will write."}}
        model.hold(REPLY, after=TICKETS - 1)  # so that one run at least is not over, however late we look
        demo = await start(home, model, "--tickets", str(TICKETS))
        reached = {
            "first refund": lambda: len(refunds(home)) >= 1,
            "third refund": lambda: len(refunds(home)) >= 3,
            "classifying": lambda: model.asked(CLASSIFY) >= TICKETS // 2,
        }[moment]
        await until(demo, reached)
        os.killpg(demo.pid, signal.SIGKILL)
        await demo.wait()
        if database_too:
            kill_database(home)
        before = refunds(home)
        model.release(REPLY)

        resumed = await start(home, model, "--resume")
        output = (await asyncio.wait_for(resumed.communicate(), PATIENCE))[0].decode()

    assert resumed.returncode == 0, output
    assert "entries verified" in output
    assert "0 tickets refunded twice" in output
    paid = Counter(refunds(home))
    assert set(before) <= set(paid)
    assert max(paid.values()) == 1, paid
    # Every other refund is approved, whoever was killed meanwhile.
    assert len(paid) == TICKETS // 2
    lines = [line for line in output.splitlines() if line.startswith("tkt-")]
    assert len(lines) == TICKETS
    assert all("replied" in line for line in lines), output


def test_nothing_to_resume_is_said_in_a_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "interlock.cli.main", "demo", "--resume", "--home", str(tmp_path / "none")],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 3
    assert "no demo to resume" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.timeout(900)
async def test_three_tickets_end_to_end_with_the_local_model(place: Path) -> None:
    demo = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "interlock.cli.main", "demo", "--tickets", "3", "--home", str(place / "demo")),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output = (await demo.communicate())[0].decode()
    assert demo.returncode == 0, output
    assert "entries verified" in output
    assert "nothing keeps running" in output
    assert not (place / "demo" / "data" / "pg" / "postmaster.pid").exists()
