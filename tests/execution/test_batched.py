"""Model steps through a batch API, end to end: real workers and database, a provider that counts what it was handed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines.conftest import OpenApp
from engines.harness import Observer, think, until, workflow, write
from execution.batching import WORDS, batched, config
from execution.conftest import Deploy
from gateway.batch_server import BatchServer, asked
from interlock.base.errors import InvalidSpec

# nano-USD of a direct call, at 0.15 USD a million tokens in, 0.075 from the cache, and 0.60 out: 40 + 60 tokens in, 20 out.
FULL = 40 * 150 + 60 * 75 + 20 * 600


async def test_thirty_runs_make_few_batches(deploy: Deploy, seen: Observer, provider: BatchServer, pin: str) -> None:
    """Every answer comes to its own step, although the provider gives them the other way round."""
    desk = await deploy(workflow("w", batched(), output=WORDS), **config(pin))
    runs = {await desk.start("w", text=f"matter {number}"): f"matter {number}" for number in range(30)}
    assert set(await seen.finished(*runs)) == {"succeeded"}
    for run, text in runs.items():
        assert await desk.result(run) == {"words": text}
    assert sorted(provider.calls) == sorted(runs.values()), "each was handed in once"
    assert len(provider.batches) <= 15
    assert provider.direct == []
    run = next(iter(runs))
    events = seen.journal(run)
    assert {event["attempt"] for event in events if "attempt" in event} == {1}, "waiting is no attempt"
    assert sum(event["type"] == "step_deferred" for event in events) >= 1
    assert (seen.run(run)["input_tokens"], seen.run(run)["output_tokens"]) == (100, 20)
    assert [one["event_type"] for one in seen.audit(run)].count("model.call") == 1
    assert seen.rows("select count(*) from batched_calls") == [(0,)]


async def test_half_the_price(deploy: Deploy, seen: Observer, provider: BatchServer) -> None:
    """Half of the list price, and the same counts in the journal, whichever way the call went."""
    pin = "openai:gpt-4o-mini-2024-07-18"
    desk = await deploy(workflow("w", batched()), workflow("v", think()), **config(pin))
    cheap, dear = await desk.start("w"), await desk.start("v")
    assert await seen.finished(cheap, dear) == ["succeeded"] * 2
    costs = [seen.rows("select nano_usd, unpriced from runs where run_id = %s", run)[0] for run in (cheap, dear)]
    assert costs == [(FULL // 2, 0), (FULL, 0)]
    ended = [seen.journal(run)[-1] for run in (cheap, dear)]
    assert [one["usage"]["known_cost"] for one in ended] == [FULL // 2, FULL]
    model = "gpt-4o-mini-2024-07-18"
    used = {"provider": "openai", "model": model, "input_tokens": 100, "output_tokens": 20, "cached_tokens": 60}
    used |= {"cache_write_tokens": 0, "reasoning_tokens": 8, "attempts": 1, "unpriced": 0}
    assert [one["usage"] for one in ended] == [{**used, "known_cost": cost} for cost in (FULL // 2, FULL)]
    assert ended[0]["request"]["digest"] == ended[1]["request"]["digest"], "the very same request"


async def test_an_invalid_answer_is_corrected_directly(deploy: Deploy, seen: Observer, provider: BatchServer) -> None:
    """The batch's part of the cost at half the price, the correction's in full."""
    pin = "openai:gpt-4o-mini-2024-07-18"
    good = {"verdict": "good", "words": "well"}
    provider.say = lambda body: good if len(body["messages"]) > 1 else {"verdict": "MARKER", "words": "well"}
    desk = await deploy(workflow("w", batched()), **config(pin))
    run = await desk.start("w")
    assert await seen.finished(run) == ["succeeded"]
    assert (len(provider.calls), len(provider.direct)) == (1, 1)
    assert [turn["role"] for turn in provider.direct[0]["messages"]] == ["user", "assistant", "user"]
    assert seen.rows("select nano_usd, input_tokens from runs where run_id = %s", run) == [(FULL * 3 // 2, 200)]
    assert seen.journal(run)[-1]["usage"]["attempts"] == 2
    assert "MARKER" not in seen.everywhere()


@pytest.mark.parametrize(
    ("outcome", "kind", "again"),
    [("expired", "transient", True), (429, "rate_limited", True), (400, "permanent", False)],
)
async def test_a_call_that_failed(
    outcome: str | int,
    kind: str,
    again: bool,
    deploy: Deploy,
    seen: Observer,
    provider: BatchServer,
    pin: str,
) -> None:
    """It fails alone; what may pass is handed in again, in another batch."""
    spoiled: list[str] = []

    def spoil(one: str, body: dict[str, Any]) -> str | int | None:
        if asked(body) != "the bad one" or (spoiled and one not in spoiled):
            return None
        spoiled.append(one)
        return outcome

    provider.spoil = spoil
    desk = await deploy(workflow("w", batched(), output=WORDS), **config(pin))
    bad, good = await desk.start("w", text="the bad one"), await desk.start("w", text="the good one")
    assert await seen.finished(bad, good) == ["succeeded" if again else "failed", "succeeded"]
    assert await desk.result(good) == {"words": "the good one"}
    assert provider.calls.count("the bad one") == (2 if again else 1)
    assert provider.calls.count("the good one") == 1
    failure = next(event for event in seen.journal(bad) if event["type"] == "step_failed")
    assert failure["failure"]["kind"] == kind
    assert failure["attempt"] == 1


async def test_a_hostile_provider(deploy: Deploy, seen: Observer, provider: BatchServer, pin: str) -> None:
    """Lines that are no JSON, no objects, about nobody, or about a call twice: none of them hurts."""
    other = {"verdict": "bad", "words": "not yours"}
    provider.around = [
        b"not json",
        b"[" * 100_000,
        b'{"custom_id": "call_nobody", "result": {"type": "succeeded"}, "response": {"status_code": 200}}',
        b'{"custom_id": ["x"]}',
        b"17",
        b"\xff\xfe",
        b'{"custom_id": 1e999, "response": ' + str(other).encode() + b"}",
        b"",
    ]
    desk = await deploy(workflow("w", batched(), output=WORDS), **config(pin))
    runs = {await desk.start("w", text=f"matter {number}"): f"matter {number}" for number in range(3)}
    assert set(await seen.finished(*runs)) == {"succeeded"}
    for run, text in runs.items():
        assert await desk.result(run) == {"words": text}


async def test_a_call_without_a_result_is_made_again(
    deploy: Deploy, seen: Observer, provider: BatchServer, pin: str
) -> None:
    provider.ready = False
    desk = await deploy(workflow("w", batched(), output=WORDS), **config(pin))
    run = await desk.start("w", text="lost")
    await until(lambda: len(provider.batches) == 1, lambda: "not handed in")
    provider.drop = {one for one, _ in provider.batches[0].calls}
    provider.ready = True
    assert await seen.finished(run) == ["succeeded"]
    assert await desk.result(run) == {"words": "lost"}
    failure = next(event["failure"] for event in seen.journal(run) if event["type"] == "step_failed")
    assert (failure["kind"], "without an answer to this call" in failure["message"]) == ("transient", True)
    assert provider.calls == ["lost", "lost"]


@pytest.mark.parametrize("part", ["look", "results"])
async def test_the_provider_goes_down_in_between(
    part: str, deploy: Deploy, seen: Observer, provider: BatchServer, pin: str
) -> None:
    """However often it cannot be asked: no attempt is lost over it, and nothing is handed in twice."""
    provider.ready = False
    desk = await deploy(workflow("w", batched(attempts=1), output=WORDS), **config(pin))
    run = await desk.start("w", text="patience")
    await until(lambda: len(provider.batches) == 1, lambda: "not handed in")
    provider.down, provider.ready = {part: 503}, True
    before = provider.hits[part]
    await until(lambda: provider.hits[part] >= before + 3, lambda: f"not asked: {provider.hits}")
    assert seen.status(run) not in {"failed", "succeeded"}
    provider.down = {}
    assert await seen.finished(run) == ["succeeded"]
    assert await desk.result(run) == {"words": "patience"}
    assert provider.calls == ["patience"]


async def test_a_provider_that_is_busy(deploy: Deploy, seen: Observer, provider: BatchServer, pin: str) -> None:
    """A batch that was not taken is handed in later, without a search for it and without the loss of an attempt."""
    provider.down = {"create": 429}
    desk = await deploy(workflow("w", batched(attempts=1), output=WORDS), **config(pin))
    run = await desk.start("w", text="later")
    await until(lambda: provider.hits["create"] >= 3, lambda: f"not tried: {provider.hits}")
    provider.down = {}
    assert await seen.finished(run) == ["succeeded"]
    assert (provider.calls, provider.hits["list"]) == (["later"], 0)


async def test_a_provider_that_refuses_the_batch(
    deploy: Deploy, seen: Observer, provider: BatchServer, pin: str
) -> None:
    """A wrong key, an address without a batch API: said at once, once, and for every call of the batch."""
    provider.down = {"files": 404, "create": 404}
    desk = await deploy(workflow("w", batched()), **config(pin))
    runs = [await desk.start("w") for _ in range(3)]
    assert set(await seen.finished(*runs)) == {"failed"}
    assert "answered 404" in seen.run(runs[0])["reason"]


async def test_check_refuses_batches_of_the_local_model(
    project: Path, open_app: OpenApp, provider: BatchServer
) -> None:
    write(project, workflow("w", batched()))
    app = await open_app(**config("local:smollm2-135m-instruct-q4_1"))
    with pytest.raises(InvalidSpec, match=r'batch: step "think": the provider of model "default" has no batch API'):
        app.read_project()
    assert (await open_app(**config(provider.pin))).read_project().definitions.keys() == {"w"}
