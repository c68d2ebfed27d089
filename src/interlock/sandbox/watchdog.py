"""Watchdog of a running tool: the memory of its processes together, and the number of its files.

The kernel's limits are per process, a `tmpfs` limits bytes and not files, and a limit for the sum needs a control group,
which an ordinary user cannot make. So the sums are measured several times a second, and a tool that exceeds one is killed.
Both are read through descriptors that the runner opened inside the sandbox and sent before it loaded the tool: the process
list of its namespace and its `/tmp`. Therefore no privilege on the host is needed.

Between two measurements a tool can exceed a limit by as much as it can use in that time. Memory that the kernel uses for
sockets and pipes belongs to no process and is not counted.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from interlock.sandbox.environment import Ending, SandboxLimits

EVERY = 0.2  # seconds between two measurements
_ALLOWANCE = 32 * 1024 * 1024  # bytes for bubblewrap's process 1 and the egress relay
_BLOCK = 4096  # bytes that a tmpfs uses for the smallest file with content
_FREE_FILES = 1000  # files, directories and links besides one for each block
_PAGE = os.sysconf("SC_PAGE_SIZE")
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Excess:
    """A limit that a tool exceeded: the ending of its job and the sentence for it."""

    ending: Ending
    sentence: str


class Watchdog:
    """Measures one sandbox.

    Args:
        processes: descriptor of the sandbox's `/proc`; owned by the watchdog.
        files: descriptor of a file in its `/tmp`, or of the directory; owned by the watchdog.
    """

    def __init__(self, processes: int, files: int) -> None:
        self._processes = processes
        self._files = files

    def excess(self, limits: SandboxLimits) -> Excess | None:
        """The limit that the tool exceeds now. Takes milliseconds for large processes, so it is called in a thread."""
        return _files(self._files, limits) or _memory(self._processes, limits)

    def close(self) -> None:
        os.close(self._processes)
        os.close(self._files)


def _files(directory: int, limits: SandboxLimits) -> Excess | None:
    status = os.fstatvfs(directory)
    used = status.f_files - status.f_ffree
    most = limits.disk_bytes // _BLOCK + _FREE_FILES
    if used <= most:
        return None
    mib = f"limits.disk_mib of {limits.disk_bytes / _MIB:g}"
    return Excess("too_many_files", f"the tool had {used} files in /tmp and was killed; {mib} allows {most} files")


def _memory(processes: int, limits: SandboxLimits) -> Excess | None:
    most = limits.memory_bytes + _ALLOWANCE
    ids = [name for name in os.listdir(processes) if name.isdigit()]
    # Resident memory counts pages that processes share once for each of them, and is cheap to read.
    if sum(_resident(processes, process) for process in ids) <= most:
        return None
    used = sum(_proportional(processes, process) for process in ids)
    if used <= most:
        return None
    mib = f"limits.memory_mib of {limits.memory_bytes / _MIB:g}"
    return Excess(
        "out_of_memory",
        f"the tool's {len(ids)} processes used {used // _MIB} MiB of memory together and were killed; {mib} is for all of them",
    )


def _resident(processes: int, process: str) -> int:
    """Bytes of a process in memory; 0 if it has ended."""
    fields = _read(processes, f"{process}/statm").split()
    return int(fields[1]) * _PAGE if fields else 0


def _proportional(processes: int, process: str) -> int:
    """Bytes of a process, in which each shared page is divided among the processes that share it."""
    try:
        lines = _read(processes, f"{process}/smaps_rollup").splitlines()
    except PermissionError:
        return _resident(processes, process)
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith((b"Pss:", b"SwapPss:")))


def _read(directory: int, path: str) -> bytes:
    """The file; empty if its process has ended."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    except (FileNotFoundError, ProcessLookupError):
        return b""
    try:
        return os.read(descriptor, 1 << 16)
    except ProcessLookupError:
        return b""
    finally:
        os.close(descriptor)
