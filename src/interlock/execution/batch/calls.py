"""The life of a model call that goes through a provider's batch API.

    waiting → submitted → done

Nothing runs in the background: a call is carried on by the attempts of the steps that wait for one, each of which looks whether
something is due and defers itself again. The first to come back after gathering submits everything that waits for the same
model, in one batch; later one at a time asks the provider, and stores what came for all of them. Other organisations' calls are
never in the same batch.

A crash between handing in and writing that down leaves a batch `submitting`. It is looked for at the provider before it is handed
in again; a batch that was handed in twice all the same costs money, never a wrong effect: only the one on record is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NoReturn

from interlock.base.errors import (
    Deferred,
    Erased,
    FailureKind,
    IntegrityError,
    NotFound,
    ProviderError,
)
from interlock.base.ids import new_id
from interlock.base.refs import Ref
from interlock.base.settings import BatchSettings
from interlock.execution.batch.values import BatchCall, delivered, request_of, seal_answer
from interlock.execution.call import ModelCall
from interlock.gateway.batches import SUBMIT_SECONDS, BatchAnswer, ModelBatches, batches_of
from interlock.gateway.provider import ModelResponse
from interlock.guard.gate import composed
from interlock.machine.retry import RETRYABLE, jitter
from interlock.store.commit import Commit, Committer
from interlock.store.database import Database, Row
from interlock.store.rows import BatchedAnswer
from interlock.telemetry import names
from interlock.telemetry.logs import log

_MAX_CALLS = 1000
# Tokens that the calls of a batch may need: bounds what is held in memory of requests and answers. One call may need more.
_MAX_TOKENS = 2_000_000
_LOOK_SECONDS = 240.0  # for which one worker may poll a batch before another one may
_RECOVER_SECONDS = SUBMIT_SECONDS + 60.0  # until a batch without a recorded submission is looked up
# A batch lives for 24 hours at both providers; what has not come after twice that time never will.
_LOST_SECONDS = 48 * 3600.0
# How much longer one that is out there, and may be over, is asked about although the provider cannot be asked.
_GRACE_SECONDS = 24 * 3600.0
_MAX_PAUSE_SECONDS = 3600.0  # however long a provider says that it is busy; unless `batch.max_check_seconds` is more
_STORED_AT_ONCE = 50


class BatchedCalls:
    """Carries batched calls on."""

    def __init__(self, database: Database, committer: Committer, settings: BatchSettings) -> None:
        self._database = database
        self._committer = committer
        self._settings = settings

    async def send(self, call: ModelCall) -> ModelResponse:
        """The call's answer, once it is there; its usage has its cost.

        Raises:
            Deferred: it is not; `retry_after` in seconds.
            ProviderError: the call failed; or the provider has no batch API.
            Erased: a subject of the call was erased meanwhile.
            LeaseLost: the run was taken over.
        """
        batches = batches_of(call.provider)
        if batches is None:
            raise ProviderError(
                f'provider "{call.provider.name}" has no batch API; remove batch from step "{call.path}"',
                kind=FailureKind.PERMANENT,
            )
        row = await self._find(call)
        if row is None:
            seconds = self._settings.gather_seconds
            raise Deferred("the call waits for others to go with it", retry_after=seconds, pending=True)
        if row["status"] == "waiting":
            await self._submit_batch(call, batches)
        elif row["status"] == "submitted":
            await self._look_after(call, batches, row["batch_id"])
        if row["status"] != "done":
            row = await self._row(call.caller.run_id, call.name, call.caller.org_id)
        if row is None or row["status"] != "done":
            raise Deferred("the batch is not done", retry_after=self._wait(call, row), pending=True)
        if row["result"] is None:
            raise Erased("the call's subject was erased; it cannot be read again")
        kept = await call.caller.artifacts.open(call.caller.org_id, Ref.from_json(row["result"]))
        return delivered(kept, call.provider.name, call.request.model)

    async def status(self, run_id: str, step: str, attempt: int, org_id: str) -> str | None:
        """The status of the call that this attempt at a step waits for; None if there is none yet."""
        row = await self._row(run_id, step, org_id)
        return str(row["status"]) if row is not None and _is_waited_for(row, attempt) else None

    # -- one call ----------------------------------------------------------------------------------------------

    async def _row(self, run_id: str, step: str, org_id: str) -> Row | None:
        return await self._database.row("get_batched_call", run_id, step, org=org_id)

    async def _find(self, call: ModelCall) -> Row | None:
        """The call that this attempt waits for; None if it was only now made."""
        caller = call.caller
        run_id, org = caller.run_id, caller.org_id
        row = await self._row(run_id, call.name, org)
        sealed = await caller.artifacts.seal(org, composed(call.plain), call.labels)
        if row is not None and _is_waited_for(row, call.attempt) and row["request"]["digest"] == sealed.ref.digest:
            if row["attempt"] != call.attempt:
                adopted = (row["call_id"], call.attempt, call.until)
                await self._database.execute("adopt_batched_call", *adopted, org=org)
            return row
        commit = caller.commit()  # refused if the lease is lost, so no call is made then
        commit.artifacts.append(sealed.row)
        await self._committer.submit(commit)
        identity = (new_id("call"), org, run_id, call.name, call.attempt)
        values = (*identity, call.pin, sealed.ref.to_json(), call.worst.tokens, call.until)
        await self._database.execute("put_batched_call", *values, org=org)
        return None

    def _wait(self, call: ModelCall, row: Row | None) -> float:
        """Seconds until the call is worth another look: shortly after the batch is, and not when all the others look."""
        soon = self._settings.check_seconds
        known = row is not None and row["next_in"] is not None and not row["taken"]
        wait = max(float(row["next_in"]), 0.0) if known and row is not None else soon
        spread = 0.02 + 0.1 * jitter(0, f"{call.caller.run_id}/{call.name}", call.deferrals)
        return wait + spread * max(wait, soon)

    # -- submitting --------------------------------------------------------------------------------------------

    async def _submit_batch(self, call: ModelCall, batches: ModelBatches) -> None:
        """Submits all waiting calls of this model, unless another worker is doing so."""
        org, batch_id = call.caller.org_id, new_id("batch")
        values = (org, call.pin, batch_id, _MAX_CALLS, _MAX_TOKENS, _RECOVER_SECONDS)
        if await self._database.rows("claim_batched_calls", *values, org=org):
            await self._submit(call, batches, batch_id, age=0.0)

    async def _submit(self, call: ModelCall, batches: ModelBatches, batch_id: str, *, age: float) -> None:
        org, calls = call.caller.org_id, await self._calls(call, batch_id)
        if not calls:
            await self._database.execute("batch_ended", batch_id, org=org)
            return
        if not await self._database.execute("batch_tried", batch_id, _RECOVER_SECONDS, len(calls), org=org):
            return  # this process was stopped for so long that another worker has submitted it
        try:
            named = await batches.submit(batch_id, {one: other.request for one, other in calls.items()})
        except ProviderError as error:
            if error.kind in RETRYABLE and age <= _LOST_SECONDS:
                pause = max(self._pause(age), _RECOVER_SECONDS)
                if error.kind is not FailureKind.TRANSIENT:
                    # Refused, so there is nothing to look for before the next try.
                    await self._database.execute("batch_tried", batch_id, _RECOVER_SECONDS, 0, org=org)
                    pause = self._pause(age)
                await self._defer(call, batch_id, pause, error)
            given = _lost(error) if error.kind in RETRYABLE else error
            await self._store(call, batch_id, calls, dict.fromkeys(calls, given))
            return
        await self._database.execute("batch_submitted", batch_id, named, self._settings.check_seconds, org=org)
        log(names.LOG_BATCH_SUBMITTED, org_id=org, batch=batch_id, provider_id=named, calls=len(calls))

    async def _calls(self, call: ModelCall, batch_id: str) -> dict[str, BatchCall]:
        """The calls of a batch whose steps still wait; the others are finished."""
        org, found, lost = call.caller.org_id, {}, []
        for row in await self._database.rows("batch_calls", batch_id, org=org):
            ref = Ref.from_json(row["request"])
            try:
                request = request_of(await call.caller.artifacts.open(org, ref)) if row["wanted"] else None
            except Erased:
                request = None
            except (IntegrityError, NotFound) as error:
                log(names.LOG_INTERNAL, error.message, level="error", call=row["call_id"])
                request = None
            if request is None:
                lost.append({"call_id": row["call_id"], "result": None})
            else:
                found[row["call_id"]] = BatchCall(request, ref.labels)
        if lost:
            await self._database.execute("answer_batched_calls", batch_id, lost, org=org)
        return found

    # -- looking after -----------------------------------------------------------------------------------------

    async def _look_after(self, call: ModelCall, batches: ModelBatches, batch_id: str) -> None:
        """Polls the provider if it is time and no other worker does, and stores the answers."""
        row = await self._database.row("take_batch", batch_id, _LOOK_SECONDS, org=call.caller.org_id)
        if row is None:
            return
        try:
            if row["status"] == "submitting":
                await self._recover(call, batches, batch_id, row)
            else:
                await self._collect(call, batches, batch_id, row)
        except asyncio.CancelledError:
            if row["status"] == "submitted":  # reading has no effect, so the next worker may do it at once
                later = self._database.execute("batch_later", batch_id, 0.0, org=call.caller.org_id)
                await asyncio.shield(asyncio.ensure_future(later))
            raise
        except ProviderError as error:
            # One that is out may be over, with its answers waiting: it is asked about for a day more than it can last.
            submitted = row["status"] == "submitted"
            age = row["out"] if submitted else row["age"]
            if age > _LOST_SECONDS + (_GRACE_SECONDS if submitted else 0.0):
                await self._give_up(call, batch_id, error)
            else:
                await self._defer(call, batch_id, self._pause(age), error)

    async def _recover(self, call: ModelCall, batches: ModelBatches, batch_id: str, row: Row) -> None:
        """Recovers a batch without a recorded submission: it is found at the provider, or submitted again."""
        named = None
        if row["calls"]:  # else no worker got as far as trying
            rows = await self._database.rows("batch_calls", batch_id, org=call.caller.org_id)
            ids = {one["call_id"] for one in rows}
            window = (row["created"], row["tried"] + SUBMIT_SECONDS)
            named = await batches.find(batch_id, ids, row["calls"], *window)
        if named is None:
            await self._submit(call, batches, batch_id, age=row["age"])
        else:
            await self._database.execute("batch_submitted", batch_id, named, 0.0, org=call.caller.org_id)
            log(names.LOG_BATCH_SUBMITTED, org_id=call.caller.org_id, batch=batch_id, provider_id=named, found=True)

    async def _collect(self, call: ModelCall, batches: ModelBatches, batch_id: str, row: Row) -> None:
        ended = await batches.look(row["provider_id"])
        if ended is None:
            if row["out"] > _LOST_SECONDS:
                await self._give_up(call, batch_id, ProviderError("its time is over", kind=FailureKind.TRANSIENT))
            else:
                await self._database.execute("batch_later", batch_id, self._pause(row["out"]), org=call.caller.org_id)
            return
        if ended.error.kind is FailureKind.RATE_LIMITED and row["age"] <= _LOST_SECONDS:
            await self._make_smaller(call, batch_id, ended.error)
        calls = await self._calls(call, batch_id)
        answers = await batches.fetch(ended, {one: other.request for one, other in calls.items()})
        await self._store(call, batch_id, calls, {one: answers.get(one, ended.error) for one in calls})

    async def _give_up(self, call: ModelCall, batch_id: str, error: ProviderError) -> None:
        calls = await self._calls(call, batch_id)
        await self._store(call, batch_id, calls, dict.fromkeys(calls, _lost(error)))

    async def _make_smaller(self, call: ModelCall, batch_id: str, error: ProviderError) -> NoReturn:
        """It was more than the account may queue now, which no call is to blame for: half of it is tried again later, and the
        other half goes with the next submission."""
        calls, org = sorted(await self._calls(call, batch_id)), call.caller.org_id
        pause = error.retry_after or self._settings.max_check_seconds
        await self._database.execute("unsubmit_batch", batch_id, calls[(len(calls) + 1) // 2 :], pause, org=org)
        await self._defer(call, batch_id, pause, error)

    async def _store(
        self,
        call: ModelCall,
        batch_id: str,
        calls: Mapping[str, BatchCall],
        answers: Mapping[str, BatchAnswer],
    ) -> None:
        """Keeps every call's answer for the step that waits for it, and ends the batch."""
        org = call.caller.org_id
        ids = list(calls)
        for start in range(0, len(ids), _STORED_AT_ONCE):
            commit, rows = Commit(org), list[BatchedAnswer]()
            for one in ids[start : start + _STORED_AT_ONCE]:
                sealed = await seal_answer(call.caller.artifacts, org, calls[one], answers[one])
                commit.artifacts += [sealed.row] if sealed else []
                rows.append(BatchedAnswer(call_id=one, result=sealed.ref.to_json() if sealed else None))
            await self._committer.submit(commit)
            await self._database.execute("answer_batched_calls", batch_id, rows, org=org)
        await self._database.execute("batch_ended", batch_id, org=org)
        failed = sum(isinstance(answer, ProviderError) for answer in answers.values())
        log(names.LOG_BATCH_ENDED, org_id=org, batch=batch_id, calls=len(calls), failed=failed)

    def _pause(self, age: float) -> float:
        """Seconds until a batch of this age is looked at again."""
        settings = self._settings
        return min(max(age / 4, settings.check_seconds), settings.max_check_seconds)

    async def _defer(self, call: ModelCall, batch_id: str, seconds: float, error: ProviderError) -> NoReturn:
        """The provider cannot be asked now; the batch is there all the same, or will be."""
        longest = max(_MAX_PAUSE_SECONDS, self._settings.max_check_seconds)
        wait = min(max(seconds, error.retry_after or 0.0), longest)
        await self._database.execute("batch_later", batch_id, wait, org=call.caller.org_id)
        log(
            names.LOG_BATCH_DELAYED,
            error.message,
            level="warning",
            org_id=call.caller.org_id,
            batch=batch_id,
            seconds=wait,
        )
        raise Deferred(error.message, retry_after=wait, pending=True) from error


def _is_waited_for(row: Row, attempt: int) -> bool:
    """True if this attempt waits for the call: it made it, or the attempt before it failed for another reason."""
    return bool(row["attempt"] == attempt or row["status"] != "done")


def _lost(error: ProviderError) -> ProviderError:
    return ProviderError(f"the batch was given up after two days: {error.message}", kind=FailureKind.TRANSIENT)
