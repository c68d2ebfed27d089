"""Warm sandboxes: used once, never shared, bounded, and replaced when they die."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import os
import resource
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from interlock.sandbox.bubblewrap import BubblewrapSandbox
from interlock.sandbox.environment import Job

from .conftest import MakeJob, bubblewraps, processes_with

STATEFUL = """
import os
seen = []
def run():
    seen.append(1)
    before = os.listdir("/tmp")
    open("/tmp/left", "w").write("x")
    return [len(seen), before]
"""


@pytest.fixture
async def warm() -> AsyncIterator[BubblewrapSandbox]:
    sandbox = BubblewrapSandbox(warm=1)
    yield sandbox
    await sandbox.close()


def runners(job: Job) -> list[int]:
    """The interpreters inside: grandchildren of bubblewrap, which has its process 1 in between."""
    starters = bubblewraps(job)
    return [
        pid
        for pid in processes_with("-u\0/interlock/runner.py")
        if pid not in starters and _grandparent(pid) in starters
    ]


async def test_a_warm_sandbox_serves_one_job(
    warm: BubblewrapSandbox, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(STATEFUL)
    starts, taken, take = [], [], warm.pool.take

    def note(plan: Any) -> Any:
        taken.append(take(plan))
        return taken[-1]

    monkeypatch.setattr(warm.pool, "take", note)
    for _ in range(4):
        result = await warm.run(job)
        assert result.output == [1, []]
        starts.append(result.start_seconds)
        await warm.pool.settled()
        assert warm.pool.waiting == 1
    assert min(starts) > 0
    assert [bool(one) for one in taken] == [False, True, True, True]
    assert len(set(taken)) == 4


async def test_a_waiting_sandbox_has_not_run_the_tool(warm: BubblewrapSandbox, make_job: MakeJob) -> None:
    job = make_job("def run(): return 'first'")
    await warm.run(job)
    await warm.pool.settled()
    await asyncio.sleep(0.3)  # time enough for a spare that would load ahead
    (job.bundle / "main.py").write_text("def run(): return 'second'")
    result = await warm.run(job)
    assert result.output == "second"


async def test_a_dead_one_is_replaced_silently(warm: BubblewrapSandbox, make_job: MakeJob) -> None:
    job = make_job(STATEFUL)
    await warm.run(job)
    for wait in (0.3, 0.0):  # found dead, and dying while the job is handed over
        await warm.pool.settled()
        (runner,) = runners(job)  # not bubblewrap: its death takes a moment to arrive, and the tool might start
        os.kill(runner, signal.SIGKILL)
        await asyncio.sleep(wait)
        result = await warm.run(job)
        assert result.output == [1, []]


async def test_a_stopped_one_is_only_a_timeout(warm: BubblewrapSandbox, make_job: MakeJob) -> None:
    job = make_job(STATEFUL, timeout=1.0)
    await warm.run(job)
    await warm.pool.settled()
    (runner,) = runners(job)
    os.kill(runner, signal.SIGSTOP)
    assert (await warm.run(job)).ending == "timeout"
    endings = []
    while "ok" not in endings and len(endings) < 20:  # in one second a busy machine may not get as far
        await warm.pool.settled()
        endings.append((await warm.run(job)).ending)
    assert endings[-1] == "ok"


async def test_other_limits_egress_or_bundle_is_another_sandbox(warm: BubblewrapSandbox, make_job: MakeJob) -> None:
    job = make_job("import resource\ndef run(): return resource.getrlimit(resource.RLIMIT_AS)[0]")
    await warm.run(job)
    await warm.pool.settled()
    smaller = dataclasses.replace(job, limits=dataclasses.replace(job.limits, memory_bytes=300_000_000))
    assert (await warm.run(smaller)).output == 300_000_000
    # The same path, but another directory: a bundle that was deployed anew.
    job.bundle.rename(job.bundle.with_name("old"))
    job.bundle.mkdir()
    (job.bundle / "main.py").write_text("def run(): return 'new'")
    assert (await warm.run(job)).output == "new"


async def test_bounded_in_total_and_the_oldest_gives_way(make_job: MakeJob) -> None:
    sandbox = BubblewrapSandbox(warm=2, warm_total=3)
    jobs = [make_job(f"def run(): return {number}", tool=f"t{number}") for number in range(3)]
    for job in jobs:
        await sandbox.run(job)
        await sandbox.pool.settled()
    assert sandbox.pool.waiting == 3
    assert [bool(sandbox.pool.take(sandbox.plan(job))) for job in jobs] == [False, True, True]
    await asyncio.gather(*(sandbox.run(job) for job in jobs * 3))
    await sandbox.pool.settled()
    assert sandbox.pool.waiting <= 3
    await sandbox.close()


async def test_idle_ones_expire(make_job: MakeJob) -> None:
    sandbox = BubblewrapSandbox(warm=1, idle_seconds=0.2)
    job = make_job("def run(): return 1")
    await sandbox.run(job)
    await sandbox.pool.settled()
    async with asyncio.timeout(120):
        while sandbox.pool.waiting or bubblewraps(job):
            await asyncio.sleep(0.02)
    await sandbox.close()


async def test_close_kills_all(make_job: MakeJob) -> None:
    sandbox = BubblewrapSandbox(warm=2)
    job = make_job("def run(): return 1")
    await sandbox.run(job)
    await sandbox.pool.settled()
    assert len(bubblewraps(job)) >= 2
    await sandbox.run(job)  # leaves a refill under way
    await sandbox.close()
    assert bubblewraps(job) == []
    assert sandbox.pool.waiting == 0


async def test_many_at_once(make_job: MakeJob) -> None:
    sandbox = BubblewrapSandbox(warm=2)
    job = make_job("def run(x): return x")
    jobs = [dataclasses.replace(job, arguments={"x": number}) for number in range(16)]
    results = await asyncio.gather(*(sandbox.run(each) for each in jobs))
    assert [result.output for result in results] == list(range(16))
    await sandbox.close()
    assert bubblewraps(job) == []


async def test_no_zombie_is_left(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Orphans would go to the host's init, which in a container may be a program that never reaps."""
    known: set[int] = set()  # bubblewraps and the first processes of their namespaces: other tests have their own
    original = os.pidfd_open

    def note(pid: int, *rest: int) -> int:
        known.add(pid)
        return original(pid, *rest)

    monkeypatch.setattr(os, "pidfd_open", note)
    sandbox = BubblewrapSandbox(warm=1)
    ends = ["return 1", "raise ValueError", "import time; time.sleep(600)"]
    jobs = [make_job(f"def run():\n    {end}", timeout=1.0 if "sleep" in end else 60.0) for end in ends]
    for _ in range(2):
        assert [(await sandbox.run(job)).ending for job in jobs] == ["ok", "raised", "timeout"]
    await sandbox.close()
    assert len(known) >= 2 * len(jobs)
    left = {pid for pid in known if Path(f"/proc/{pid}").exists()}
    assert not left, {pid: Path(f"/proc/{pid}/stat").read_text() for pid in left}


