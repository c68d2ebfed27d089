"""A run's journal, read together with other rows of the same moment."""

from __future__ import annotations

from interlock.machine.events import Event, event_from_json
from interlock.store.database import Snapshot

_PAGE = 500  # events decoded at once: more would hold up the event loop


async def journal_in(snapshot: Snapshot, run_id: str) -> list[Event]:
    """The run's events, in order."""
    events: list[Event] = []
    after = 0
    while rows := await snapshot.rows("get_journal", run_id, after, _PAGE):
        events += [event_from_json(row["event"]) for row in rows]
        after = rows[-1]["seq"]
        if len(rows) < _PAGE:
            break
    return events
