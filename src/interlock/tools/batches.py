"""Batched tool calls: concurrent calls of one run are passed to their tool together, in one sandbox.

The first call waits `Batch.wait` seconds for others, or until there are `Batch.max` calls. The results are separated here:
for the layers above, every call has its own attempt, key, ledger row and `SandboxResult`.

Only calls of the same run, code, limits and destinations share a batch, so a sandbox still serves only one run.

No byte of a batch is sent after the earliest send deadline (`Job.until`) of its calls. A contract's `call_seconds` includes
the wait, so even the call that waited longest has its whole timeout. A later deadline of another call misleads no worker:
a worker that takes over a call waits by the same `call_seconds` (`execution/effects.py`), if at all. A mutating tool is
batched only if it honours its keys, and then two concurrent executions of one call are harmless.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from interlock.sandbox.answer import Measured, ended
from interlock.sandbox.environment import Job, Sandbox, SandboxLimits, SandboxResult
from interlock.workflows.contracts import Batch

_REMEMBERED = 10_000  # remembered calls of failed batches; a forgotten one is batched once more
_MAX_PAUSE = 24 * 3600.0  # seconds, as for a single call
_SHAPE = 'must be {"output": …} or {"error": "…"} with optional retryable, retry_after, nothing_happened'


@dataclass(frozen=True, slots=True)
class _BatchKey:
    """Key of calls that may share a sandbox."""

    run_id: str
    bundle: Path
    tool: str
    egress: tuple[str, ...]
    limits: SandboxLimits
    allowed_tools: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Call:
    job: Job
    answer: asyncio.Future[SandboxResult]


@dataclass(slots=True)
class _Gathering:
    """A batch while it is filled and executed."""

    calls: list[_Call] = field(default_factory=list)
    full: asyncio.Event = field(default_factory=asyncio.Event)
    serving: asyncio.Task[None] | None = None


class ToolBatches:
    """Collects calls into batches and executes them.

    If a batch fails as a whole (a crash, a deadline, an answer of the wrong shape), each of its calls gets this result.
    The retry of such a call is not batched, so a call that breaks its batch affects the others only once.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._gathering: dict[_BatchKey, _Gathering] = {}
        self._alone: OrderedDict[tuple[_BatchKey, object], None] = OrderedDict()

    async def run(self, job: Job, terms: Batch) -> SandboxResult:
        """The result of this one call of `run`, independent of the calls that shared its sandbox.

        Cancellation removes the call from a batch that is still being filled. A batch that is being executed continues for
        the other callers; when the last caller is cancelled, the sandbox is killed.

        Raises:
            SandboxError: no sandbox could be started; no call of the batch was made.
        """
        batch_key = _batch_key(job)
        if batch_key is None or "context" in job.arguments or self._goes_alone(batch_key, job):
            return await self._sandbox.run(job)
        gathering = self._gathering.get(batch_key)
        if gathering is None:
            gathering = self._gathering[batch_key] = _Gathering()
            gathering.serving = asyncio.create_task(self._serve(batch_key, gathering, terms.wait))
        call = _Call(job, asyncio.get_running_loop().create_future())
        gathering.calls.append(call)
        if len(gathering.calls) == terms.max:
            self._complete(batch_key, gathering)
        try:
            return await call.answer
        except asyncio.CancelledError:
            await self._leave(batch_key, gathering)
            raise

    async def _leave(self, batch_key: _BatchKey, gathering: _Gathering) -> None:
        if not all(call.answer.done() for call in gathering.calls):
            return
        self._complete(batch_key, gathering)
        assert gathering.serving is not None
        gathering.serving.cancel()
        await asyncio.wait([gathering.serving])  # until all its processes on this host have ended

    def _complete(self, batch_key: _BatchKey, gathering: _Gathering) -> None:
        """Closes the batch to further calls."""
        if self._gathering.get(batch_key) is gathering:
            del self._gathering[batch_key]
        gathering.full.set()

    async def _serve(self, batch_key: _BatchKey, gathering: _Gathering, wait: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await gathering.full.wait()
        self._complete(batch_key, gathering)
        calls = [call for call in gathering.calls if not call.answer.done()]
        try:
            results = await self._dispatch(batch_key, [call.job for call in calls])
        except asyncio.CancelledError:
            for call in calls:
                call.answer.cancel()
            raise
        except Exception as error:  # noqa: BLE001  every caller handles it
            for call in calls:
                if not call.answer.done():
                    call.answer.set_exception(error)
            return
        for call, result in zip(calls, results, strict=True):
            if not call.answer.done():
                call.answer.set_result(result)

    async def _dispatch(self, batch_key: _BatchKey, jobs: list[Job]) -> list[SandboxResult]:
        if len(jobs) == 1:
            return [await self._sandbox.run(jobs[0])]
        calls = [{"arguments": dict(job.arguments), "context": dict(job.context)} for job in jobs]
        whole = await self._sandbox.run(
            replace(
                jobs[0],
                function="run_batch",
                arguments={"calls": calls},
                context={"run_id": batch_key.run_id},
                until=min((job.until for job in jobs if job.until is not None), default=None),
            )
        )
        results = read_items(whole, len(jobs)) if whole.ending == "ok" else whole
        if isinstance(results, list):
            return results
        if not results.retryable:
            self._remember(batch_key, jobs)
        return [results] * len(jobs)

    def _remember(self, batch_key: _BatchKey, jobs: list[Job]) -> None:
        for job in jobs:
            self._alone[batch_key, job.context.get("step")] = None
        while len(self._alone) > _REMEMBERED:
            self._alone.popitem(last=False)

    def _goes_alone(self, batch_key: _BatchKey, job: Job) -> bool:
        key = (batch_key, job.context.get("step"))
        if key not in self._alone:
            return False
        del self._alone[key]
        return True


def _batch_key(job: Job) -> _BatchKey | None:
    """None for a call without a run, which never shares a sandbox."""
    run_id = job.context.get("run_id")
    if not isinstance(run_id, str) or not run_id:
        return None
    return _BatchKey(run_id, job.bundle, job.tool, job.egress, job.limits, job.allowed_tools)


def read_items(whole: SandboxResult, count: int) -> list[SandboxResult] | SandboxResult:
    """The result of each of `count` calls, from the untrusted return value of `run_batch`.

    Returns:
        One result for each call; if the answer has another shape, one failure for all calls.
    """
    items, measured = whole.output, Measured(whole.printed, whole.seconds, whole.start_seconds)
    if not isinstance(items, list):
        return ended("garbage", measured, "run_batch must return a list, one item for each call")
    if len(items) != count:
        return ended(
            "garbage", measured, f"run_batch returned {len(items)} items for {count} calls; return one for each"
        )
    results: list[SandboxResult] = []
    for place, item in enumerate(items):
        result = _read_item(item, measured)
        if result is None:
            return ended("garbage", measured, f"item {place} of what run_batch returned {_SHAPE}")
        results.append(result)
    return results


def _read_item(item: object, measured: Measured) -> SandboxResult | None:
    """The result of an item; None if the item has the wrong shape."""
    if not isinstance(item, Mapping):
        return None
    if set(item) == {"output"}:
        return ended("ok", measured, output=item["output"])
    error, pause = item.get("error"), item.get("retry_after")
    flags = (item.get("retryable", False), item.get("nothing_happened", False))
    if (
        not isinstance(error, str)
        or not set(item) <= {"error", "retryable", "retry_after", "nothing_happened"}
        or not all(isinstance(flag, bool) for flag in flags)
        or not (pause is None or _is_pause(pause))
    ):
        return None
    return ended(
        "raised",
        measured,
        # The part before a colon is taken for an exception's class, which may be shown; a tool's own message may not.
        f"ItemError: {error}",
        retryable=flags[0],
        nothing_happened=flags[1],
        retry_after=pause,
    )


def _is_pause(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MAX_PAUSE
