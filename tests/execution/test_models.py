"""What a provider can do wrong, over real HTTP, and what the run makes of it; every token spent is accounted for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engines.harness import Model, Observer, think, until, workflow
from execution.conftest import Deploy
from interlock.testing import (
    Behaviour,
    answer,
    cut_stream,
    hang,
    invalid_json,
    not_the_protocol,
    rate_limited,
    refusal,
    server_error,
    status,
    wrong_schema,
)

GOOD = {"verdict": "good", "words": "well"}
GOOD_TOKENS = (4, 4)  # the fake counts words: "Think about the matter" and the answer's JSON


@pytest.mark.parametrize(
    ("behaviour", "kind", "said"),
    [
        (rate_limited(), "rate_limited", "answered 429"),
        (rate_limited(code=529), "rate_limited", "answered 529"),
        (server_error(), "transient", "answered 500"),
        (server_error(503), "transient", "answered 503"),
        (hang(), "transient", "did not answer within 0.5 s"),
        (cut_stream(), "transient", "closed the connection during its answer"),
    ],
    ids=["429", "529", "500", "503", "hang", "cut"],
)
async def test_what_may_pass_is_tried_again(
    behaviour: Behaviour, kind: str, said: str, deploy: Deploy, seen: Observer, model: Model
) -> None:
    model.script(behaviour, behaviour)
    # Where the timeout is the subject, a good answer may be late as well.
    late = "did not answer" in said
    step = think(timeout=0.5, attempts=9) if late else think()
    desk = await deploy(workflow("w", step, output="{words: $steps.think.words}"))
    run = await desk.start("w")
    assert await seen.finished(run) == ["succeeded"]
    assert await desk.app.runs.result(desk.admin, run) == {"words": "well"}
    failures = [event["failure"] for event in seen.journal(run) if event["type"] == "step_failed"]
    assert len(failures) >= 2 if late else len(failures) == 2
    assert {(one["kind"], one["ambiguous"]) for one in failures} == {(kind, False)}
    assert said in failures[0]["message"]
    calls = [one["detail"]["success"] for one in seen.audit(run) if one["event_type"] == "model.call"]
    assert calls == [False] * len(failures) + [True]


async def test_retry_after_is_respected(deploy: Deploy, seen: Observer, model: Model) -> None:
    model.script(rate_limited(retry_after=1))
    desk = await deploy(workflow("w", think(backoff=0.01)))
    run = await desk.start("w")
    assert await seen.finished(run) == ["succeeded"]
    failed, fired = (next(e for e in seen.journal(run) if e["type"] == kind) for kind in ("step_failed", "timer_fired"))
    assert failed["failure"]["retry_after"] == 1
    assert fired["at"] - failed["at"] >= 1


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        (status(401, "Incorrect API key"), "answered 401"),
        (status(400, "unsupported"), "answered 400"),
        (not_the_protocol(), "not its protocol"),
        (refusal(), "refused to answer"),
    ],
    ids=["401", "400", "not the protocol", "refusal"],
)
async def test_what_would_come_again_is_not_tried_again(
    behaviour: Behaviour, said: str, deploy: Deploy, seen: Observer, model: Model
) -> None:
    model.script(behaviour)
    desk = await deploy(workflow("w", think()))
    run = await desk.start("w")
    assert await seen.finished(run) == ["failed"]
    assert said in seen.run(run)["reason"]
    assert model.count == 1


async def test_a_provider_that_stays_away(deploy: Deploy, seen: Observer, model: Model) -> None:
    model.always(server_error())
    model.answers.clear()
    desk = await deploy(workflow("w", think(attempts=3)))
    run = await desk.start("w")
    assert await seen.finished(run) == ["failed"]
    assert model.count == 3
    assert seen.run(run)["reason"].startswith('step "think": provider "openai" answered 500')


@pytest.mark.parametrize("wrong", [invalid_json, wrong_schema])
async def test_two_corrections(wrong: Callable[[], Behaviour], deploy: Deploy, seen: Observer, model: Model) -> None:
    """Wrong twice, then right: one attempt of the step, three calls, all of them paid for."""
    model.script(wrong(), wrong(), answer(GOOD))
    desk = await deploy(workflow("w", think()))
    run = await desk.start("w")
    assert await seen.finished(run) == ["succeeded"]
    assert model.count == 3
    assert seen.kinds(run) == ["run_started", "step_succeeded think"]
    sent = [sum(len(turn["content"].split()) for turn in one.body["messages"]) for one in model.requests]
    assert sent == sorted(set(sent)), "a correction adds to the conversation"
    wrong_words = len((wrong().content or "").split())
    assert (seen.run(run)["input_tokens"], seen.run(run)["output_tokens"]) == (sum(sent), 2 * wrong_words + 4)


async def test_never_valid(deploy: Deploy, seen: Observer, model: Model) -> None:
    model.always(answer({"verdict": "MARKER-VERDICT", "words": 7, "MARKERKEY": 1}))
    model.answers.clear()
    desk = await deploy(workflow("w", think(attempts=3)))
    run = await desk.start("w")
    assert await seen.finished(run) == ["failed"]
    assert model.count == 3, "an answer that breaks its schema to the end is not worth another attempt"
    failure = seen.journal(run)[-1]["failure"]
    assert failure["kind"] == "invalid"
    assert "gave no valid answer in 3 attempts" in failure["message"]
    assert seen.run(run)["input_tokens"] > 0
    # What the model said wrongly is nobody's business.
    assert "MARKER-VERDICT" not in seen.everywhere()


async def test_tokens_of_failed_attempts_count(deploy: Deploy, seen: Observer, model: Model) -> None:
    """Wrong, then a 500 while correcting: the attempt fails and cost something; the next one succeeds."""
    model.script(invalid_json("not json at all"), server_error(), answer(GOOD))
    desk = await deploy(workflow("w", think()))
    run = await desk.start("w")
    assert await seen.finished(run) == ["succeeded"]
    failed = next(event for event in seen.journal(run) if event["type"] == "step_failed")
    assert failed["usage"] == {
        "provider": "openai", "model": "fake", "input_tokens": 4, "output_tokens": 4, "cached_tokens": 0,
        "cache_write_tokens": 0, "reasoning_tokens": 0, "attempts": 2, "known_cost": 0, "unpriced": 1,
    }  # fmt: skip
    assert (seen.run(run)["input_tokens"], seen.run(run)["output_tokens"]) == (4 + GOOD_TOKENS[0], 4 + GOOD_TOKENS[1])
    (first, second) = [one["detail"] for one in seen.audit(run) if one["event_type"] == "model.call"]
    assert (first["input_tokens"], second["input_tokens"]) == (4, 4)


async def test_tokens_of_failed_attempts_count_against_the_budget(deploy: Deploy, seen: Observer, model: Model) -> None:
    """58 tokens may be needed and 8 are spent by the failed attempt; 65 are too few for another."""
    model.script(invalid_json("not json at all"), server_error())
    desk = await deploy(workflow("w", think(), extra="budget: {tokens: 65}\n"))
    run = await desk.start("w")
    assert await seen.finished(run) == ["partial"]
    assert model.count == 2
    assert seen.run(run)["reason"].endswith("and 8 of the run's 65 are used")


async def test_a_run_that_was_taken_away_hangs_up(deploy: Deploy, seen: Observer, model: Model) -> None:
    """Whoever lost the lease lets go of the call under way: the provider sees the connection go."""
    model.script(hang())
    desk = await deploy(workflow("w", think(timeout=60)))
    run = await desk.start("w")
    await until(lambda: model.count == 1, lambda: "the model is not asked")
    seen.rows("update queue set fence = fence + 1 where run_id = %s returning 1", run)
    await desk.cancel(run)  # wakes the drive, which then finds that it may not write
    await until(lambda: model.disconnects == 1, lambda: "still connected")
