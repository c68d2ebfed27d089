"""Memory, disk, processes, time: a tool gets what it was granted and no more."""

from __future__ import annotations

import asyncio
import re
import secrets

import pytest

from interlock.sandbox.bubblewrap import BubblewrapSandbox

from .conftest import MakeJob, Run, bubblewraps, processes_with

MIB = 1024 * 1024
# Detaches grandchildren in every way that outlives a plain kill of the parent.
GRANDCHILDREN = """
import os, subprocess, time
def run(marker, hang):
    subprocess.Popen(["sleep", marker], start_new_session=True)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execvp("sleep", ["sleep", marker])
        os._exit(0)
    time.sleep(0.3)
    if hang:
        time.sleep(600)
    return "done"
"""


async def test_memory(run: Run) -> None:
    source = "def run(size): return len(bytearray(size))"
    assert (await run(source, {"size": 32 * MIB}, memory_bytes=256 * MIB)).output == 32 * MIB
    result = await run(source, {"size": 512 * MIB}, memory_bytes=256 * MIB)
    assert result.ending == "out_of_memory"
    assert result.error == f"the tool used up its {256 * MIB} bytes of memory"


async def test_memory_behind_the_limits_back(run: Run) -> None:
    """Memory that no address space holds would escape the limit; the ways to get it are closed."""
    source = """
    import ctypes, os
    def run():
        libc = ctypes.CDLL(None, use_errno=True)
        answers = []
        try:
            os.memfd_create("x")
            answers.append("granted")
        except PermissionError:
            answers.append("refused")
        answers.append("granted" if libc.shmget(0, 4096, 0o1600) >= 0 else "refused")
        return answers
    """
    assert (await run(source)).output == ["refused", "refused"]


HOGS = """
import os, time
def run(children, mib):
    for _ in range(children):
        if os.fork() == 0:
            held = bytearray(os.urandom(1) * (mib * 2**20))
            time.sleep(600)
    time.sleep(600)
"""


async def test_memory_of_all_processes_together(run: Run) -> None:
    """Each far below the limit of one process."""
    result = await run(HOGS, {"children": 6, "mib": 60}, memory_bytes=192 * MIB, timeout=300.0)
    assert result.ending == "out_of_memory"
    assert result.error is not None
    said = re.fullmatch(
        r"the tool's (\d) processes used (\d+) MiB of memory together and were killed; "
        r"limits.memory_mib of 192 is for all of them",
        result.error,
    )
    assert said is not None, result.error
    assert int(said[1]) in range(5, 9)  # the children, the tool, process 1
    assert int(said[2]) > 192


async def test_shared_memory_of_many_processes_counts_once(run: Run) -> None:
    source = """
    import os, time
    def run():
        held = bytearray(b"x" * (60 * 2**20))
        for _ in range(8):
            if os.fork() == 0:
                sum(held[::4096])
                time.sleep(600)
        time.sleep(1.5)
        return "done"
    """
    assert (await run(source, memory_bytes=192 * MIB)).output == "done"


async def test_files_without_content_are_bounded(run: Run) -> None:
    source = """
    import os, time
    def run(files, seconds):
        for number in range(files):
            os.close(os.open(f"/tmp/{number}", os.O_CREAT))
        time.sleep(seconds)
        return "made"
    """
    assert (await run(source, {"files": 1200, "seconds": 1}, disk_bytes=MIB)).output == "made"
    result = await run(source, {"files": 1400, "seconds": 600}, disk_bytes=MIB, timeout=300.0)
    assert result.ending == "too_many_files"
    assert result.error is not None
    assert re.fullmatch(
        r"the tool had 14\d\d files in /tmp and was killed; limits.disk_mib of 1 allows 1256 files", result.error
    ), result.error


async def test_a_tool_that_ends_the_relay_stays_watched(run: Run) -> None:
    """The watchdog reads the list of processes itself; no process of the sandbox reports to it."""
    source = HOGS.replace("def run(children, mib):", "def run(children, mib):\n    os.system('kill -9 3')")
    result = await run(
        source, {"children": 6, "mib": 60}, memory_bytes=192 * MIB, timeout=300.0, egress=("127.0.0.1:9",)
    )
    assert result.ending == "out_of_memory"


async def test_disk(run: Run) -> None:
    source = """
    def run(sizes):
        for number, size in enumerate(sizes):
            with open(f"/tmp/{number}", "wb") as file:
                file.write(b"x" * size)
        return "written"
    """
    assert (await run(source, {"sizes": [MIB, MIB]}, disk_bytes=4 * MIB)).output == "written"
    # One file too large is stopped by its own limit, many together by the size of the file system.
    one = await run(source, {"sizes": [5 * MIB]}, disk_bytes=4 * MIB)
    assert (one.ending, one.error) == ("raised", "OSError: [Errno 27] File too large")
    many = await run(source, {"sizes": [3 * MIB, 3 * MIB]}, disk_bytes=4 * MIB)
    assert (many.ending, many.error) == ("raised", "OSError: [Errno 28] No space left on device")


