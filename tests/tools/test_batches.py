"""Batches: calls of one run share a sandbox, and nobody gets anything but an answer of their own.

Every sandbox gives itself a random name when it loads the tool, so that the answers tell who was in it with whom.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from interlock.base.clock import since_boot
from interlock.base.errors import FailureKind, NothingHappened, SandboxError
from interlock.execution.effects import call_ends
from interlock.sandbox.bubblewrap import BubblewrapSandbox
from interlock.sandbox.environment import SandboxResult
from interlock.tools.bundles import pack, unpack
from interlock.tools.registry import Tool, Tools, error_of
from interlock.workflows.contracts import ToolContract
from sandbox.conftest import processes_with

CONTRACT: dict[str, Any] = {
    "name": "echo",
    "description": "",
    "effect": "pure",
    "input": {"type": "object"},
    "output": {"type": "object"},
    "timeout": 20,
}
# Says what it was told, in which sandbox, and which runs' calls were there.
ECHO = """
import uuid
NAME = uuid.uuid4().hex
def run(text, context):
    return {"text": text, "sandbox": NAME, "alone": True, "key": context["key"]}
def run_batch(calls, context):
    return [
        {"output": {"text": call["arguments"]["text"], "sandbox": NAME, "alone": False, "key": call["context"]["key"],
                    "runs": sorted({call["context"]["run_id"] for call in calls} | {context["run_id"]})}}
        for call in calls
    ]
"""
# `answer` of the first call is what the whole batch answers.
PUPPET = """
import os, time
from interlock_tool import Fail, Retry
def run(answer): return {"alone": True}
def run_batch(calls):
    answer = calls[0]["arguments"]["answer"]
    if answer == "exit": os._exit(3)
    if answer == "hang": time.sleep(600)
    if answer == "raise": raise ValueError("Smith: 17")
    if answer == "retry": raise Retry("busy", retry_after=7)
    return answer
"""
# Holds a process that the host can see, and takes its time.
BEACON = """
import subprocess, time
def run(marker, seconds): return run_batch([{"arguments": {"marker": marker, "seconds": seconds}}])[0]["output"]
def run_batch(calls):
    subprocess.Popen(["sleep", calls[0]["arguments"]["marker"]])
    time.sleep(calls[0]["arguments"]["seconds"])
    return [{"output": {"shared": len(calls)}} for _ in calls]
"""

Make = Callable[..., "Caller"]


class Caller:
    """Calls one tool as the executors do."""

    def __init__(self, tools: Tools, tool: Tool) -> None:
        self.tools, self.tool = tools, tool

    async def __call__(
        self, run: str | None = "run-1", step: str = "s", until: float | None = None, **given: Any
    ) -> SandboxResult:
        context = {"run_id": run, "step": step, "attempt": 1, "key": f"{run}/{step}"}
        if run is None:
            del context["run_id"]
        return await self.tools.call(
            self.tool, "run", given, context=context, allowed=frozenset({self.tool.contract.name}), until=until
        )


@pytest.fixture
async def sandbox() -> AsyncIterator[BubblewrapSandbox]:
    sandbox = BubblewrapSandbox(warm=0)
    yield sandbox
    await sandbox.close()


@pytest.fixture
def make(tmp_path: Path, sandbox: BubblewrapSandbox) -> Make:
    """A tool of this source; all tools of a test are called by the same `Tools`."""
    packed: dict[str, bytes] = {}

    async def locate(bundle: str) -> Path:
        return unpack(bundle, packed[bundle], tmp_path / "cache")

    tools = Tools(sandbox, locate)

    def make(source: str, *, most: int = 10, wait: float = 5.0, **contract: Any) -> Caller:
        directory = tmp_path / f"tool{len(packed)}"
        directory.mkdir()
        (directory / "main.py").write_text(source)
        digest, content = pack(directory)
        packed[digest] = content
        whole = {**CONTRACT, "batch": {"max": most, "wait": wait}, **contract}
        return Caller(tools, Tool(ToolContract.model_validate(whole), digest))

    return make


def rooms(results: list[SandboxResult]) -> dict[str, list[Any]]:
    """Sandbox → what was said in it."""
    found: dict[str, list[Any]] = {}
    for result in results:
        assert result.ending == "ok", result
        found.setdefault(result.output["sandbox"], []).append(result.output)
    return found


# -- who meets whom ----------------------------------------------------------------------------------------------


async def test_calls_of_one_run_share_a_sandbox_and_each_gets_its_own_answer(make: Make) -> None:
    echo = make(ECHO, most=5)
    results = await asyncio.gather(*(echo(step=f"s{n}", text=f"é{n}") for n in range(5)))
    assert [(one.output["text"], one.output["key"]) for one in results] == [(f"é{n}", f"run-1/s{n}") for n in range(5)]
    assert len(rooms(results)) == 1
    assert not any(one.output["alone"] for one in results)


async def test_a_full_batch_goes_and_the_rest_makes_the_next(make: Make) -> None:
    echo = make(ECHO, most=3, wait=0.3)
    results = await asyncio.gather(*(echo(step=f"s{n}", text=str(n)) for n in range(7)))
    sizes = sorted(len(said) for said in rooms(results).values())
    assert sizes == [1, 3, 3]
    assert [one.output["alone"] for one in results] == [False] * 6 + [True], "a batch of one is a single call"


async def test_runs_never_share_a_sandbox(make: Make) -> None:
    """Four runs' calls come all at once and mixed; and a call that does not say its run has no company at all."""
    echo = make(ECHO, most=50, wait=0.3)
    calls = [(run, f"s{n}") for run in ("run-1", "run-2", "run-3", "run-4", None) for n in range(4)]
    random.Random(3).shuffle(calls)
    results = await asyncio.gather(*(echo(run=run, step=step, text=f"{run}/{step}") for run, step in calls))
    found = rooms(results)
    assert len(found) == 4 + 4
    for said in found.values():
        assert len({one["text"].partition("/")[0] for one in said}) == 1
        assert said[0].get("runs", [""]) in ([""], [said[0]["text"].partition("/")[0]])
    assert Counter(one["alone"] for said in found.values() for one in said) == {False: 16, True: 4}


