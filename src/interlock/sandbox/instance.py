"""One started sandbox: it waits for one job, answers it, and ends together with all its processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from interlock.base.clock import since_boot
from interlock.base.errors import FailureKind, SandboxError
from interlock.sandbox import runner, seccomp
from interlock.sandbox.answer import ENVELOPE_BYTES, Measured, describe_exit, ended, read_answer
from interlock.sandbox.egress import EgressProxy, OnEvent
from interlock.sandbox.environment import Job, SandboxResult
from interlock.sandbox.guardian import Guardian
from interlock.sandbox.layout import ROOT_MAP, SandboxPlan, command, options
from interlock.sandbox.listener import SharedBound
from interlock.sandbox.pipes import Tail, read_all, readable
from interlock.sandbox.watchdog import EVERY, Excess, Watchdog

_START_TIMEOUT = 20.0  # seconds; a start takes 0.03 s, so this allows for an overloaded host
_EXIT_GRACE = 1.0  # seconds between a closed channel and the exit status
_SIGNAL_BYTES = 100  # maximum of a "ready" or "started" line


class StaleInstance(Exception):
    """The sandbox died before the tool's code ran, so another sandbox can execute the job safely."""


@dataclass(frozen=True, slots=True)
class Shared:
    """Resources that the sandboxes of a worker share.

    Attributes:
        bwrap: path of the bubblewrap binary.
        on_egress: see `OnEvent`.
        connections: bound on the connections of all sandboxes.
        guardian: ends the starts under way if this process is killed.
        threads: executes the measurements of the watchdogs; not used for anything else, which could delay them.
    """

    bwrap: Path
    on_egress: OnEvent | None
    connections: SharedBound
    guardian: Guardian
    threads: Executor


