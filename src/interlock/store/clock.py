"""The platform's time: the database's, counted on by every process that has measured how far it is away.

Timers, deadlines and the age of data are compared between workers, and with what PostgreSQL wrote down itself. A wall clock
that is wrong, or is set in the middle of work, would fire them early or late on the one machine and not on the other.
"""

from __future__ import annotations

import time

from interlock.base.background import Loop
from interlock.base.clock import since_boot
from interlock.store.database import Database
from interlock.store.queries import QUERIES

EVERY_SECONDS = 10.0
_SAMPLES = 3
_SLEW = 0.5  # of a second that is taken back in each second, where the database's clock turns out to be behind ours


class DatabaseClock:
    """A `base.clock.Clock` that shows PostgreSQL's `clock_timestamp()`, from `open` on.

    Between two measurements it counts on by `base.clock.since_boot`, so neither a stepped wall clock nor a process that was
    stopped makes it wrong, and it goes on while the database is away. It never goes backwards: if the database's clock is
    found to be behind, it runs at half speed until they agree; if ahead, it jumps there.
    """

    def __init__(self, database: Database, *, every: float = EVERY_SECONDS) -> None:
        self._database = database
        self._offset = 0.0  # seconds from `since_boot` to the database's time
        self._lead, self._since = 0.0, 0.0  # how far ahead of that `now` was, and when, by `since_boot`
        # While it fails the old offset holds; what needs the database reports that it is away.
        self._loop = Loop("measure the database's time", self.measure, every=every, at_once=False, longest=every)

    def now(self) -> float:
        return self._at(since_boot())

    def monotonic(self) -> float:
        return time.monotonic()

    async def open(self) -> None:
        """Measures for the first time, and again every few seconds until `close`.

        Raises:
            Unavailable: the database does not answer.
        """
        self._offset, _ = await self._database.retrying(self._ask)
        self._loop.start()

    async def close(self) -> None:
        await self._loop.close()

    async def measure(self) -> None:
        """Measures once more; an error leaves everything as it was."""
        offset, uncertain = await self._ask()
        boot = since_boot()
        ahead = self._at(boot) - (boot + offset)
        if abs(ahead) > uncertain:  # else a slow answer would spoil what a quick one had shown
            self._offset, self._lead, self._since = offset, max(0.0, ahead), boot

    async def _ask(self) -> tuple[float, float]:
        """The offset by the quickest of a few questions, and by how much it may be wrong: half of the round trip."""
        samples = []
        async with self._database.connection() as connection:
            for _ in range(_SAMPLES):
                asked = since_boot()
                reported = await connection.fetchval(QUERIES["database_time"].sql)
                half = (since_boot() - asked) / 2
                samples.append((half, reported - (asked + half)))
        half, offset = min(samples)
        return offset, half

    def _at(self, boot: float) -> float:
        # Each grows with `boot` in one term only, so rounding cannot make it go back either.
        slewed = self._since + self._offset + self._lead + (boot - self._since) * (1 - _SLEW)
        return max(boot + self._offset, slewed)