async def test_only_the_same_code_under_the_same_limits_meets(make: Make) -> None:
    first, other = make(ECHO, wait=0.3), make(ECHO + "\n", wait=0.3)
    roomier = Caller(
        first.tools,
        Tool(first.tool.contract.model_copy(update={"timeout": 19.0}), first.tool.bundle),
    )
    callers = [first, other, roomier] * 2
    results = await asyncio.gather(*(one(step=f"s{n}", text=str(n)) for n, one in enumerate(callers)))
    assert sorted(sorted(one["text"] for one in said) for said in rooms(results).values()) == [
        ["0", "3"],
        ["1", "4"],
        ["2", "5"],
    ]


async def test_without_the_promise_every_call_has_its_own(make: Make) -> None:
    echo = make(ECHO, batch=None)
    results = await asyncio.gather(*(echo(step=f"s{n}", text=str(n)) for n in range(3)))
    assert len(rooms(results)) == 3


async def test_hundreds_at_once_with_some_cancelled(make: Make) -> None:
    """Whoever stays gets its own answer, in company of its own run; whoever goes is gone."""
    echo, chance = make(ECHO, most=20, wait=0.2), random.Random(11)
    names = [(f"run-{chance.randrange(3)}", f"s{n}") for n in range(200)]
    tasks = []
    for run, step in names:
        tasks.append(asyncio.create_task(echo(run=run, step=step, text=f"{run} {step}")))
        if chance.random() < 0.2:
            await asyncio.sleep(0.01)
        if chance.random() < 0.2:
            chance.choice(tasks).cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    stayed = [(name, one) for name, one in zip(names, results, strict=True) if isinstance(one, SandboxResult)]
    assert 100 < len(stayed) < 200
    assert all(isinstance(one, SandboxResult | asyncio.CancelledError) for one in results)
    for (run, step), result in stayed:
        assert (result.ending, result.output["text"], result.output["key"]) == ("ok", f"{run} {step}", f"{run}/{step}")
        assert result.output.get("runs", [run]) == [run]
    assert len(rooms([one for _, one in stayed])) < len(stayed)


# -- how it goes wrong -------------------------------------------------------------------------------------------


