"""Views of a run that a commit overtakes while they are read: each shows the run before that commit or after it, never both."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from engines.harness import NOTE, Observer, workflow
from interlock.services.views.events import JournalEntry, StatusChanged, Waiting
from interlock.store.database import Database, Snapshot

from .conftest import Deploy
from .test_dead_letters import BAD, HOLD, PICKY, dead_letter_of

WAIT = workflow("w", "- {id: pause, kind: wait, signal: go}\n", NOTE, allow="note")
ASK = workflow("w", "- {id: ask, kind: review, title: Go on?}\n", NOTE, allow="note")

Overtake = Callable[[str, Callable[[], Awaitable[None]]], list[str]]


@pytest.fixture
def overtake(monkeypatch: pytest.MonkeyPatch) -> Overtake:
    """Has something committed, on other connections, just before a query is asked for the first time; lists that query then."""

    def arm(query: str, change: Callable[[], Awaitable[None]]) -> list[str]:
        overtaken: list[str] = []

        def wrapped(original: Any) -> Any:
            async def rows(self: Any, asked: str, *args: Any, **scope: Any) -> Any:
                if asked == query and not overtaken:
                    overtaken.append(query)
                    await change()
                return await original(self, asked, *args, **scope)

            return rows

        for reader in (Database, Snapshot):
            monkeypatch.setattr(reader, "rows", wrapped(reader.rows))
        return overtaken

    return arm


@pytest.mark.parametrize("query", ["get_journal", "list_effects", "open_questions"])
async def test_the_status_of_a_run_fits_its_steps(
    query: str, deploy: Deploy, seen: Observer, overtake: Overtake
) -> None:
    desk = await deploy(WAIT)
    run = await desk.start("w")
    await seen.asleep(run)
    before = await desk.app.runs.get(desk.admin, run)
    assert (before.status, {step.id: step.status for step in before.steps}["pause"]) == ("waiting", "waiting")

    async def finish() -> None:
        await desk.app.signals.signal(desk.admin, run, "go", {})
        assert await seen.finished(run) == ["succeeded"]

    overtaken = overtake(query, finish)
    view = await desk.app.runs.get(desk.admin, run)
    assert overtaken
    after = await desk.app.runs.get(desk.admin, run)
    assert (after.status, {step.status for step in after.steps}) == ("succeeded", {"succeeded"})
    assert view in (before, after)


@pytest.mark.parametrize("query", ["get_run", "get_journal"])
async def test_a_dead_letter_is_shown_with_its_own_failure(
    query: str, deploy: Deploy, seen: Observer, overtake: Overtake
) -> None:
    desk = await deploy(PICKY, HOLD)
    run = await desk.start("w", **BAD)
    dead_letter_id = await dead_letter_of(seen, run)
    await seen.asleep(run)
    before = await desk.app.dead_letters.get(desk.admin, dead_letter_id)
    assert (before.status, bool(before.error_detail)) == ("open", True)

    async def requeue() -> None:
        await desk.app.dead_letters.requeue(desk.admin, dead_letter_id, "", {"text": "good"})
        assert await seen.finished(run) == ["succeeded"]

    overtaken = overtake(query, requeue)
    view = await desk.app.dead_letters.get(desk.admin, dead_letter_id)
    assert overtaken
    after = await desk.app.dead_letters.get(desk.admin, dead_letter_id)
    assert (after.status, after.error_detail) == ("requeued", None)
    assert view in (before, after)


@pytest.mark.parametrize("query", ["get_journal", "followed_reviews", "open_questions"])
async def test_a_stream_tells_one_commit_after_the_other(
    query: str, deploy: Deploy, seen: Observer, overtake: Overtake
) -> None:
    """A run is overtaken while it waits for a review: no entry precedes the status of an earlier commit, no question is empty."""
    desk = await deploy(ASK)
    run = await desk.start("w")
    review = await seen.review(run)
    await seen.asleep(run)
    entries_before = len(seen.journal(run))

    async def approve() -> None:
        await desk.decide(review, "approve")
        assert await seen.finished(run) == ["succeeded"]

    async def authenticate() -> Any:
        return desk.admin

    overtaken = overtake(query, approve)
    followers = desk.app.services.followers
    stream = await followers.follow(desk.admin, run, 0, authenticate=authenticate, stopping=asyncio.Event())
    events = [event async for event in stream if event is not None]
    assert overtaken
    waiting = next(at for at, event in enumerate(events) if isinstance(event, Waiting))
    assert events[waiting] == Waiting(run_id=run, reviews=[review], dead_letters=[])
    assert sum(isinstance(event, JournalEntry) for event in events[:waiting]) == entries_before
    assert [event.status for event in events if isinstance(event, StatusChanged)][-1] == "succeeded"
    assert sum(isinstance(event, JournalEntry) for event in events) == len(seen.journal(run))
