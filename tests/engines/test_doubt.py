"""The effect happened and the caller never heard of it: what is in doubt stays in doubt until somebody knows."""

from __future__ import annotations

from typing import Any

import pytest

from engines.conftest import Desk, OpenApp, faults
from engines.harness import Bank, Observer
from interlock.base.errors import ContractViolation, FailureKind, SandboxError
from interlock.sandbox.bubblewrap import BubblewrapSandbox
from interlock.sandbox.environment import Job, SandboxResult

REFUND = {"refund_id": "ref-000001", "amount": 5, "currency": "EUR"}


def break_sandbox(monkeypatch: pytest.MonkeyPatch, function: str, *calls: int) -> list[int]:
    """Makes the sandbox fail to start for the given calls of a function, counted from 1; gives the calls seen."""
    original = BubblewrapSandbox.run
    seen: list[int] = []

    async def run(self: BubblewrapSandbox, job: Job) -> SandboxResult:
        if job.function == function:
            seen.append(len(seen) + 1)
            if seen[-1] in calls:
                raise SandboxError("the sandbox did not start", kind=FailureKind.TRANSIENT)
        return await original(self, job)

    monkeypatch.setattr(BubblewrapSandbox, "run", run)
    return seen


@faults("bank", "--drop-after-effect-every", "1")
async def test_keyed_tool_repeats_and_then_asks(desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank) -> None:
    """The bank pays and hangs up, every time: the same key is tried thrice, then a person is asked."""
    await open_app(start_worker=True)
    run = await desk.start("pay_keyed", ticket="a")
    review = await seen.review(run, "confirm")
    assert bank.requests == 3
    assert bank.refunds == {"a": 1}
    assert seen.effect(run) == "unknown"

    await desk.decide(review, "approve", REFUND)
    assert await seen.finished(run) == ["succeeded"]
    assert await desk.app.runs.result(desk.admin, run) == {"refund": "ref-000001"}
    assert (bank.requests, bank.refunds, seen.effect(run)) == (3, {"a": 1}, "succeeded")


@faults("strict", "--drop-after-effect-every", "1")
async def test_probed_tool_asks_the_tool(desk: Desk, open_app: OpenApp, seen: Observer, strict: Bank) -> None:
    await open_app(start_worker=True)
    run = await desk.start("pay_probed", ticket="a")
    assert await seen.finished(run) == ["succeeded"]
    assert (strict.requests, strict.refunds) == (1, {"a": 1})
    assert (await desk.app.runs.result(desk.admin, run))["refund"] == "ref-000001"
    # What a probe says is as little trusted as what the tool says.
    output = next(event for event in seen.journal(run) if event["type"] == "step_succeeded")["output"]
    assert output["labels"]["trust"] == "tool"
    assert "tool:refund_probed" in output["labels"]["origins"]


async def test_killed_at_its_deadline_after_the_effect(
    desk: Desk, open_app: OpenApp, seen: Observer, strict: Bank
) -> None:
    """The tool's own timeout is 1 s, the bank pays at once and does not answer."""
    strict.hold()
    await open_app(start_worker=True)
    run = await desk.start("pay_slow", ticket="a")
    assert await seen.finished(run) == ["succeeded"]
    assert (strict.requests, strict.refunds) == (1, {"a": 1})
    kinds = seen.kinds(run)  # once more for each time that it did not even get to the bank
    assert kinds[1:3] == ["step_failed pay", "timer_fired retry:pay:1"]
    assert kinds[-1] == "step_succeeded pay"