async def test_a_bad_item_fails_alone(make: Make) -> None:
    puppet = make(PUPPET, most=4)
    items = [
        {"output": {"alone": False}},
        {"error": "Smith: insolvent", "retryable": True, "retry_after": 7},
        {"error": "no such account", "nothing_happened": True},
        {"error": "Smith: odd"},
    ]
    good, busy, refused, odd = await asyncio.gather(*(puppet(step=f"s{n}", answer=items) for n in range(4)))
    assert good.output == {"alone": False}
    contract = puppet.tool.contract
    patience = error_of(contract, busy)
    assert (patience.kind, patience.retry_after) == (FailureKind.RATE_LIMITED, 7)
    assert isinstance(error_of(contract, refused), NothingHappened)
    error = error_of(contract, odd)
    assert (str(error), error.kind) == ('tool "echo" failed (ItemError)', FailureKind.PERMANENT)
    assert error.error_detail is not None
    assert error.error_detail.message == "ItemError: Smith: odd", "for those who may read it"
    # An item's own error is no reason to be kept apart the next time.
    again = [{"output": {"alone": False}}] * 4
    results = await asyncio.gather(*(puppet(step=f"s{n}", answer=again) for n in range(4)))
    assert [one.output["alone"] for one in results] == [False] * 4


GOOD: dict[str, Any] = {"output": {}}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "must return a list"),
        ({"output": {}}, "must return a list"),
        ([GOOD], "returned 1 items for 2 calls"),
        ([GOOD] * 3, "returned 3 items for 2 calls"),
        ([GOOD, {}], "item 1 "),
        ([None, GOOD], "item 0 "),
        ([GOOD, {"output": {}, "error": "x"}], "item 1 "),
        ([GOOD, {"output": {}, "retryable": False}], "item 1 "),
        ([GOOD, {"error": None}], "item 1 "),
        ([GOOD, {"error": "x", "retryable": 1}], "item 1 "),
        ([GOOD, {"error": "x", "nothing_happened": "yes"}], "item 1 "),
        ([GOOD, {"error": "x", "retry_after": "soon"}], "item 1 "),
        ([GOOD, {"error": "x", "retry_after": True}], "item 1 "),
        ([GOOD, {"error": "x", "retry_after": -1}], "item 1 "),
        ([GOOD, {"error": "x", "retry_after": 1e9}], "item 1 "),
        ([GOOD, {"error": "x", "retry_after": 10**400}], "item 1 "),
        ([GOOD, {"error": "x", "status": 500}], "item 1 "),
    ],
)
async def test_an_answer_of_the_wrong_shape_is_everybodys_failure(make: Make, answer: Any, said: str) -> None:
    puppet = make(PUPPET, most=2)
    for result in await asyncio.gather(puppet(step="a", answer=answer), puppet(step="b", answer=answer)):
        assert (result.ending, result.output) == ("garbage", None)
        assert said in str(result.error)
        assert "or not what run_batch must return" in str(error_of(puppet.tool.contract, result))


@pytest.mark.parametrize(
    ("how", "ending", "alone"),
    [("exit", "crashed", True), ("hang", "timeout", True), ("raise", "raised", True), ("retry", "raised", False)],
)
async def test_what_breaks_a_batch_breaks_it_once(make: Make, how: str, ending: str, alone: bool) -> None:
    """Each caller hears it. The next time they go alone, unless the tool asked for patience; after that, together again."""
    puppet = make(PUPPET, most=2, timeout=12 if how == "hang" else 60)
    results = await asyncio.gather(puppet(step="a", answer=how), puppet(step="b", answer=how))
    assert [one.ending for one in results] == [ending] * 2
    assert "Smith" not in str(error_of(puppet.tool.contract, results[0]))
    for expected in (alone, False):
        good = [{"output": {"alone": False}}] * 2
        results = await asyncio.gather(puppet(step="a", answer=good), puppet(step="b", answer=good))
        assert [one.output["alone"] for one in results] == [expected] * 2


async def test_no_sandbox_is_everybodys_error(make: Make, sandbox: BubblewrapSandbox) -> None:
    echo = make(ECHO, most=2)
    await sandbox.close()
    results = await asyncio.gather(echo(step="a", text=""), echo(step="b", text=""), return_exceptions=True)
    assert [type(one) for one in results] == [SandboxError] * 2


async def test_an_argument_called_context_harms_its_own_call_only(make: Make) -> None:
    echo = make(ECHO, most=2, wait=0.3)
    good, forged, other = await asyncio.gather(
        echo(step="a", text="a"), echo(step="b", text="b", context={"key": "stolen"}), echo(step="c", text="c")
    )
    assert forged.ending == "raised"
    assert '"context" is reserved' in str(forged.error)
    assert len(rooms([good, other])) == 1


