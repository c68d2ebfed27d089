"""Text from outside, in names as well as in values, breaks no journal and stands in no record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from engines.harness import Bank, Model, Observer, pay, refund_tool, think, until, workflow
from execution.conftest import Deploy
from interlock.base.errors import InvalidInput
from interlock.execution import kernel
from interlock.telemetry import logs
from interlock.testing import answer

CANARY = "alice@example.com, SSN 078-05-1120"
NUL = "a\0b"
ONCE = "retry: {max_attempts: 1}, "
SAY = (
    "- {id: say, kind: model, prompt: think, values: {text: $input.text}, max_tokens: 50, retry: {max_attempts: 1},\n"
    "   output: {title: say, type: object, properties: {ok: {type: boolean}}, additionalProperties: %s}}\n"
)
ODD_TOOL = """\
name: odd
description: Answers with a name of its own.
effect: pure
input: {type: object, properties: {name: {type: string}}}
output: {type: object, properties: {text: {type: string}}, additionalProperties: {type: integer}}
"""
# The name is made inside: no input may hold a NUL.
ODD_CODE = """\
def run(name=None):
    return {name or "a\\x00b": "x"}
"""
ODD = "- {id: odd, kind: tool, tool: odd, %sinput: {name: $input.text}}\n"
ODD_FILES = {"tools/odd/tool.yaml": ODD_TOOL, "tools/odd/main.py": ODD_CODE}
# Pays, and answers with more than it may.
LOOSE = """

pay_out = run


def run(**given):
    pay_out(**given)
    return {"%s": "x"}
"""


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "log.jsonl"
    logs.configure(level="debug", file=file)
    yield file
    structlog.reset_defaults()


def paying_oddly(name: str, *promises: str) -> dict[str, str]:
    return refund_tool("odd_refund", "bank", *promises, code=LOOSE % name.replace("\0", "\\x00"))


@pytest.mark.parametrize("closed", ["{type: integer}", "false"])
@pytest.mark.parametrize("name", [NUL, CANARY, "x" * 100_000, "\x1b[31m\u202e\n"], ids=["NUL", "person", "long", "odd"])
async def test_a_name_in_a_models_answer_is_corrected_and_recorded_as_a_failure(
    deploy: Deploy, seen: Observer, model: Model, log_file: Path, closed: str, name: str
) -> None:
    model.always(answer(json.dumps({name: "x"})))
    desk = await deploy(workflow("w", SAY % closed))
    run = await desk.start("w")
    assert await seen.finished(run) == ["failed"]
    assert model.asked("say") == 3, "an answer and two corrections"
    assert seen.kinds(run) == ["run_started", "step_failed say"]
    row = seen.run(run)
    assert row["input_tokens"] > 0
    assert row["output_tokens"] > 0
    assert row["reason"].isprintable()
    assert len(row["reason"]) < 700
    assert seen.rows("select purpose from dead_letters") == [("run",)]
    await desk.flush()
    for text in (seen.everywhere(), log_file.read_text()):
        assert "alice" not in text
        assert "078-05" not in text
        assert "x" * 1000 not in text


async def test_a_name_in_a_pure_tools_answer_fails_the_step(deploy: Deploy, seen: Observer, log_file: Path) -> None:
    desk = await deploy(ODD_FILES, workflow("w", ODD % ONCE, allow="odd"))
    runs = [await desk.start("w", text=text) for text in ("", CANARY)]
    assert await seen.finished(*runs) == ["failed"] * 2
    for run in runs:
        assert seen.kinds(run) == ["run_started", "step_failed odd"]
    assert "is a string; must be a whole number" in seen.run(runs[1])["reason"]
    assert "/" not in seen.run(runs[1])["reason"]
    await desk.flush()
    assert "alice" not in log_file.read_text()
    told = seen.rows("select event from journal union all select entry from audit union all select payload from outbox")
    assert "alice" not in str(told)


@pytest.mark.parametrize("promise", ["honours_idempotency", "probe", ""])
@pytest.mark.parametrize("name", [NUL, "ab"], ids=["NUL", "plain"])
async def test_a_mutating_tool_is_called_once_and_a_person_is_asked(
    deploy: Deploy, seen: Observer, bank: Bank, promise: str, name: str
) -> None:
    step = pay("pay", "odd_refund", "bank")
    desk = await deploy(paying_oddly(name, *([promise] if promise else [])), workflow("w", step, allow="odd_refund"))
    run = await desk.start("w")
    await seen.review(run, "confirm")
    assert bank.requests == 1
    assert seen.effect(run) == "unknown"
    assert seen.kinds(run) == ["run_started", "step_failed pay"]


async def test_a_caller_is_refused_at_the_door(deploy: Deploy, seen: Observer) -> None:
    desk = await deploy(
        workflow("w", think()).copy()
        | {
            "workflows/open.yaml": "name: open\ninput: {type: object}\nsteps:\n"
            "  - {id: note, kind: tool, tool: note, input: {text: x}}\nallow: [note]\noutput: {}\n"
        }
    )
    for value in ({"o": {NUL: "x"}}, {"o": [NUL]}, {"n": 10**400}, {"o": "\ud800"}, {"o": float("inf")}):
        with pytest.raises(InvalidInput):
            await desk.app.submission.accept(desk.admin, "open", value, None)
    assert seen.rows("select count(*) from runs") == [(0,)]


async def test_one_bad_item_of_a_map_leaves_the_others(deploy: Deploy, seen: Observer, model: Model) -> None:
    inner = SAY.replace("\n ", " ").strip() % "{type: integer}"
    steps = (
        "- id: each\n  kind: map\n  items: [a, b, c, d]\n  concurrency: 4\n  on_item_failure: continue\n"
        f"  steps:\n    {inner}\n"
    ).replace("items: [a, b, c, d]", "items: $steps.list.items")
    lister = {
        "tools/lister/tool.yaml": "name: lister\ndescription: Four items.\neffect: pure\ninput: {type: object}\n"
        "output: {type: object, properties: {items: {type: array}}, required: [items]}\n",
        "tools/lister/main.py": 'def run():\n    return {"items": ["a", "b", "c", "d"]}\n',
    }
    model.script(*[answer(json.dumps({NUL: "x"}))])
    model.answers["say"] = {"ok": True}
    model.script(*[answer(json.dumps({NUL: "x"}))] * 2)
    desk = await deploy(
        lister,
        workflow("w", "- {id: list, kind: tool, tool: lister}\n", steps, allow="lister", output="{each: $steps.each}"),
    )
    run = await desk.start("w")
    assert await seen.finished(run) == ["succeeded"]
    each = (await desk.result(run))["each"]
    assert len(each) == 4
    assert sum(one is not None for one in each) >= 3


# -- a transaction that PostgreSQL refuses -----------------------------------------------------------------------


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The verdicts of calls whose facts are spoiled, only the first: PostgreSQL takes no NUL, so it refuses the journal."""
    spoiled: list[str] = []
    original = kernel.facts_of

    def spoil(schema: Any, value: Any) -> Any:
        if spoiled or not isinstance(value, dict):
            return original(schema, value)
        spoiled.append("once")
        return {"verdict": "\0"}

    monkeypatch.setattr(kernel, "facts_of", spoil)
    return spoiled


