"""Broken definition files: whatever a file holds, what comes out is a definition or InvalidSpec, never anything else."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interlock.base.errors import InvalidSpec
from interlock.base.refs import canonical_json
from interlock.machine.program import compile_program
from interlock.workflows.check import check_workflow
from interlock.workflows.contracts import ToolContract
from interlock.workflows.prompts import PromptSpec, compile_prompt
from interlock.workflows.source import Source, parse_yaml, validate
from interlock.workflows.spec import Workflow

from .texts import MODELS, PROMPTS, TOOLS, WORKFLOW

_EXAMPLES = Path(__file__).parents[2] / "examples"
TEXTS = [WORKFLOW, *(path.read_text() for path in sorted(_EXAMPLES.glob("*/workflows/*.yaml")))]
_BITS = [
    *("&a ", "*a", "!!set ", "!x ", "<<: {a: 1}\n", "? ", "- ", ": ", "|\n", ">\n", "{", "}", "[", "]", "'", '"', "#", "%"),
    *("\t", "\n", "\r", "\0", "\x85", "\u2028", "\ufeff", "\ud800", "\U0001f600", "---\n", "...\n", "%YAML 1.1\n---\n"),
    *("null", "true", "~", "5", "-1", "1e999", ".nan", "0x10", "9" * 30, "2024-01-01", "2024-99-99", "$", "$$", "$input.", "${x}"),
    *("kind: model\n", "kind: [x]\n", "kind: {a: b}\n", "id: input\n", "steps: {}\n", "when: a..b\n", "properties: [a]\n"),
    *("required: 5\n", "enum: 5\n", "type: []\n", "$ref: '#'\n", "pattern: '('\n", "a" * 70, "retry: 5\n", "output: []\n"),
]  # fmt: skip


def _mutated(text: str, rng: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    words = sorted({word for word in text.replace(",", " ").split() if word.isascii()})
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        here, there = rng.randrange(len(lines)), rng.randrange(len(lines))
        line = lines[here]
        place = rng.randint(0, len(line))
        match rng.randrange(12):
            case 0:
                lines[here] = line[:place] + rng.choice(_BITS) + line[place:]
            case 1:
                lines[here] = line[:place] + line[place + rng.randint(1, 5) :]
            case 2:
                lines[here], lines[there] = lines[there], line
            case 3:
                lines[here] = lines[there]
            case 4:
                lines.insert(here, lines[there])
            case 5:
                lines[here] = rng.choice([" ", "  ", ""]) + line.lstrip(" ") if rng.random() < 0.5 else "  " + line
            case 6:
                name, _, _ = line.partition(": ")
                lines[here] = f"{name}: {rng.choice(_BITS)}\n"
            case 7 | 8 | 9 | 10:
                old = rng.choice(line.split() or [""])
                lines[here] = line.replace(old, rng.choice(words), 1)
            case _:
                lines[here] = "".join(rng.choice(_BITS) for _ in range(3)) + "\n"
    return "".join(lines)


def _read(text: str) -> tuple[Source, Workflow] | None:
    """What `read_project` does with a workflow's text."""
    try:
        source = parse_yaml(text, "w.yaml")
        return source, validate(Workflow, source)
    except InvalidSpec as error:
        complaint = error.message
    assert all(line.startswith("w.yaml:") for line in complaint.splitlines()), complaint
    return None


def _accepts(text: str) -> str:
    """Reads, checks, compiles and packs it as far as it is accepted; how far that was."""
    read = _read(text)
    if read is None:
        return "refused"
    source, workflow = read
    problems = check_workflow(workflow, prompts=PROMPTS, tools=TOOLS, models=MODELS)
    for problem in problems:
        assert source.complaint(problem.path, problem.message).startswith("w.yaml:")
    if problems:
        return "faulty"
    assert compile_program(workflow, TOOLS).nodes
    packed = canonical_json(workflow.model_dump(mode="json"))
    assert canonical_json(Workflow.model_validate(workflow.model_dump(mode="json")).model_dump(mode="json")) == packed
    return "good"


