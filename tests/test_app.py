"""Closing of the app: in reverse order, all of it, whatever one part does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from interlock.app import App
from interlock.base.settings import Settings


@pytest.fixture
def closed() -> list[str]:
    return []


@pytest.fixture
def app(tmp_path: Path) -> App:
    return App(tmp_path, Settings(data_dir=tmp_path / "data"))


def closing(closed: list[str], name: str, error: Exception | None = None) -> Callable[[], Awaitable[None]]:
    async def close() -> None:
        closed.append(name)
        await asyncio.sleep(0)
        if error is not None:
            raise error

    return close


async def test_a_part_that_fails_to_close_keeps_no_other_open(app: App, closed: list[str]) -> None:
    for name, error in (("first", None), ("second", ValueError("a bug")), ("third", None)):
        app.on_close(closing(closed, name, error))
    await app.__aexit__(None, None, None)
    await app.__aexit__(None, None, None)
    assert closed == ["third", "second", "first"]


async def test_a_cancellation_ends_what_is_being_closed_and_the_rest_is_closed(app: App, closed: list[str]) -> None:
    hanging = asyncio.Event()

    async def hang() -> None:
        hanging.set()
        await asyncio.Event().wait()

    app.on_close(closing(closed, "first"))
    app.on_close(closing(closed, "second"))
    app.on_close(hang)
    task = asyncio.create_task(app.__aexit__(None, None, None))
    await hanging.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert closed == ["second", "first"]


async def test_what_was_open_is_closed_when_opening_fails(
    app: App, closed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        app.on_close(closing(closed, "first"))
        raise ValueError("no database")

    monkeypatch.setattr(app, "_open", fail)
    with pytest.raises(ValueError, match="no database"):
        await app.__aenter__()
    assert closed == ["first"]
