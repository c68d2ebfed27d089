"""Eval suites: what a case expects, and how it is compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from interlock.base.errors import InvalidSpec
from interlock.evals.suite import EvalCase, Expectation, Suite, read_suites, run_case


def suite_of(**expect: Any) -> Suite:
    return Suite(workflow="answer", cases=[EvalCase(name="one", input={"question": "?"}, expect=Expectation(**expect))])


def ended(status: str = "succeeded", output: Any = None, **facts: Any) -> dict[str, Any]:
    return {
        "status": status,
        "output": output,
        "steps": [{"id": name, "facts": value} for name, value in facts.items()],
    }


async def problems(suite: Suite, result: dict[str, Any]) -> tuple[str, ...]:
    asked: list[tuple[str, Any]] = []

    async def run(workflow: str, value: Any) -> dict[str, Any]:
        asked.append((workflow, value))
        return result

    report = await run_case(run, suite, suite.cases[0])
    assert asked == [("answer", {"question": "?"})]
    assert (report.case, report.workflow) == ("one", "answer")
    assert report.passed is (not report.problems)
    return report.problems


async def test_what_is_not_named_is_not_looked_at() -> None:
    assert await problems(suite_of(), ended(output={"any": 1}, search={"found": 0})) == ()
    assert await problems(suite_of(output={"a": 1}), ended(output={"a": 1, "b": 2})) == ()
    assert await problems(suite_of(facts={"x": {"a": 1}}), ended(x={"a": 1, "b": 2}, y={})) == ()


async def test_every_difference_is_told() -> None:
    suite = suite_of(
        status="partial", output={"topic": "a", "more": 1}, facts={"search": {"found": 1}, "none": {"x": True}}
    )
    assert await problems(suite, ended(output={"topic": "b"}, search={"found": 0})) == (
        "status is succeeded, not partial",
        "output.topic is 'b', not 'a'",
        "output.more is None, not 1",
        "search.found is 0, not 1",
        "none.x is None, not True",
    )
    assert await problems(suite_of(output={"a": 1}), ended("failed")) == (
        "status is failed, not succeeded",
        "output.a is None, not 1",
    )


@pytest.mark.parametrize(
    ("wanted", "got", "same"),
    [
        (1, 1, True),
        (1, 1.0, True),
        (1, True, False),
        (True, 1, False),
        (0, False, False),
        (False, None, False),
        (None, None, True),
        ("1", 1, False),
        ([1, {"a": True}], [1.0, {"a": True}], True),
        ([1, {"a": True}], [1, {"a": 1}], False),
        ([1], [1, 2], False),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({}, [], False),
    ],
)
async def test_values_are_compared_as_json(wanted: Any, got: Any, same: bool) -> None:
    found = await problems(suite_of(output={"x": wanted}), ended(output={"x": got}))
    assert (found == ()) is same


def write(directory: Path, name: str, content: str | bytes) -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())


GOOD = "workflow: answer\ncases:\n  - name: one\n    input: {question: hi}\n"


def test_suites_are_read_in_order(tmp_path: Path) -> None:
    evals = tmp_path / "evals"
    write(evals, "b.yaml", GOOD.replace("answer", "second"))
    write(evals, "a.yml", GOOD)
    write(evals, ".draft.yaml", "nonsense: [")
    write(evals, "notes.txt", "nothing")
    suites = read_suites(evals)
    assert [suite.workflow for suite in suites] == ["answer", "second"]
    assert suites[0].cases[0].expect.status == "succeeded"


def test_faults_are_told_with_file_and_line_all_at_once(tmp_path: Path) -> None:
    evals = tmp_path / "evals"
    write(evals, "a.yaml", GOOD + "    expect: {status: fine, facts: 1}\n")
    write(evals, "b.yaml", GOOD.replace("workflow: answer\n", ""))
    write(evals, "c.yaml", b"\xff\xfe")
    write(evals, "d.yaml", "workflow: answer\ncases: []\n")
    write(evals, "e.yaml", GOOD + "    expct: {}\n")
    write(evals, "f.yaml", "cases: [")
    with pytest.raises(InvalidSpec) as refused:
        read_suites(evals)
    lines = str(refused.value).splitlines()
    begins = ["evals/a.yaml:5: ", "evals/a.yaml:5: ", "evals/b.yaml:1: ", "evals/c.yaml: "]
    begins += ["evals/d.yaml:2: ", "evals/e.yaml:5: ", "evals/f.yaml:"]
    assert len(lines) == len(begins)
    for line, begin in zip(lines, begins, strict=True):
        assert line.startswith(begin), line


def test_a_directory_without_cases_is_told(tmp_path: Path) -> None:
    for directory in (tmp_path / "none", tmp_path):
        with pytest.raises(InvalidSpec, match=r"holds no eval cases; add NAME\.yaml"):
            read_suites(directory)
