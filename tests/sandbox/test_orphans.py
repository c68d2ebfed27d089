"""Sandboxes of a worker that is killed while it starts them: no process of theirs remains, at any moment of the kill."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .conftest import processes_with

# Starts sandboxes as a worker does, one after another, until it is killed.
WORKER = """
import asyncio, sys
from pathlib import Path
from interlock.base import loop
from interlock.sandbox.bubblewrap import BubblewrapSandbox
from interlock.sandbox.environment import Job, SandboxLimits
job = Job(bundle=Path(sys.argv[1]), tool="probe", function="run", arguments={}, context={}, allowed_tools=frozenset({"probe"}),
          egress=("127.0.0.1:9",), limits=SandboxLimits(cpu_seconds=int(sys.argv[2])))
async def main():
    sandbox = BubblewrapSandbox(warm=0)
    while True:
        plan = sandbox.plan(job)
        print("start", flush=True)
        instance = await sandbox._start(plan)
        await instance.close()
loop.run(main())
"""


def _worker(tmp_path: Path, marker: int) -> subprocess.Popen[str]:
    (tmp_path / "main.py").write_text("def run(): pass")
    command = [sys.executable, "-c", WORKER, str(tmp_path), str(marker)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _left(marker: int) -> list[int]:
    """Processes of the sandboxes that still run after a time in which the kernel has ended all that it will end."""
    deadline = time.monotonic() + 30
    while (left := processes_with(f'"cpu_seconds": {marker},')) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return left


def test_a_worker_killed_at_any_moment_of_a_start(tmp_path: Path) -> None:
    marker = 10**8 + secrets.randbelow(10**8)
    for step in range(16):
        worker = _worker(tmp_path, marker)
        assert worker.stdout is not None
        for _ in range(2):  # the second start is like all later ones
            assert worker.stdout.readline() == "start\n"
        time.sleep(0.002 * step)
        worker.kill()
        worker.communicate()
    assert _left(marker) == []


@pytest.mark.parametrize("seen", [1, 2])
def test_a_worker_killed_while_bubblewrap_starts(tmp_path: Path, seen: int) -> None:
    """At the moment at which bubblewrap, or its child too, has just appeared."""
    marker = 10**8 + secrets.randbelow(10**8)
    for _ in range(4):
        worker = _worker(tmp_path, marker)
        while len(_children(worker.pid)) < seen:
            assert worker.poll() is None
        worker.kill()
        worker.communicate()
    assert _left(marker) == []


def _children(pid: int) -> list[str]:
    """Bubblewrap and its child, if they exist."""
    found: list[str] = []
    try:
        while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            pid = int(children[0])
            found.append(children[0])
    except OSError:
        return found
    return found
