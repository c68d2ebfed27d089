"""The system call filter, from inside; and its numbers against the kernel's own headers."""

from __future__ import annotations

import errno
import platform
import re
import struct
from pathlib import Path

import pytest

from interlock.sandbox import seccomp
from interlock.sandbox.seccomp import program

from .conftest import Run

HEADERS = {
    "x86_64": ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h"),
    "aarch64": ("/usr/include/asm-generic/unistd.h",),
}


async def test_denied_calls(run: Run) -> None:
    source = """
    import ctypes, errno
    libc = ctypes.CDLL(None, use_errno=True)
    def run(calls):
        answers = {}
        for name, arguments in calls.items():
            ctypes.set_errno(0)
            result = libc.syscall(*(ctypes.c_long(a) for a in arguments))
            answers[name] = errno.errorcode.get(ctypes.get_errno(), "") if result < 0 else "granted"
        return answers
    """
    column = 0 if platform.machine() == "x86_64" else 1
    numbers = {name: pair[column] for name, pair in seccomp._DENIED.items()}
    clone, prctl, socket = seccomp._MACHINES[platform.machine()][1:]
    calls = {name: [number, 0, 0, 0, 0, 0] for name, number in numbers.items()}
    calls["clone, new user namespace"] = [clone, 0x10000000 | 17, 0, 0, 0, 0]
    calls["prctl, death signal"] = [prctl, 1, 0, 0, 0, 0]
    calls["clone3"] = [435, 0, 0, 0, 0, 0]
    calls |= {f"socket {family}": [socket, family, 3, 0, 0, 0] for family in (16, 17, 38, 40)}
    result = await run(source, {"calls": calls})
    assert result.ending == "ok", result
    expected = dict.fromkeys(calls, "EPERM") | {"clone3": "ENOSYS"}
    expected |= {f"socket {family}": "EAFNOSUPPORT" for family in (16, 17, 38, 40)}
    assert result.output == expected


async def test_what_tools_need_still_works(run: Run) -> None:
    source = """
    import asyncio, ctypes, multiprocessing, socket, sqlite3, subprocess, sys, threading
    async def serve():
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        return await reader.read()
    def run():
        thread = threading.Thread(target=print)
        thread.start()
        thread.join()
        database = sqlite3.connect("/tmp/x.db")
        database.execute("create table t (x)")
        with multiprocessing.get_context("fork").Pool(2) as pool:
            total = sum(pool.map(abs, [-1, -2]))
        socket.socket(socket.AF_INET6).close()
        text = subprocess.check_output([sys.executable, "-c", "print(5)"], text=True)
        return [total, text, asyncio.run(serve()).decode()]
    """
    result = await run(source)
    assert result.output == [3, "5\n", ""], result


@pytest.mark.skipif(platform.machine() != "x86_64", reason="i386 system calls exist on x86-64 only")
async def test_a_foreign_abi_is_killed(run: Run) -> None:
    """`int 0x80` reaches the 32-bit table, where the same numbers mean other calls: 20 is getpid."""
    source = """
    import ctypes, mmap, os
    def run(code):
        with open("/tmp/code", "wb") as file:
            file.write(bytes.fromhex(code))
        file = os.open("/tmp/code", os.O_RDWR)
        memory = mmap.mmap(file, len(code) // 2, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        return ctypes.CFUNCTYPE(ctypes.c_int)(address)()
    """
    harmless = await run(source, {"code": "b82a000000c3"})  # mov eax, 42; ret
    assert harmless.output == 42, harmless
    result = await run(source, {"code": "b814000000cd80c3"})  # mov eax, 20; int 0x80; ret
    assert (result.ending, result.error) == ("crashed", "the tool was killed by SIGSYS before it answered")


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_numbers_are_the_kernels(machine: str) -> None:
    header = next((Path(path) for path in HEADERS[machine] if Path(path).exists()), None)
    if header is None:
        pytest.skip("the kernel's headers are not installed")
    found = dict(re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$", header.read_text(), re.MULTILINE))
    column = 0 if machine == "x86_64" else 1
    ours = {name: pair[column] for name, pair in seccomp._DENIED.items()}
    ours |= dict(zip(("clone", "prctl", "socket"), seccomp._MACHINES[machine][1:], strict=True))
    if machine == "x86_64":
        ours |= seccomp._X86_ONLY
    compared = {name: (number, int(found[name])) for name, number in ours.items() if name in found}
    assert len(compared) > 50
    assert {name for name, (mine, theirs) in compared.items() if mine != theirs} == set()


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_programs_decide_as_meant(machine: str) -> None:
    """Run both programs in a small BPF machine of our own, since only one can run on this processor."""
    arch, clone, prctl, socket = seccomp._MACHINES[machine]
    column = 0 if machine == "x86_64" else 1
    eperm = 0x50000 | errno.EPERM
    code = program(machine)
    for pair in seccomp._DENIED.values():
        assert _judge(code, pair[column], arch) == eperm
    assert _judge(code, 0, arch ^ 1) == 0x80000000
    assert _judge(code, clone, arch, 0x11) == 0x7FFF0000
    assert _judge(code, clone, arch, 0x3D0F00) == 0x7FFF0000  # a thread
    for bit in (17, 25, 26, 27, 28, 29, 30):
        assert _judge(code, clone, arch, 0x11 | 1 << bit) == eperm
    assert _judge(code, prctl, arch, 1) == eperm
    assert _judge(code, prctl, arch, 15) == 0x7FFF0000
    assert [_judge(code, socket, arch, family) == 0x7FFF0000 for family in (1, 2, 10, 16, 17, 40)] == [True] * 3 + [
        False
    ] * 3


def _judge(code: bytes, number: int, arch: int, argument: int = 0) -> int:
    data = struct.pack("=iIQ6Q", number, arch, 0, argument, 0, 0, 0, 0, 0)
    operations = list(struct.iter_unpack("=HBBI", code))
    at, accumulator = 0, 0
    while True:
        operation, if_true, if_false, k = operations[at]
        at += 1
        if operation == 0x06:
            return int(k)
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, k)
        else:
            holds = {0x15: accumulator == k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}[operation]
            at += if_true if holds else if_false
