"""Pool of sandboxes started in advance. Each executes one job and is discarded; a sandbox is never shared.

A bundle is mounted when its sandbox starts, so a sandbox cannot wait for an arbitrary tool. Therefore the pool
starts spares after a job, for the same plan (bundle, egress, limits), and keeps those of the most recently used plans. A
spare has imported slow parts of the standard library and none of the tool's code.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from interlock.base.errors import SandboxError
from interlock.sandbox.instance import Instance
from interlock.sandbox.layout import SandboxPlan

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Spare:
    instance: Instance
    expiry: asyncio.TimerHandle


class WarmPool:
    """Pool of spare sandboxes.

    Args:
        start: starts one sandbox.
        per_plan: spares for one plan; 0 turns the pool off.
        total: spares of all plans together; those of the least recently used plan are removed first.
        idle_seconds: how long a spare may wait for its job.
    """

    def __init__(
        self,
        start: Callable[[SandboxPlan], Awaitable[Instance]],
        *,
        per_plan: int = 2,
        total: int = 8,
        idle_seconds: float = 60.0,
    ) -> None:
        self._start = start
        self._per_plan = per_plan
        self._total = total
        self._idle_seconds = idle_seconds
        self._spares: OrderedDict[SandboxPlan, deque[_Spare]] = OrderedDict()
        self._refilling: dict[SandboxPlan, asyncio.Task[None]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        # One start at a time, so that starting spares does not slow down the jobs.
        self._turn = asyncio.Semaphore(1)
        self._closed = False

    @property
    def waiting(self) -> int:
        """Number of ready spares."""
        return sum(len(spares) for spares in self._spares.values())

    def take(self, plan: SandboxPlan) -> Instance | None:
        """A ready sandbox for this plan, now owned by the caller; None if there is none."""
        spares = self._spares.get(plan)
        while spares:
            spare = spares.popleft()
            spare.expiry.cancel()
            if spare.instance.alive:
                return spare.instance
            self._discard(spare.instance)
        return None

    def refill(self, plan: SandboxPlan) -> None:
        """Start the missing spares of this plan, in the background."""
        if self._closed or self._per_plan == 0 or self._total == 0 or plan in self._refilling:
            return
        task = asyncio.get_running_loop().create_task(self._fill(plan))
        self._refilling[plan] = task
        task.add_done_callback(lambda _: self._refilling.pop(plan, None))

    async def settled(self) -> None:
        """Return when no start is under way."""
        while self._refilling:
            await asyncio.wait(list(self._refilling.values()))

    async def close(self) -> None:
        """Kill all spares and start no more."""
        self._closed = True
        for task in self._refilling.values():
            task.cancel()
        await asyncio.gather(*self._refilling.values(), return_exceptions=True)
        for spares in self._spares.values():
            for spare in spares:
                spare.expiry.cancel()
                self._discard(spare.instance)
        self._spares.clear()
        await asyncio.gather(*self._closing, return_exceptions=True)

    async def _fill(self, plan: SandboxPlan) -> None:
        self._spares.setdefault(plan, deque())
        self._spares.move_to_end(plan)
        # Counted once: when plans compete for the total, a loop "until full" would never end.
        for _ in range(min(self._per_plan, self._total) - len(self._spares[plan])):
            async with self._turn:
                try:
                    instance = await self._start(plan)
                except SandboxError as error:
                    # No call waits here. The next job starts its own sandbox and reports the failure.
                    _log.warning("a spare sandbox for tool %s did not start: %s", plan.tool, error.detail)
                    return
            loop = asyncio.get_running_loop()
            spare = _Spare(instance, loop.call_later(self._idle_seconds, self._expire, plan, instance))
            self._spares.setdefault(plan, deque()).append(spare)
            self._remove_surplus()

    def _remove_surplus(self) -> None:
        while self.waiting > self._total:
            oldest = next(plan for plan, spares in self._spares.items() if spares)
            spare = self._spares[oldest].popleft()
            spare.expiry.cancel()
            self._discard(spare.instance)
        for plan in [plan for plan, spares in self._spares.items() if not spares]:
            del self._spares[plan]

    def _expire(self, plan: SandboxPlan, instance: Instance) -> None:
        spares = self._spares.get(plan, deque())
        for spare in spares:
            if spare.instance is instance:
                spares.remove(spare)
                break
        if not spares:
            self._spares.pop(plan, None)
        self._discard(instance)

    def _discard(self, instance: Instance) -> None:
        instance.kill()
        task = asyncio.get_running_loop().create_task(instance.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