# -- deadlines ---------------------------------------------------------------------------------------------------


async def test_nothing_goes_out_after_the_earliest_promise(make: Make) -> None:
    """The tool would hang for ten minutes; the call that may last longest ends with the one that may not."""
    beacon, marker = make(BEACON, most=2, timeout=600), f"7{secrets.randbelow(10**8):08d}"
    now = since_boot()
    async with asyncio.timeout(120):
        results = await asyncio.gather(
            beacon(step="a", marker=marker, seconds=600, until=now + 500),
            beacon(step="b", marker=marker, seconds=600, until=now + 3),
        )
    assert [one.ending for one in results] == ["timeout"] * 2
    assert processes_with(f"sleep\0{marker}") == []


async def test_waiting_for_company_costs_a_call_nothing_of_its_time(make: Make) -> None:
    """It waits in vain, until a call without a batch would be over with all its reserves; and then has all its time."""
    beacon = make(BEACON, most=9, wait=5, timeout=3, effect="mutating", honours_idempotency=True)
    for _ in range(5):  # a machine that stands still costs time, too
        until = call_ends(beacon.tool.contract)
        result = await beacon(step="a", marker="0", seconds=0.1, until=until)
        if result.ending == "ok":
            break
    assert result.ending == "ok", result


# -- callers who go ----------------------------------------------------------------------------------------------


async def seen(marker: str) -> None:
    async with asyncio.timeout(120):
        while not processes_with(f"sleep\0{marker}"):
            await asyncio.sleep(0.02)


async def test_who_goes_before_the_batch_is_not_in_it(make: Make) -> None:
    beacon, marker = make(BEACON, most=10, wait=0.5), f"7{secrets.randbelow(10**8):08d}"
    tasks = [asyncio.create_task(beacon(step=f"s{n}", marker=marker, seconds=0)) for n in range(4)]
    batches = beacon.tools._batches
    while not any(len(one.calls) == 4 for one in batches._gathering.values()):
        await asyncio.sleep(0)
    tasks[0].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert [one.output for one in results[1:]] == [{"shared": 3}] * 3  # type: ignore[union-attr]


async def test_who_goes_from_a_batch_leaves_it_to_the_others(make: Make) -> None:
    beacon, marker = make(BEACON, most=3), f"7{secrets.randbelow(10**8):08d}"
    tasks = [asyncio.create_task(beacon(step=f"s{n}", marker=marker, seconds=12)) for n in range(3)]
    await seen(marker)
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    assert processes_with(f"sleep\0{marker}"), "it goes on"
    assert [one.output for one in await asyncio.gather(*tasks[1:])] == [{"shared": 3}] * 2


async def test_with_the_last_caller_the_sandbox_is_killed(make: Make) -> None:
    beacon, marker = make(BEACON, most=3), f"7{secrets.randbelow(10**8):08d}"
    tasks = [asyncio.create_task(beacon(step=f"s{n}", marker=marker, seconds=600)) for n in range(3)]
    await seen(marker)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)
    assert processes_with(f"sleep\0{marker}") == []
    # And nothing of them is left for those who come next.
    fresh = await asyncio.gather(*(beacon(step=f"s{n}", marker="0", seconds=0) for n in range(3)))
    assert [one.output for one in fresh] == [{"shared": 3}] * 3


# -- the contract ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"batch": {"max": 1}}, "greater than or equal to 2"),
        ({"batch": {"max": 1001}}, "less than or equal to 1000"),
        ({"batch": {}}, "Field required"),
        ({"batch": {"max": 2, "wait": -0.1}}, "greater than or equal to 0"),
        ({"batch": {"max": 2, "wait": 6}}, "less than or equal to 5"),
        ({"batch": {"max": 2, "size": 3}}, "Extra inputs are not permitted"),
        ({"effect": "mutating", "batch": {"max": 2}}, "only the keys tell which of its calls took effect"),
        ({"effect": "mutating", "probe": True, "batch": {"max": 2}}, "declare honours_idempotency"),
        (
            {"effect": "mutating", "honours_idempotency": True, "commit": True, "batch": {"max": 2}},
            "remove batch or commit",
        ),
    ],
)
def test_promises_that_cannot_be_kept_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ToolContract.model_validate({**CONTRACT, **fields})