async def test_a_refused_outcome_is_a_failure_of_its_step_and_costs_what_it_cost(
    deploy: Deploy, seen: Observer, model: Model, refused: list[str]
) -> None:
    """The step after it has begun already when the refusal comes; it is void."""
    note = "- {id: note, kind: tool, tool: note, input: {text: $steps.think.words}}\n"
    model.answers["think"] = {"verdict": "good", "words": "well"}
    desk = await deploy(workflow("w", think(), note, allow="note"))
    run = await desk.start("w")
    assert await seen.finished(run) == ["failed"]
    assert model.asked("think") == 1
    assert seen.kinds(run) == ["run_started", "step_failed think"]
    assert seen.run(run)["output_tokens"] > 0
    assert refused
    assert "database refused" in seen.run(run)["reason"]
    assert seen.rows("select purpose from dead_letters") == [("run",)]
    seen.story(run)


async def test_steps_beside_a_refused_one_are_neither_lost_nor_repeated(
    deploy: Deploy, seen: Observer, model: Model, bank: Bank, refused: list[str]
) -> None:
    model.answers["think"] = model.answers["other"] = {"verdict": "good", "words": "well"}
    model.hold("other")
    tolerant = think().rstrip() + "\n  on_failure: continue\n"

    def indent(text: str) -> str:
        return "".join("      " + line for line in text.splitlines(keepends=True))

    both = (
        "- id: both\n  kind: parallel\n  branches:\n    a:\n" + indent(tolerant) + "    b:\n" + indent(think("other"))
    )
    step = pay("pay", "refund", "bank")
    desk = await deploy(workflow("w", both, step, allow="refund"))
    run = await desk.start("w")
    await until(lambda: "step_failed think" in seen.kinds(run), lambda: f"{seen.kinds(run)}")
    model.release("other")
    assert await seen.finished(run) == ["partial"]
    assert (model.asked("think"), model.asked("other")) == (1, 1)
    assert list(bank.refunds.values()) == [1]
    assert seen.kinds(run)[:2] == ["run_started", "step_failed think"]
    seen.story(run)


async def test_a_refused_outcome_of_a_mutating_tool_is_in_doubt(
    deploy: Deploy, seen: Observer, bank: Bank, refused: list[str]
) -> None:
    desk = await deploy(workflow("w", pay("pay", "refund", "bank"), allow="refund"))
    run = await desk.start("w")
    await seen.review(run, "confirm")
    assert (bank.requests, refused) == (1, ["once"])
    assert seen.kinds(run) == ["run_started", "step_failed pay"]
    assert seen.effect(run) == "unknown"
