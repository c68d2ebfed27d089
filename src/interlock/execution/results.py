"""Kept results of calls: a cache, and the last good answer of a fallback.

A result that is found is judged like the call it replaces.
"""

from __future__ import annotations

from collections.abc import Mapping

from interlock.base.clock import Clock
from interlock.base.errors import Erased, FailureKind, StepError
from interlock.base.json import Json
from interlock.base.labels import DEFINED
from interlock.base.refs import Ref
from interlock.execution.call import Call, CallResult, ToolCall
from interlock.store.database import Database
from interlock.store.rows import KeptResult


class KeptResults:
    """Finds results of earlier calls, and keeps those that may serve again."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def find(self, call: Call) -> tuple[CallResult | None, str | None]:
        """A result that stands in for the call, and where it is from: `value`, `last_good` or `cache`; None to make the call.

        Raises:
            StepError: only a kept result may stand in, and there is none, or none young enough.
        """
        if call.fixed is not None:
            return CallResult(call.fixed, call.schema, DEFINED), "value"
        if call.reuse is None:
            return None, None
        found = await self._kept(call, call.reuse.max_age)
        if not call.reuse.required:
            return found, "cache" if found is not None else None
        if found is None:
            raise StepError(
                f'no earlier result of step "{call.name}" is at most {call.reuse.max_age:g} s old',
                kind=FailureKind.PERMANENT,
            )
        return found, "last_good"

    async def row(self, call: Call, output: Ref) -> KeptResult | None:
        """Row that lets a result serve again; None if none of its kind is kept."""
        if not call.kept:
            return None
        org = call.caller.org_id
        return KeptResult(org_id=org, key=await self._key(call), output=output.to_json())

    async def _kept(self, call: Call, max_age: float | None) -> CallResult | None:
        org = call.caller.org_id
        row = await self._database.row("get_result", org, await self._key(call), org=org)
        if row is None:
            return None
        ref = Ref.from_json(row["output"])
        as_of = ref.labels.as_of if ref.labels.as_of is not None else row["created_at"].timestamp()
        if max_age is not None and self._clock.now() - as_of > max_age:
            return None
        try:
            return CallResult(await call.caller.value(ref), call.schema, ref.labels.join(call.labels))
        except Erased:
            return None

    @staticmethod
    async def _key(call: Call) -> str:
        """Keyed digest of a call's identity: code or model, and all its input."""
        what: Mapping[str, Json]
        if isinstance(call, ToolCall):
            what = {"tool": call.tool.bundle, "arguments": call.arguments}
        else:
            what = {"model": call.pin, "request": call.plain}
        return await call.caller.artifacts.digest(call.caller.org_id, what, call.labels)
