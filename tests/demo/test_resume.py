"""kill -9 of the whole process group at chosen and at random moments, then `interlock demo --resume`; see test_survival.py too.

Everybody wants a refund here, and the demo approves every other one. What was paid is read from the bank's own file, and
the log proves that what was cut off is what was taken up again.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest

from demo.conftest import CLASSIFY, Demo, kill_postgres, processes_of
from engines.harness import Model, bank_rows, until

TICKETS = 8

chaos = pytest.mark.chaos


async def thinking(demo: Demo, model: Model) -> None:
    """Half of the tickets are classified, for the others the model is still thinking."""
    await until(lambda: model.asked(CLASSIFY) == TICKETS, lambda: demo.said)


async def executing(demo: Demo, model: Model) -> None:
    """A refund is on its way to the bank, which takes the call and does not answer."""
    model.hold(CLASSIFY)
    await until((demo.home / "bank.ready").exists, lambda: demo.said)
    os.kill(_bank_of(demo), signal.SIGSTOP)
    model.release(CLASSIFY)
    await until(lambda: bool(demo.logged("egress", tool="issue_refund")), lambda: demo.said)


async def refunded(demo: Demo, model: Model) -> None:
    """The bank has just paid: some of those who asked it do not know yet."""
    await until(lambda: len(demo.bank("refunds")) >= 1 or not demo.running, lambda: demo.said)


async def reviewing(demo: Demo, model: Model) -> None:
    """Reviews wait for a decision, or are just being decided."""
    await until(lambda: bool(demo.logged("event", topic="review.opened")), lambda: demo.said)


MOMENTS = {"thinking": thinking, "executing": executing, "refunded": refunded, "reviewing": reviewing}


@pytest.mark.parametrize(
    ("moment", "postgres"),
    [
        ("executing", "killed too"),
        pytest.param("thinking", "survives", marks=chaos),
        pytest.param("refunded", "survives", marks=chaos),
        pytest.param("refunded", "killed too", marks=chaos),
        pytest.param("executing", "survives", marks=chaos),
        pytest.param("thinking", "killed too", marks=chaos),
        pytest.param("reviewing", "survives", marks=chaos),
        pytest.param("reviewing", "killed too", marks=chaos),
    ],
)
async def test_killed_and_resumed(moment: str, postgres: str, home: Path, model: Model) -> None:
    killed = Demo(home, "--tickets", str(TICKETS), model=model)
    try:
        await MOMENTS[moment](killed, model)
    finally:
        killed.kill()
    assert killed.process.returncode == -signal.SIGKILL, killed.said
    before = killed.log
    ended_before = {run["run_id"] for run in killed.logged("run.finished")}
    begun_before = {run["run_id"] for run in killed.logged("run.started")} - ended_before
    assert begun_before, "nothing was under way: the kill came too late or too early"
    if postgres == "survives":
        assert any("postgres" in line for line in processes_of(home)), "PostgreSQL has a session of its own"
    else:
        assert kill_postgres(home)

    resumed = Demo(home, "--resume", model=model)
    assert await resumed.ended() == 0, resumed.said
    # Every run that was cut off is taken up where it was, or begins if its start was not on record yet, and all are over.
    after = resumed.log[len(before) :]
    again = {"run.resumed", "run.started"}
    taken_up = {line["structured_data"]["run_id"] for line in after if line["event_type"] in again}
    over = [line["structured_data"]["run_id"] for line in resumed.log if line["event_type"] == "run.finished"]
    # The kill may come between a run's last commit and the log line about it; the result's table has all runs.
    unlogged = begun_before - taken_up - set(over)
    assert len(over) == len(set(over)) == TICKETS - len(unlogged)
    assert sum(line.startswith("tkt-") for line in resumed.said.splitlines()) == TICKETS
    paid = Counter(row["ticket_id"] for row in resumed.bank("refunds"))
    assert set(paid.values()) == {1}, paid
    assert len(paid) == TICKETS // 2
    assert f"bank: {TICKETS // 2} refunds issued, 0 tickets refunded twice" in resumed.said
    assert "entries verified" in resumed.said
    assert processes_of(home) == []


async def test_killed_while_postgresql_is_made(home: Path, model: Model) -> None:
    """Half a cluster is no cluster: it is made anew."""
    rules = home / "data" / "pg" / "pg_hba.conf"
    for _ in range(10):
        killed = Demo(home, "--tickets", "2", model=model)
        await until((home / "data" / "pg" / "PG_VERSION").exists, lambda killed=killed: killed.said)  # type: ignore[misc]
        killed.kill()
        if not rules.exists() or "scram" not in rules.read_text().splitlines()[0]:
            break
        kill_postgres(home)  # we looked too late: it was made already
        shutil.rmtree(home)
    else:
        raise AssertionError("it was made already, ten times")
    resumed = Demo(home, "--resume", model=model)
    assert await resumed.ended() == 0, resumed.said
    assert processes_of(home) == []


async def test_resume_of_what_is_done(home: Path, model: Model) -> None:
    """A finished demo can be resumed: it shows the same again and pays nobody."""
    first = Demo(home, "--tickets", "2", model=model)
    assert await first.ended() == 0, first.said
    asked, requests = model.count, len(first.bank("requests"))
    again = Demo(home, "--resume", model=model)
    assert await again.ended() == 0, again.said
    assert (model.count, len(again.bank("requests"))) == (asked, requests)
    assert processes_of(home) == []


@chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(4))
async def test_killed_at_random_again_and_again(seed: int, home: Path, model: Model) -> None:
    """Killed at any moment, also while it starts or resumes, until it gets through."""
    dice = random.Random(seed)
    arguments = ("--tickets", "16")
    for _ in range(6):
        demo = Demo(home, *arguments, model=model)
        await asyncio.sleep(dice.uniform(0.5, 6))
        if not demo.running:
            assert demo.process.returncode == 0, demo.said
        else:
            demo.kill()
        if dice.random() < 0.5:
            kill_postgres(home)
        if (home / "demo.json").exists():
            arguments = ("--resume",)
    demo = Demo(home, *arguments, model=model)
    assert await demo.ended() == 0, demo.said
    paid = Counter(row["ticket_id"] for row in bank_rows(home / "bank.sqlite", "refunds"))
    assert set(paid.values()) == {1}
    assert "entries verified" in demo.said
    assert processes_of(home) == []


def _bank_of(demo: Demo) -> int:
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if b"bank.py" in command and str(demo.home).encode() in command:
            return int(entry.name)
    raise AssertionError("the demo's bank does not run")
