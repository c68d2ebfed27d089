"""The port of policy engines: an engine behind HTTP can implement it, and every failure of an engine is a refusal."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from interlock.policy.decision import (
    NO_APPROVAL,
    NO_POLICIES,
    ApprovalFacts,
    Decision,
    PolicyEngine,
    Question,
    decide,
)

from .opa import OpaEngine, OpaServer

QUESTION = Question(
    "ada", "acme", frozenset({"operator"}), "call_tool", "pay", {"effect": "mutating"}, {"trust": "user"}
).approved(NO_APPROVAL)


@pytest.fixture
async def opa() -> AsyncIterator[OpaServer]:
    async with OpaServer().running() as server:
        yield server


@pytest.fixture
async def engine(opa: OpaServer) -> AsyncIterator[OpaEngine]:
    async with aiohttp.ClientSession() as session:
        yield OpaEngine(opa.url, session)


async def test_an_engine_behind_http_gets_the_question_and_its_answer_counts(opa: OpaServer, engine: OpaEngine) -> None:
    asked = QUESTION.approved(
        ApprovalFacts(True, frozenset({"reviewer"}), 1, True, frozenset({"rev_1"}), frozenset({"bob"}))
    )
    assert await decide(engine, asked) == Decision(True, ("opa",), "bundle-1")
    opa.result = {"allow": False, "reasons": ["too much"]}
    assert await decide(engine, asked) == Decision(False, ("too much",), "bundle-1")
    approval = {
        "present": True,
        "roles": ["reviewer"],
        "quorum": 1,
        "digest_matches": True,
        "reviews": ["rev_1"],
        "approvers": ["bob"],
    }
    assert opa.asked == [
        {
            "principal": {"id": "ada", "org": "acme", "roles": ["operator"]},
            "action": "call_tool",
            "resource": {"id": "pay", "effect": "mutating"},
            "context": {"trust": "user", "approval": approval},
        }
    ] * 2  # fmt: skip


@pytest.mark.parametrize("fault", ["500", "text"])
async def test_an_answer_that_is_none_is_a_refusal(opa: OpaServer, engine: OpaEngine, fault: str) -> None:
    opa.fault = fault
    answer = await decide(engine, QUESTION)
    assert not answer.allowed
    assert answer.reasons[0].startswith("the policy engine failed: ")
    opa.fault = ""
    assert (await decide(engine, QUESTION)).allowed


@pytest.mark.parametrize(
    "result",
    [
        None,
        {},
        {"allow": True},
        {"allow": True, "reasons": []},
        {"allow": "true", "reasons": ["x"]},
        {"allow": 1, "reasons": ["x"]},
        {"allow": None, "reasons": ["x"]},
        [],
        "allow",
    ],
    ids=str,
)
async def test_an_answer_of_another_shape_is_a_refusal(opa: OpaServer, engine: OpaEngine, result: Any) -> None:
    opa.result = result
    assert not (await decide(engine, QUESTION)).allowed


async def test_no_answer_in_time_is_a_refusal(opa: OpaServer, engine: OpaEngine) -> None:
    opa.fault = "silence"
    answer = await decide(engine, QUESTION, seconds=0.05)
    assert answer == Decision(False, ("the policy engine failed: no answer in time",), "bundle-1")
    assert len(opa.asked) == 1


async def test_a_refused_connection_is_a_refusal() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    async with aiohttp.ClientSession() as session:
        answer = await decide(OpaEngine(url, session), QUESTION)
    assert answer == Decision(False, ("the policy engine failed: ClientConnectorError",), "bundle-1")


class _Odd:
    """An engine that raises, or answers with something else."""

    immediate = False

    def __init__(self, gives: Any) -> None:
        self.version = "odd"
        self._gives = gives

    async def decide(self, question: Question) -> Decision:
        if isinstance(self._gives, BaseException):
            raise self._gives
        return self._gives  # type: ignore[no-any-return]


@pytest.mark.parametrize("gives", [None, True, {"allowed": True}, ValueError("secret"), KeyError("x"), TimeoutError()])
async def test_a_faulty_engine_refuses_and_does_not_repeat_what_it_read(gives: Any) -> None:
    engine: PolicyEngine = _Odd(gives)
    answer = await decide(engine, QUESTION)
    assert not answer.allowed
    assert answer.version == "odd"
    assert "secret" not in str(answer)


async def test_a_cancelled_decision_is_cancelled() -> None:
    with pytest.raises(asyncio.CancelledError):
        await decide(_Odd(asyncio.CancelledError()), QUESTION)


async def test_without_policies_everything_is_refused() -> None:
    assert not (await decide(NO_POLICIES.of("acme"), QUESTION)).allowed
