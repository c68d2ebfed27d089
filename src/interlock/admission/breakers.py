"""Circuit breakers, shared by all workers: a failing target is not called for some time, then tested with a few calls.

    closed ──failures in a row──▶ open ──seconds──▶ half open ──all probes answered──▶ closed
                                    ▲──────────any probe failed──────────┘

The state is a row of `breakers`; the transitions are made there, one at a time (`sql/functions/health.sql`). Each process
keeps a copy in memory, so that a call to a working target needs no query. If the database is unavailable, the last known
state holds. The only exception that breakers raise is `TargetDown`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Literal

from interlock.base.clock import Clock
from interlock.base.errors import FailureKind, TargetDown
from interlock.base.ids import new_id
from interlock.base.settings import BreakerSettings
from interlock.base.values import value
from interlock.store.database import Database, Row
from interlock.store.queries import QUERIES
from interlock.telemetry import names
from interlock.telemetry.logs import log

State = Literal["closed", "open", "half_open"]
Reported = Literal["failed", "answered", "unused"]

PROBE_SECONDS = 60.0  # added to the call's own time, after which the probe of a dead worker is admitted again
_PROBING_SECONDS = 5.0  # delay for callers that got no probe while other probes are under way
_PATIENCE = 2.0  # seconds for the database to answer; a step must not wait longer for a breaker


@dataclass(slots=True)
class Admission:
    """Permission for one call. `probe` identifies a trial call until its outcome is reported."""

    org_id: str
    target: str
    probe: str = ""


@value(frozen=True, slots=True)
class _Known:
    """Local copy of a breaker's state; times are monotonic seconds.

    Attributes:
        until: an open breaker admits no call before this time.
        failing_until: a closed breaker has consecutive failures that count until this time, so a success must be reported.
    """

    state: State
    until: float = 0.0
    failing_until: float = 0.0


class Breakers:
    """The breakers of all organisations, keyed by (org_id, target); a target is `tool:<name>` or `provider:<pin>`.

    Args:
        probe_seconds: added to the call's own time; after that an unreported probe is admitted again.
    """

    def __init__(
        self, database: Database, settings: BreakerSettings, clock: Clock, *, probe_seconds: float = PROBE_SECONDS
    ) -> None:
        self._database = database
        self._settings = settings
        self._clock = clock
        self._probe_seconds = probe_seconds
        self._known: dict[tuple[str, str], _Known] = {}

    def state(self, org_id: str, target: str) -> State:
        """State of the breaker according to the local copy."""
        known = self._known.get((org_id, target))
        return known.state if known is not None else "closed"

    async def admit(self, org_id: str, target: str, *, seconds: float = 0.0) -> Admission:
        """Admits one call, whose outcome must be reported.

        Args:
            seconds: maximum duration of the call; a trial call is not admitted again before.

        Raises:
            TargetDown: the breaker is open, or half open with all probes taken; `retry_after` in seconds.
        """
        known = self._known.get((org_id, target))
        if known is None or known.state == "closed":
            return Admission(org_id, target)
        wait = known.until - self._clock.monotonic()
        if known.state == "open" and wait > 0:
            raise _down(target, wait)
        probe = new_id("prb")
        settings = self._settings
        taken = self._probe_seconds + seconds
        row = await self._ask("breaker_enter", org_id, target, probe, settings.probes, taken)
        if row is None:
            raise _down(target, _PROBING_SECONDS)
        self._learn(org_id, target, row)
        if not row["admitted"]:
            raise _down(target, row["open_for"] or _PROBING_SECONDS)
        return Admission(org_id, target, probe if row["state"] == "half_open" else "")

    async def report(self, admission: Admission, outcome: Reported) -> None:
        """Reports the outcome of a call; for a trial call the first report counts. Never raises.

        Args:
            outcome: `failed` counts against the target, `answered` for it; `unused` means that it was not called.
        """
        probe, admission.probe = admission.probe, ""
        if not probe and (outcome == "unused" or (outcome == "answered" and not self._failing(admission))):
            return
        settings = self._settings
        row = await self._ask(
            "breaker_report",
            admission.org_id,
            admission.target,
            probe,
            outcome,
            settings.failures,
            settings.window_seconds,
            settings.open_seconds,
            settings.probes,
        )
        if row is not None:
            self._learn(admission.org_id, admission.target, row)

    async def refresh(self) -> None:
        """Reads the states of all breakers that are not simply closed."""
        async with asyncio.timeout(_PATIENCE), self._database.connection("") as connection:
            rows = await connection.fetch(QUERIES["breaker_states"].sql, self._settings.window_seconds)
        self._known = {(row["org_id"], row["target"]): self._known_of(row) for row in rows}

    def _failing(self, admission: Admission) -> bool:
        known = self._known.get((admission.org_id, admission.target))
        return known is not None and known.failing_until > self._clock.monotonic()

    def _known_of(self, row: Row) -> _Known:
        now = self._clock.monotonic()
        return _Known(row["state"], now + (row["open_for"] or 0.0), now + (row["failing_for"] or 0.0))

    def _learn(self, org_id: str, target: str, row: Row) -> None:
        self._known[org_id, target] = self._known_of(row)
        if row["was"] != row["state"]:  # the process that made the transition logs it, so it is logged once
            level = "info" if row["state"] == "closed" else "warning"
            log(names.LOG_BREAKER_MOVED, level=level, org_id=org_id, target=target, old=row["was"], new=row["state"])

    async def _ask(self, query: str, org_id: str, *args: object) -> Row | None:
        """One row, or None if the database does not answer. Not retried: the next call queries again."""
        try:
            async with asyncio.timeout(_PATIENCE), self._database.connection(org_id) as connection:
                return await connection.fetchrow(QUERIES[query].sql, org_id, *args)
        except Exception as error:  # noqa: BLE001  an error of the breaker must not fail the call that it guards
            log(names.LOG_HEALTH_UNKNOWN, str(error), level="warning", org_id=org_id)
            return None


def _down(target: str, wait: float) -> TargetDown:
    kind, _, name = target.partition(":")
    return TargetDown(
        f'{kind} "{name}" failed too often and is not called now; the next trial is in {wait:.0f} s',
        kind=FailureKind.TRANSIENT,
        retry_after=wait,
    )