@faults("strict", "--drop-after-effect-every", "1")
async def test_promiseless_tool_is_never_repeated_unasked(
    desk: Desk, open_app: OpenApp, seen: Observer, strict: Bank
) -> None:
    await open_app(start_worker=True)
    run = await desk.start("pay_blind", ticket="a")
    review = await seen.review(run, "confirm")
    assert strict.requests == 1

    # The person is mistaken and says that nothing happened: it is done once more, in doubt again, and asked again.
    await desk.decide(review, "reject")
    again = await seen.review(run, "confirm")
    assert again != review
    assert strict.requests == 2
    # What the tool cannot have given is refused, and changes nothing; what it can have given has facts.
    for wrong in ({"refund_id": 7}, {}, "yes", [REFUND]):
        with pytest.raises(ContractViolation, match="refund_blind"):
            await desk.decide(again, "approve", wrong)
    await desk.decide(again, "approve", REFUND)
    assert await seen.finished(run) == ["succeeded"]
    assert strict.requests == 2
    decided = [event for event in seen.journal(run) if event["type"] == "review_decided"]
    assert [event["facts"] for event in decided] == [{}, {"amount": 5}]


@faults("strict", "--drop-after-effect-every", "1")
async def test_probe_that_knows_no_output(desk: Desk, open_app: OpenApp, seen: Observer, strict: Bank) -> None:
    """ "It happened, I cannot say what came of it" is not "it did not happen"."""
    await open_app(start_worker=True)
    run = await desk.start("pay_hush", ticket="a")
    review = await seen.review(run, "confirm")
    assert strict.refunds == {"a": 1}
    await desk.decide(review, "approve", REFUND)
    assert await seen.finished(run) == ["succeeded"]
    assert strict.refunds == {"a": 1}


@faults("strict", "--drop-after-effect-every", "1")
async def test_no_sandbox_for_the_probe(
    desk: Desk, open_app: OpenApp, seen: Observer, strict: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe that could not be asked has not said no."""
    probes = break_sandbox(monkeypatch, "probe", 1)
    await open_app(start_worker=True)
    run = await desk.start("pay_probed", ticket="a")
    assert await seen.finished(run) == ["succeeded"]
    assert probes == [1, 2]
    assert strict.refunds == {"a": 1}


@faults("bank", "--drop-after-effect-every", "1")
async def test_no_sandbox_for_the_repetition(
    desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The repetition never started; the first call may have done its work all the same."""
    break_sandbox(monkeypatch, "run", 2, 3)
    await open_app(start_worker=True)
    run = await desk.start("pay_keyed", ticket="a")
    review = await seen.review(run, "confirm")
    assert (bank.refunds, seen.effect(run)) == ({"a": 1}, "unknown")
    await desk.decide(review, "approve", REFUND)
    assert await seen.finished(run) == ["succeeded"]


async def test_no_sandbox_at_all(
    desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tool never got the call, so there is nothing to ask a person."""
    break_sandbox(monkeypatch, "run", 1, 2, 3)
    await open_app(start_worker=True)
    run = await desk.start("pay_keyed")
    assert await seen.finished(run) == ["failed"]
    assert (bank.requests, seen.effect(run)) == (0, "failed")


@faults("bank", "--drop-after-effect-every", "1")
async def test_cancelled_in_doubt(desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank) -> None:
    """A run in doubt can neither end nor undo before a person has said what happened."""
    await open_app(start_worker=True)
    run = await desk.start("pay_keyed", ticket="a")
    review = await seen.review(run, "confirm")
    await desk.cancel(run)
    await seen.asleep(run)
    assert seen.status(run) == "waiting"

    await desk.decide(review, "approve", REFUND)
    await _over_or_dead(seen, run)
    assert bank.refunds == {"a": 1}
    assert bank.reversed_tickets == ["a"]


async def _over_or_dead(seen: Observer, run: str) -> Any:
    # The bank hangs up after reversing too, and the tool's word is all the engine has.
    (status,) = await seen.finished(run)
    assert status in {"cancelled", "dead"}


async def test_failed_reserve_leaves_nothing_behind(desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank) -> None:
    await open_app(start_worker=True)
    run = await desk.start("pay_keyed", ticket="a")
    assert await seen.finished(run) == ["succeeded"]
    assert (bank.requests, bank.refunds) == (1, {"a": 1})
