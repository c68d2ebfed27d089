"""The supervised loop: errors, backoff, wake-ups, cancellation, closing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from interlock.base import background
from interlock.base.background import Loop


class Work:
    """Counts rounds; `act` decides how each of them ends."""

    def __init__(self, act: Callable[[int], bool | None] = lambda _: None) -> None:
        self.rounds = 0
        self.act = act

    async def __call__(self) -> bool | None:
        self.rounds += 1
        await asyncio.sleep(0)
        return self.act(self.rounds)

    async def until(self, rounds: int) -> None:
        async with asyncio.timeout(60):
            while self.rounds < rounds:
                await asyncio.sleep(0)


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The lengths of the waits after failures, which take no time."""
    waits: list[float] = []

    async def back_off(loop: Loop, seconds: float) -> None:
        waits.append(seconds)
        await asyncio.sleep(0)

    monkeypatch.setattr(Loop, "_back_off", back_off)
    return waits


def failing(*texts: str) -> Callable[[int], None]:
    def act(rounds: int) -> None:
        if rounds <= len(texts) and texts[rounds - 1]:
            raise ValueError(texts[rounds - 1])

    return act


async def test_it_repeats_and_begins_at_once_or_with_the_wait() -> None:
    work, late = Work(), Work()
    loops = [Loop("now", work, every=0.001), Loop("late", late, every=3600, at_once=False)]
    for loop in loops:
        loop.start()
    await work.until(5)
    assert late.rounds == 0
    loops[1].wake()
    await late.until(1)
    for loop in loops:
        assert loop.running
        await loop.close()
        assert not loop.running
    rounds = work.rounds
    await asyncio.sleep(0.01)
    assert work.rounds == rounds


async def test_more_to_do_means_no_wait() -> None:
    work = Work(lambda rounds: rounds < 100)
    loop = Loop("busy", work, every=3600)
    loop.start()
    await work.until(100)
    await loop.close()
    assert work.rounds == 100


async def test_an_error_is_reported_once_for_each_reason_and_the_loop_goes_on(sleeps: list[float]) -> None:
    said: list[str] = []
    work = Work(failing("a", "a", "b", "a", "b", "", "a"))
    loop = Loop("sick", work, every=0.001, report=lambda error: said.append(str(error)))
    loop.start()
    await work.until(9)
    await loop.close()
    assert said == ["a", "b", "a"]  # "a" again, because a round had succeeded in between
    assert loop.error is None
    assert loop.failures == 0


async def test_reports_are_bounded_whatever_the_texts_are(sleeps: list[float]) -> None:
    said: list[str] = []

    def act(rounds: int) -> None:
        raise ValueError(f"attempt {rounds}")

    work = Work(act)
    loop = Loop("chatty", work, every=0.001, report=lambda error: said.append(str(error)))
    loop.start()
    await work.until(50)
    assert loop.failures >= 49
    await loop.close()
    assert said == [f"attempt {n}" for n in range(1, 9)]


async def test_the_wait_after_failures_doubles_up_to_its_bound_and_begins_anew_after_a_success(
    sleeps: list[float],
) -> None:
    work = Work(failing("x", "x", "x", "x", "x", "", "x"))
    loop = Loop("slow", work, every=0.001, retry=2.0, longest=10.0)
    loop.start()
    await work.until(8)
    await loop.close()
    assert sleeps == [2.0, 4.0, 8.0, 10.0, 10.0, 2.0]


async def test_the_backoff_never_overflows(sleeps: list[float]) -> None:
    work = Work(failing(*["x"] * 3000))
    loop = Loop("long", work, every=1e-9)
    loop.start()
    await work.until(3000)
    await loop.close()
    assert max(sleeps) == 60.0


async def test_a_wake_up_does_not_shorten_the_backoff_and_is_not_lost() -> None:
    work = Work(failing("x"))
    loop = Loop("patient", work, every=3600, retry=0.05)
    loop.start()
    await work.until(1)
    loop.wake()
    for _ in range(20):
        await asyncio.sleep(0)
    assert work.rounds == 1
    await work.until(2)
    await loop.close()


async def test_a_report_that_fails_does_not_end_the_loop(sleeps: list[float]) -> None:
    def report(error: Exception) -> None:
        raise OSError("the log is full")

    work = Work(failing("x"))
    loop = Loop("logless", work, every=0.001, report=report)
    loop.start()
    await work.until(3)
    assert loop.running
    await loop.close()


async def test_a_wake_up_during_a_round_causes_another() -> None:
    entered, leave, rounds = asyncio.Event(), asyncio.Event(), 0

    async def work() -> None:
        nonlocal rounds
        rounds += 1
        entered.set()
        await leave.wait()

    loop = Loop("woken", work, every=None)
    loop.start()
    await entered.wait()
    loop.wake()
    loop.wake()
    leave.set()
    async with asyncio.timeout(60):
        while rounds < 2:
            await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0)
    assert rounds == 2  # both wake-ups came before the second round
    await loop.close()