class Instance:
    """A sandbox: created by `start`, used by one `perform`, always ended by `close`."""

    def __init__(self, shared: Shared, plan: SandboxPlan) -> None:
        self.plan = plan
        self._shared = shared
        self._loop = asyncio.get_running_loop()
        self._egress: EgressProxy | None = None
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfds: list[int] = []
        self._starting = False
        self._watchdog: Watchdog | None = None
        self._watching: asyncio.Task[None] | None = None
        self._excess: Excess | None = None
        self._over = asyncio.Event()
        self._output: Tail | None = None
        self._reaping: asyncio.Task[None] | None = None
        self._killed = False
        self._reader = asyncio.StreamReader()
        self._writer: asyncio.StreamWriter | None = None

    @classmethod
    async def start(cls, shared: Shared, plan: SandboxPlan) -> Instance:
        """A sandbox that waits for its job.

        Raises:
            SandboxError: (TRANSIENT) it did not start; `detail` has bubblewrap's message.
        """
        self = cls(shared, plan)
        try:
            async with asyncio.timeout(_START_TIMEOUT):
                await self._start_egress()
                await self._launch()
        except (OSError, StaleInstance, TimeoutError, ValueError) as error:
            await self.close()
            said = self.said.strip() or repr(error)
            message = f"the sandbox did not start: {said.splitlines()[-1]}; `interlock doctor` names the correction"
            raise SandboxError(message, kind=FailureKind.TRANSIENT, detail=said) from error
        except BaseException:
            await self.close()
            raise
        return self

    @property
    def alive(self) -> bool:
        return not self._killed and self._reaping is not None and not self._reaping.done() and not self._reader.at_eof()

    async def perform(self, job: Job, start_seconds: float) -> SandboxResult:
        """Dispatches the job and waits for its end. No process is left running.

        Raises:
            StaleInstance: this sandbox died while it waited; the tool's code has not run.
        """
        began = time.perf_counter()
        line: bytes | None = None
        timed_out = False
        self._watching = self._loop.create_task(self._watch())
        try:
            async with asyncio.timeout(_patience(job)):
                if self._egress is not None:
                    self._egress.until = job.until
                await self._dispatch(job)
                await self._expect("started")
                line = await self._read_line(job.limits.output_bytes + ENVELOPE_BYTES)
                if line is None:
                    await self._wait_for_exit()
        except TimeoutError:
            timed_out = True
        seconds = time.perf_counter() - began
        status = self._process.returncode if self._process else None
        await self.close()
        measured = Measured(self.said, seconds, start_seconds)
        if self._excess is not None and (line is None or not line.endswith(b"\n")):
            return ended(self._excess.ending, measured, self._excess.sentence)
        if timed_out:
            return ended("timeout", measured, f"the tool was killed at its deadline of {job.limits.timeout:g} s")
        if line is None:
            return ended("crashed", measured, describe_exit(status, job))
        if not line.endswith(b"\n"):
            if len(line) > job.limits.output_bytes:
                return ended("too_large", measured, f"the tool answered more than {job.limits.output_bytes} bytes")
            return ended("garbage", measured, "the tool's answer is incomplete")
        return read_answer(line, job, measured)

    def kill(self) -> None:
        """Kill at once, without waiting. Safe to call at any time."""
        self._killed = True
        # Process 1 of the namespace, if it is known: the kernel ends all others with it, and bubblewrap reaps it and
        # exits. Killing bubblewrap instead would orphan it, and a container may have no init process that reaps orphans.
        for pidfd in self._pidfds[-1:]:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    async def close(self) -> None:
        """Kill, and return when no process and no file of the sandbox is left on the host."""
        self.kill()
        if self._reaping is not None:
            await asyncio.shield(self._reaping)
        else:
            await self._clean()

    async def _start_egress(self) -> None:
        if not self.plan.egress:
            return
        self._directory = Path(tempfile.mkdtemp(prefix="interlock-"))  # 0700: no other user can reach the socket in it
        shared = self._shared
        self._egress = EgressProxy(self.plan.tool, self.plan.egress, shared.on_egress, shared.connections)
        await self._egress.start(self._directory / "s")

    async def _launch(self) -> None:
        with contextlib.ExitStack() as ours:
            near, info_read, block_write = self._spawn(ours)
            # Completed even if cancelled: if bubblewrap is killed before process 1 is known, process 1 would remain.
            admitting = self._loop.create_task(self._admit(info_read, block_write))
            try:
                await asyncio.shield(admitting)
            except asyncio.CancelledError:
                await asyncio.wait([admitting], timeout=_START_TIMEOUT)
                raise
            await self._receive_ready(near)
            channel = near.dup()
        self._reader, self._writer = await asyncio.open_unix_connection(sock=channel)

    async def _receive_ready(self, near: socket.socket) -> None:
        """Wait for the runner's first line, which brings the descriptors of the watchdog."""
        near.setblocking(False)
        await readable(self._loop, near.fileno())
        line, descriptors, _, _ = socket.recv_fds(near, _SIGNAL_BYTES, 2)
        if line != b'{"ready":true}\n' or len(descriptors) != 2:
            for descriptor in descriptors:
                os.close(descriptor)
            raise StaleInstance
        self._watchdog = Watchdog(*descriptors)
        self._started()

    def _started(self) -> None:
        """Report that the start is over, successful or not."""
        if self._process is not None and self._starting:
            self._starting = False
            self._shared.guardian.complete(self._process.pid)

    def _spawn(self, ours: contextlib.ExitStack) -> tuple[socket.socket, int, int]:
        """Start bubblewrap. `ours` gets the descriptors that this process holds until the sandbox has started.

        Returns:
            Our end of the channel, the end from which process information is read, and the end that lets bubblewrap continue.
        """
        with contextlib.ExitStack() as theirs:

            def pipe(read_side: contextlib.ExitStack, write_side: contextlib.ExitStack) -> tuple[int, int]:
                read, write = os.pipe()
                read_side.callback(os.close, read)
                write_side.callback(os.close, write)
                return read, write

            near, far = socket.socketpair()
            ours.callback(near.close)
            theirs.callback(far.close)
            info_read, info_write = pipe(ours, theirs)
            block_read, block_write = pipe(theirs, ours)
            args_read, args_write = pipe(theirs, theirs)
            filter_read, filter_write = os.pipe()
            theirs.callback(os.close, filter_read)
            with open(filter_write, "wb") as file:  # noqa: PTH123 - a descriptor, not a path
                file.write(seccomp.program(platform.machine()))  # far below a pipe's capacity, so it cannot block
            out_read, out_write = os.pipe()
            theirs.callback(os.close, out_write)
            self._output = Tail(self._loop, out_read)
            # Not in a thread: "die with parent" means the parent *thread*. In a new session, because Ctrl-C at a
            # terminal goes to the whole group, and a worker that drains must keep its jobs.
            self._process = subprocess.Popen(
                command(self.plan, args_fd=args_read, channel=far.fileno()),
                executable=self._shared.bwrap,
                stdin=subprocess.DEVNULL,
                stdout=out_write,
                stderr=out_write,
                pass_fds=(args_read, far.fileno(), info_write, block_read, filter_read),
                env={},  # the tool can read bubblewrap's environment in /proc/1/environ
                start_new_session=True,
            )
            self._pidfds.append(os.pidfd_open(self._process.pid))
            self._reaping = self._loop.create_task(self._reap())
            self._starting = True
            self._shared.guardian.begun(self._process.pid, os.fstat(far.fileno()).st_ino)
            # Bubblewrap waits for its options until here, and ends without them.
            with contextlib.suppress(BrokenPipeError):  # it has ended; `_admit` reports that
                words = options(
                    self.plan,
                    seccomp_fd=filter_read,
                    info_fd=info_write,
                    block_fd=block_read,
                    egress_socket=self._directory / "s" if self._directory else None,
                )
                os.write(args_write, "".join(f"{word}\0" for word in words).encode())
        return near, info_read, block_write

    async def _admit(self, info_read: int, block_write: int) -> None:
        """Get process 1 of the sandbox and, as root, write its user map before bubblewrap continues."""
        assert self._process is not None
        info = await read_all(self._loop, info_read)
        if not info:
            raise StaleInstance
        child = int(json.loads(info)["child-pid"])
        pidfd = os.pidfd_open(child)
        # The number may have been reused for another process. Bubblewrap has not been reaped, so its own number is valid,
        # and it has one child.
        if _parent_of(child) != self._process.pid:
            os.close(pidfd)
            raise StaleInstance
        self._pidfds.append(pidfd)
        if os.geteuid() == 0:
            _map_users(child)
            os.write(block_write, b"1")

    async def _watch(self) -> None:
        """Kill the sandbox as soon as it exceeds a limit that the kernel does not enforce."""
        assert self._watchdog is not None
        while self._excess is None and not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY):
                    await self._over.wait()
                    return
            excess = self._watchdog.excess
            self._excess = await self._loop.run_in_executor(self._shared.threads, excess, self.plan.limits)
        self.kill()

    async def _dispatch(self, job: Job) -> None:
        body: runner.SentJob = {
            "tool": job.tool,
            "function": job.function,
            "arguments": dict(job.arguments),
            "context": dict(job.context),
            "allowed_tools": sorted(job.allowed_tools),
            "output_bytes": job.limits.output_bytes,
        }
        try:
            line = json.dumps(body, allow_nan=False).encode() + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            message = f'the arguments or context for tool "{job.tool}" are not JSON: {error}'
            raise SandboxError(message, kind=FailureKind.PERMANENT) from error
        assert self._writer is not None
        try:
            self._writer.write(line)
            await self._writer.drain()
        except OSError as error:
            raise StaleInstance from error

    async def _expect(self, word: str) -> None:
        if await self._read_line(_SIGNAL_BYTES) != b'{"%s":true}\n' % word.encode():
            raise StaleInstance

    async def _read_line(self, most: int) -> bytes | None:
        """One line; without its newline if it is longer than `most` or incomplete; None if the channel is closed."""
        parts: list[bytes] = []
        size = 0
        while size <= most:
            try:
                part = await self._reader.readuntil(b"\n")
            except asyncio.LimitOverrunError as error:
                part = await self._reader.readexactly(max(error.consumed, 1))
            except asyncio.IncompleteReadError as error:
                return b"".join([*parts, error.partial]) or None
            except OSError:
                return None
            parts.append(part)
            size += len(part)
            if part.endswith(b"\n"):
                break
        line = b"".join(parts)
        return line if size <= most else line.rstrip(b"\n")

    async def _wait_for_exit(self) -> None:
        assert self._reaping is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_EXIT_GRACE):
                await asyncio.shield(self._reaping)

    async def _reap(self) -> None:
        assert self._process is not None
        await readable(self._loop, self._pidfds[0])
        # Process 1 becomes "exited" only after the kernel has killed and reaped everything else in its namespace.
        for pidfd in self._pidfds[1:]:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            await readable(self._loop, pidfd)
            with contextlib.suppress(ChildProcessError):  # if this process is the container's init, it inherits orphans
                os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)  # noqa: ASYNC222 - WNOHANG
        self._started()  # before its number can be given to another process
        self._process.wait()
        await self._clean()

    async def _clean(self) -> None:
        self._killed = True
        self._over.set()
        if self._watching is not None:
            await asyncio.wait([self._watching])  # a measurement uses the descriptors that are closed here
        if self._watchdog is not None:
            self._watchdog.close()
            self._watchdog = None
        pidfds, self._pidfds = self._pidfds, []
        for pidfd in pidfds:
            os.close(pidfd)
        if self._writer is not None:
            self._writer.close()
        if self._output is not None:
            self._output.close()
        if self._egress is not None:
            await self._egress.close()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def said(self) -> str:
        return self._output.text() if self._output else ""


def _parent_of(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])  # the process name before it may contain spaces and brackets


def _map_users(pid: int) -> None:
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{pid}/{name}").write_text(ROOT_MAP)


def _patience(job: Job) -> float:
    """Maximum seconds of the job."""
    if job.until is None:
        return job.limits.timeout
    return max(0.0, min(job.limits.timeout, job.until - since_boot()))