async def test_no_descriptor_is_left(make_job: MakeJob) -> None:
    sandbox = BubblewrapSandbox(warm=1)
    job = make_job("def run(): return 1", egress=("127.0.0.1:9",))
    await sandbox.run(job)
    await sandbox.close()
    await asyncio.sleep(0)
    before = _descriptors()
    for _ in range(5):
        sandbox = BubblewrapSandbox(warm=1)
        await sandbox.run(job)
        await sandbox.run(job)
        await sandbox.close()
        await asyncio.sleep(0)
    assert not _descriptors() - before


async def test_thousands_of_open_descriptors(make_job: MakeJob) -> None:
    """select() takes no descriptor above 1023, and the channel's number is then above it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip("this process may not open so many")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        sandbox = BubblewrapSandbox(warm=1)
        job = make_job("def run(): return 'ran'", egress=("127.0.0.1:9",))
        for _ in range(2):
            assert (await sandbox.run(job)).output == "ran"
            await sandbox.pool.settled()
        await sandbox.close()
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert max(opened) > 1023


def _descriptors() -> Counter[str]:
    """What this process has open, by name: a pipe's or socket's holds its inode, so what other tests have left for the
    garbage collector may vanish meanwhile without making room for a leak."""
    gc.collect()
    names: Counter[str] = Counter()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the descriptor this very listing reads from
            names[str(entry.readlink())] += 1
    return names


def _grandparent(pid: int) -> int:
    """0 if one of them is gone by now; another test's may come and go meanwhile."""
    try:
        for _ in range(2):
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except FileNotFoundError:
        return 0
    return pid