async def test_a_round_is_cancelled_by_close_and_has_ended_when_close_returns() -> None:
    entered, cleaned = asyncio.Event(), False

    async def work() -> None:
        nonlocal cleaned
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            cleaned = True

    loop = Loop("cut", work, every=1)
    loop.start()
    await entered.wait()
    await asyncio.gather(loop.close(), loop.close())
    await loop.close()
    assert cleaned
    assert loop.error is None


async def test_work_that_swallows_cancellation_cannot_prolong_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_CANCEL_AGAIN_SECONDS", 0.01)
    entered, rounds = asyncio.Event(), 0

    async def work() -> None:
        nonlocal rounds
        rounds += 1
        entered.set()
        for _ in range(2):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue

    loop = Loop("deaf", work, every=0.001)
    loop.start()
    await entered.wait()
    async with asyncio.timeout(60):
        await loop.close()
    assert not loop.running
    assert rounds == 1


async def test_a_cancellation_from_inside_the_work_is_an_error_like_another(sleeps: list[float]) -> None:
    said: list[str] = []

    def act(rounds: int) -> None:
        if rounds == 1:
            raise asyncio.CancelledError

    work = Work(act)
    loop = Loop("inner", work, every=0.001, report=lambda error: said.append(str(error)))
    loop.start()
    await work.until(3)
    await loop.close()
    assert said == ['the work of the loop "inner" was cancelled from inside']


async def test_a_loop_that_died_can_be_seen() -> None:
    class Fatal(BaseException):
        pass

    async def work() -> None:
        raise Fatal

    said: list[str] = []
    loop = Loop("mortal", work, every=1, report=lambda error: said.append(str(error)))
    assert not loop.running
    loop.start()
    async with asyncio.timeout(60):
        while loop.running:
            await asyncio.sleep(0)
    await asyncio.sleep(0)
    await loop.close()
    assert said == ['the loop "mortal" has died: Fatal()']
    assert str(loop.error) == said[0]


async def test_a_loop_that_is_cancelled_from_outside_is_reported() -> None:
    said: list[str] = []
    loop = Loop("victim", Work(), every=3600, report=lambda error: said.append(str(error)))
    loop.start()
    await asyncio.sleep(0)
    (task,) = [one for one in asyncio.all_tasks() if one.get_name() == "victim"]
    task.cancel()
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert not loop.running
    assert said == ['the loop "victim" has died: it was cancelled']


async def test_stop_lets_the_round_end_and_begins_no_other() -> None:
    entered, leave, ended = asyncio.Event(), asyncio.Event(), 0

    async def work() -> bool:
        nonlocal ended
        entered.set()
        await leave.wait()
        ended += 1
        return True

    loop = Loop("gentle", work, every=0.001)
    loop.start()
    await entered.wait()
    stopping = asyncio.create_task(loop.stop())
    await asyncio.sleep(0)
    leave.set()
    async with asyncio.timeout(60):
        await stopping
    await loop.close()
    assert ended == 1
    assert not loop.running


async def test_finish_makes_the_round_under_way_the_last_and_waits_for_nothing() -> None:
    """The same for work that ends only on request; it must not begin again after that."""
    entered, leave, said = asyncio.Event(), asyncio.Event(), list[str]()

    async def work() -> bool:
        entered.set()
        await leave.wait()
        return True

    loop = Loop("server", work, every=0.001, report=lambda error: said.append(str(error)))
    loop.start()
    await entered.wait()
    loop.finish()
    assert loop.running
    entered.clear()
    leave.set()
    async with asyncio.timeout(60):
        await loop.stop()
    assert (loop.running, entered.is_set(), said) == (False, False, [])


async def test_finish_before_the_first_round_begins_none() -> None:
    work = Work()
    loop = Loop("early", work, every=0.001)
    loop.start()
    loop.finish()
    await loop.stop()
    assert work.rounds == 0


async def test_stop_ends_the_wait_after_a_failure() -> None:
    work = Work(failing("x"))
    loop = Loop("stopped", work, every=3600)
    loop.start()
    async with asyncio.timeout(60):
        while loop.error is None:
            await asyncio.sleep(0)
        await loop.stop()
    assert work.rounds == 1


async def test_start_twice_is_refused_and_a_closed_loop_can_start_again() -> None:
    work = Work()
    loop = Loop("again", work, every=0.001)
    await loop.close()  # never started
    loop.start()
    with pytest.raises(RuntimeError, match='"again" runs already'):
        loop.start()
    await loop.close()
    rounds = work.rounds
    loop.start()
    await work.until(rounds + 1)
    await loop.close()
