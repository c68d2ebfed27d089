from __future__ import annotations

import secrets
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from interlock.sandbox import egress, instance
from interlock.sandbox.bubblewrap import BubblewrapSandbox
from interlock.sandbox.environment import Job, SandboxLimits, SandboxResult

MakeJob = Callable[..., Job]
Run = Callable[..., Awaitable[SandboxResult]]


@pytest.fixture(autouse=True)
def _slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes milliseconds may take long on a busy machine, and is no fault of what is tested."""
    monkeypatch.setattr(instance, "_EXIT_GRACE", 60.0)
    for name in ("_HEAD_TIMEOUT", "_CONNECT_TIMEOUT", "_LINGER"):
        monkeypatch.setattr(egress, name, 60.0)


@pytest.fixture
def make_job(tmp_path: Path) -> MakeJob:
    """A job for a bundle whose main.py is the given source."""
    made = 0

    def make(
        source: str,
        arguments: dict[str, Any] | None = None,
        *,
        function: str = "run",
        tool: str = "probe",
        allowed: frozenset[str] | None = None,
        egress: tuple[str, ...] = (),
        **limits: Any,
    ) -> Job:
        nonlocal made
        made += 1
        bundle = tmp_path / f"bundle{made}"
        bundle.mkdir()
        limits.setdefault("cpu_seconds", 10**6 + secrets.randbelow(10**8))  # by which `bubblewraps` finds it
        (bundle / "main.py").write_text(textwrap.dedent(source))
        return Job(
            bundle=bundle,
            tool=tool,
            function=function,
            arguments=arguments or {},
            context={"idempotency_key": "k-1"},
            allowed_tools=frozenset({tool}) if allowed is None else allowed,
            egress=egress,
            limits=SandboxLimits(**limits),
        )

    return make


@pytest.fixture
async def sandbox() -> AsyncIterator[BubblewrapSandbox]:
    """Without a pool: each job starts its own sandbox, and spares do not take time from other tests."""
    sandbox = BubblewrapSandbox(warm=0)
    yield sandbox
    await sandbox.close()


@pytest.fixture
def run(sandbox: BubblewrapSandbox, make_job: MakeJob) -> Run:
    async def run(source: str, arguments: dict[str, Any] | None = None, **options: Any) -> SandboxResult:
        return await sandbox.run(make_job(source, arguments, **options))

    return run


def processes_with(marker: str) -> list[int]:
    """Processes of the host whose command line contains `marker`, zombies aside."""
    found = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                if marker.encode() in (directory / "cmdline").read_bytes():
                    found.append(int(directory.name))
            except OSError:
                continue
    return found


def bubblewraps(job: Job) -> list[int]:
    """The bubblewraps of a job's sandboxes: the one that this process started and process 1 inside."""
    started = processes_with("bwrap\0--args\0")
    return [pid for pid in processes_with(f'"cpu_seconds": {job.limits.cpu_seconds},') if pid in started]