def test_mutated_workflows() -> None:
    rng = random.Random(5)
    met = {"refused": 0, "faulty": 0, "good": 0}
    for number in range(600):
        text = _mutated(TEXTS[number % len(TEXTS)], rng)
        try:
            met[_accepts(text)] += 1
        except Exception as error:
            raise AssertionError(f"{error!r} for:\n{text}") from error
    assert min(met.values()) > 10, met


def test_the_examples_are_workflows() -> None:
    assert len(TEXTS) > 1
    assert all(_read(text) is not None or "$file" in text for text in TEXTS)


_ANY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@settings(_ANY, max_examples=150)
@given(st.text(max_size=60) | st.lists(st.sampled_from(_BITS), max_size=12).map("".join))
def test_any_text(text: str) -> None:
    assert _read(text) is None or "name" in text


_DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
    | st.sampled_from(["tool", "model", "review", "parallel", "branch", "$input.a", "$steps.s", "true", "object", "#"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.text(max_size=4)
        | st.sampled_from(["id", "kind", "steps", "branches", "cases", "when", "output", "type", "properties", "enum"]),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@settings(_ANY, max_examples=200)
@given(st.fixed_dictionaries({"name": st.just("w"), "input": _DATA, "steps": st.lists(_DATA, max_size=3)}))
def test_any_data(data: dict[str, Any]) -> None:
    """Data of any shape where the language expects its own, such as a list as a step's kind."""
    source = parse_yaml("name: w\ninput: {}\nsteps: []\n", "w.yaml").with_data(data)
    try:
        workflow = validate(Workflow, source)
    except InvalidSpec as error:
        assert error.message.startswith("w.yaml:")  # noqa: PT017  raising is not required here
        return
    check_workflow(workflow, prompts=PROMPTS, tools=TOOLS, models=MODELS)


_SCHEMAS = st.dictionaries(
    st.sampled_from(["type", "properties", "required", "enum", "const", "items", "$ref", "additionalProperties", "pattern", "x"]),
    _DATA,
    max_size=4,
)  # fmt: skip


@settings(_ANY, max_examples=200)
@given(schema=_SCHEMAS, tool=_SCHEMAS)
def test_any_schema(schema: dict[str, Any], tool: dict[str, Any]) -> None:
    """JSON Schemas of any shape, valid or not: as input, as a model's output, as a tool's contract, as a slot."""
    step = {"id": "m", "kind": "model", "prompt": "sort", "values": {"text": "$input.a"}, "output": schema}
    call = {"id": "t", "kind": "tool", "tool": "odd", "input": {"a": "$steps.m.a"}}
    choice = {"id": "b", "kind": "branch", "cases": [{"when": "m.a && t.a && input.a", "steps": [call | {"id": "u"}]}]}
    workflow = Workflow.model_validate(
        {"name": "w", "input": schema, "steps": [step, call, choice], "output": {"x": "$steps.t.a.b"}}
    )
    odd = ToolContract(name="odd", description="", effect="pure", input=tool, output=tool)
    check_workflow(workflow, prompts=PROMPTS, tools={"odd": odd}, models=MODELS)
    check_workflow(workflow.model_copy(update={"allow": ["odd"]}), prompts=PROMPTS, tools={"odd": odd}, models=MODELS)
    spec = PromptSpec.model_validate({"slots": {"x": schema}, "messages": [{"role": "user", "content": "{{ x }}"}]})
    try:
        compile_prompt("p", spec)
    except InvalidSpec as error:
        assert error.message.startswith('prompt "p": slots')  # noqa: PT017  raising is not required here


@pytest.mark.parametrize("model", [ToolContract, PromptSpec])
def test_mutated_workflows_are_no_other_definitions(model: Any) -> None:
    rng = random.Random(6)
    for _ in range(40):
        with pytest.raises(InvalidSpec):
            validate(model, parse_yaml(_mutated(WORKFLOW, rng), "t.yaml"))
