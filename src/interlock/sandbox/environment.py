"""Port of the sandbox back ends, and its data types."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from interlock.base.json import Json, JsonObject


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """Resource limits of one invocation.

    Attributes:
        timeout: wall seconds, from the moment at which the sandbox gets the job (default 30).
        cpu_seconds: processor seconds.
        memory_bytes: address space of each process, and memory of all together (see `watchdog`).
        disk_bytes: size of the private temporary directory, which is the only writable place; it also bounds the number
            of files (see `watchdog`).
        processes: concurrent processes and threads.
        output_bytes: maximum bytes of the answer.
    """

    timeout: float = 30.0
    cpu_seconds: int = 30
    memory_bytes: int = 512 * 1024 * 1024
    disk_bytes: int = 64 * 1024 * 1024
    processes: int = 64
    output_bytes: int = 10 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Job:
    """One invocation of one function of one tool bundle.

    Attributes:
        bundle: directory holding the tool's code and files; mounted read-only at `/tool`.
        tool: the tool's name, for messages and for the allowlist.
        function: name of the function in `main.py` (`run`, `run_batch`, `commit`, `compensate`, `probe`, `health`).
        arguments: JSON object, passed as keyword arguments.
        context: JSON object passed to the tool as `context` (idempotency key, run id, attempt, deadline).
        allowed_tools: the workflow's allowlist; a back end refuses a job whose tool is not in it.
        egress: `host:port` pairs the tool may reach; empty means no network at all.
        limits: see `SandboxLimits`.
        until: send deadline, in seconds of `base.clock.since_boot`; None for none. No byte of the job leaves this host
            later, even if the job starts late or this process is stopped and continues. A worker that takes over waits
            for this deadline before it determines the outcome.
    """

    bundle: Path
    tool: str
    function: str
    arguments: JsonObject
    context: JsonObject
    allowed_tools: frozenset[str]
    egress: tuple[str, ...] = ()
    limits: SandboxLimits = field(default_factory=SandboxLimits)
    until: float | None = None


Ending = Literal["ok", "raised", "crashed", "timeout", "out_of_memory", "too_many_files", "garbage", "too_large"]


@dataclass(frozen=True, slots=True)
class SandboxResult:
    """Result of an invocation.

    Attributes:
        ending: `ok` if the function returned JSON; `raised` if it raised (then `error` has the exception,
            `retryable` is True if the tool called the failure temporary, and `nothing_happened` is True if it
            declared that it changed nothing); `crashed` if the process died (signal, rlimit, exit);
            `timeout` if it was killed at its deadline; `garbage` if the answer was not JSON.
        output: the function's return value, for `ok`.
        error: one sentence; of the tool's data it contains only the exception text.
        retry_after: seconds, if the tool asked for a pause.
        traceback: for `raised`, the calls within the tool's own code; for people, never for the model.
        printed: the last 4 KiB of the tool's stdout and stderr; for people, never for the model.
        seconds: wall time of the function, without sandbox start.
        start_seconds: time until the sandbox was ready for this job; near 0 if it was warm.
    """

    ending: Ending
    output: Json = None
    error: str | None = None
    retryable: bool = False
    nothing_happened: bool = False
    retry_after: float | None = None
    traceback: str = ""
    printed: str = ""
    seconds: float = 0.0
    start_seconds: float = 0.0


class Sandbox(Protocol):
    """A sandbox back end.

    `run` gives every job a fresh sandbox, which no other job uses before or after it, and returns a `SandboxResult`
    for every failure of the tool. It raises `SandboxError` (kind TRANSIENT or PERMANENT) only if the
    isolation could not be set up, and `Denied` if the tool is not in `allowed_tools`; it never falls back to
    weaker isolation. Cancelling the task kills the sandbox and everything in it. `close` kills all remaining sandboxes.
    """

    name: str

    async def run(self, job: Job) -> SandboxResult: ...

    async def close(self) -> None: ...