async def test_shared_memory_counts_as_disk(run: Run) -> None:
    source = """
    from multiprocessing import Lock
    def run():
        Lock()
        with open("/dev/shm/x", "wb") as file:
            file.write(b"x" * 3_000_000)
        with open("/tmp/y", "wb") as file:
            file.write(b"x" * 3_000_000)
    """
    result = await run(source, disk_bytes=4 * MIB)
    assert result.error == "OSError: [Errno 28] No space left on device"


async def test_a_fork_bomb_is_bounded(run: Run) -> None:
    source = """
    import os, time
    def run():
        children = 0
        try:
            while children < 500:
                if os.fork() == 0:
                    time.sleep(600)
                children += 1
        except BlockingIOError:
            return children
        return "unbounded"
    """
    result = await run(source, processes=16)
    assert result.output == 15  # and the tool itself


async def test_threads_count_as_processes(run: Run) -> None:
    source = """
    import threading, time
    def run():
        for number in range(500):
            try:
                threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
            except RuntimeError:
                return number
    """
    assert (await run(source, processes=16)).output == 15


async def test_processor_seconds(run: Run) -> None:
    result = await run("def run():\n    while True: pass", cpu_seconds=1)
    assert (result.ending, result.error) == ("crashed", "the tool used up its 1 processor seconds")


async def test_limits_cannot_be_raised(run: Run) -> None:
    source = """
    import resource
    def run():
        raised = []
        for name in ("RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_NPROC", "RLIMIT_FSIZE", "RLIMIT_CORE", "RLIMIT_NOFILE"):
            kind = getattr(resource, name)
            hard = resource.getrlimit(kind)[1]
            try:
                resource.setrlimit(kind, (hard + 1, hard + 1))
                raised.append(name)
            except ValueError:
                pass
        return raised
    """
    assert (await run(source)).output == []


@pytest.mark.parametrize("hang", [True, False])
async def test_nothing_outlives_its_job(run: Run, hang: bool) -> None:
    """Neither after a timeout nor after an answer; and `run` does not return before all are dead."""
    marker = f"7{secrets.randbelow(10**8):08d}"
    seen: list[int] = []
    watching = asyncio.create_task(_watch(marker, seen))
    for _ in range(10):
        result = await run(GRANDCHILDREN, {"marker": marker, "hang": hang}, timeout=3.0 if hang else 60.0)
        left = processes_with(f"sleep\0{marker}")
        assert result.ending == ("timeout" if hang else "ok")
        assert left == []
        if 2 in seen:
            break
    watching.cancel()
    assert max(seen) == 2  # they were really there, though a busy machine may not see it at once


async def _watch(marker: str, seen: list[int]) -> None:
    while True:
        seen.append(len(processes_with(f"sleep\0{marker}")))
        await asyncio.sleep(0.02)


async def test_cancelling_kills_everything(sandbox: BubblewrapSandbox, make_job: MakeJob) -> None:
    marker = f"8{secrets.randbelow(10**8):08d}"
    job = make_job(GRANDCHILDREN, {"marker": marker, "hang": True})
    task = asyncio.create_task(sandbox.run(job))
    async with asyncio.timeout(120):
        while len(processes_with(f"sleep\0{marker}")) < 2:
            await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert processes_with(f"sleep\0{marker}") == []


async def test_cancelling_during_the_start_leaves_nothing(sandbox: BubblewrapSandbox, make_job: MakeJob) -> None:
    """At whatever point of the start it strikes."""
    job = make_job("def run(): pass", egress=("127.0.0.1:9",))
    finished = 0
    for step in range(24):
        task = asyncio.create_task(sandbox.run(job))
        await asyncio.sleep(0.003 * step)
        task.cancel()
        try:
            await task
            finished += 1
        except asyncio.CancelledError:
            continue
    assert finished < 24
    assert bubblewraps(job) == []


async def test_close_kills_what_runs(make_job: MakeJob) -> None:
    sandbox = BubblewrapSandbox(warm=0)
    marker = f"9{secrets.randbelow(10**8):08d}"
    task = asyncio.create_task(sandbox.run(make_job(GRANDCHILDREN, {"marker": marker, "hang": True})))
    async with asyncio.timeout(120):
        while len(processes_with(f"sleep\0{marker}")) < 2:
            await asyncio.sleep(0.02)
    await sandbox.close()
    assert processes_with(f"sleep\0{marker}") == []
    assert (await task).ending == "crashed"
