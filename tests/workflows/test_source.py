"""Definition files: what is wrong is named with file, line, field and mend."""

from __future__ import annotations

import pytest

from interlock.base.errors import InvalidSpec
from interlock.workflows.contracts import ToolContract
from interlock.workflows.prompts import PromptSpec
from interlock.workflows.source import MAX_SOURCE_CHARACTERS, parse_yaml, validate
from interlock.workflows.spec import Workflow

from .texts import WORKFLOW


def _complaint(old: str, new: str) -> str:
    """What is said about the whole-language workflow with one thing changed."""
    assert WORKFLOW.count(old) == 1, old
    with pytest.raises(InvalidSpec) as caught:
        validate(Workflow, parse_yaml(WORKFLOW.replace(old, new), "workflows/triage.yaml"))
    return caught.value.message


def _refused(text: str) -> str:
    with pytest.raises(InvalidSpec) as caught:
        parse_yaml(text, "f.yaml")
    return caught.value.message


def test_the_whole_language_is_accepted() -> None:
    workflow = validate(Workflow, parse_yaml(WORKFLOW, "workflows/triage.yaml"))
    assert [step.id for step in workflow.steps] == ["gather", "wanted"]
    assert workflow.deadline == 3600


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        # unknown field
        ("subject:", "subjekt:", ":11: subjekt: is not a known field; remove it or check the spelling"),
        (
            "            title: Pay it back?",
            "            title: Pay it back?\n            titel: x",
            ":42: steps.1.cases.0.steps.0.titel: is not a known field; remove it or check the spelling",
        ),
        (
            "max_attempts: 4",
            "maxattempts: 4",
            ":33: steps.0.branches.two.0.retry.maxattempts: is not a known field; remove it or check the spelling",
        ),
        # missing field
        ("name: triage  ", "#", ":1: name: is required; add it"),
        ("            title: Pay it back?\n", "", ":39: steps.1.cases.0.steps.0.title: is required; add it"),
        ("kind: tool, tool: lookup,", "kind: tool,", ":20: steps.0.branches.one.0.tool: is required; add it"),
        # kinds
        (
            "    kind: parallel\n",
            "",
            ':16: steps.0: has no "kind"; add one of model, tool, review, parallel, branch',
        ),
        (
            "kind: parallel",
            "kind: fork",
            ":16: steps.0: kind 'fork' is not known; use one of 'model', 'agent', 'tool', 'review', 'wait', 'parallel', "
            "'branch', 'map', 'loop', 'subworkflow'",
        ),
        # wrong type, out of bounds
        ("deadline: 3600", "deadline: soon", ':14: deadline: is "soon" (a string); must be a number'),
        (
            "deadline: 3600",
            "deadline: 10m",
            ':14: deadline: is "10m" (a string); must be a number of seconds: write 600',
        ),
        ("deadline: 3600", "deadline: -1", ":14: deadline: is -1; must be greater than 0"),
        ("retries: 10", "retries: -1", ":13: budget.retries: is -1; must be at least 0"),
        ("retries: 10", "retries: 2.5", ":13: budget.retries: is 2.5 (a number); must be a whole number"),
        ("allow: [lookup, refund]", "allow: lookup", ':12: allow: is "lookup" (a string); must be a list'),
        (
            "on_reject: continue",
            "on_reject: stop",
            ":43: steps.1.cases.0.steps.0.on_reject: is \"stop\" (a string); must be 'fail' or 'continue'",
        ),
        (
            "max_attempts: 4",
            "max_attempts: 0",
            ":33: steps.0.branches.two.0.retry.max_attempts: is 0; must be at least 1",
        ),
        # names
        ("id: approve", "id: input", ':39: steps.1.cases.0.steps.0.id: "input" is reserved; choose another name'),
        ("id: approve", "id: steps", ':39: steps.1.cases.0.steps.0.id: "steps" is reserved; choose another name'),
        ("id: approve", "id: run", ':39: steps.1.cases.0.steps.0.id: "run" is reserved; choose another name'),
        ("id: approve", "id: Approve", ':39: steps.1.cases.0.steps.0.id: is "Approve" (a string); must match ^[a-z]'),
        ("id: approve", "id: a-b", ':39: steps.1.cases.0.steps.0.id: is "a-b" (a string); must match'),
        ("id: approve", 'id: ""', ':39: steps.1.cases.0.steps.0.id: is "" (a string); must match'),
        ("id: approve", 'id: "a\\n"', ":39: steps.1.cases.0.steps.0.id: is a string; must match"),
        ("id: approve", f"id: {'a' * 64}", ":39: steps.1.cases.0.steps.0.id: is a string; must match"),
        ("      one:\n", "      One:\n", ":19: steps.0.branches.One"),
        # empty
        ("    otherwise: []", "    otherwise: null", ":53: steps.1.otherwise: is null; must be a list"),
    ],
)
def test_faults_name_line_field_and_mend(old: str, new: str, complaint: str) -> None:
    assert _complaint(old, new).startswith("workflows/triage.yaml" + complaint)


def test_every_fault_has_its_line() -> None:
    text = WORKFLOW.replace("deadline: 3600", "deadline: soon").replace("subject:", "subjekt:").replace("fork", "x")
    with pytest.raises(InvalidSpec) as caught:
        validate(Workflow, parse_yaml(text, "w.yaml"))
    assert [line.split(" ")[0] for line in caught.value.message.splitlines()] == ["w.yaml:14:", "w.yaml:11:"]


@pytest.mark.parametrize("text", ["", "# nothing", "- a list", "just text", "5", "null"])
def test_what_is_no_map_is_refused(text: str) -> None:
    with pytest.raises(InvalidSpec, match=r"^w\.yaml:1: "):
        validate(Workflow, parse_yaml(text, "w.yaml"))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: 1\nb: 2\na: 3\n", 'f.yaml:3: not valid YAML: found duplicate key "a"'),
        ("a:\n  b: 1\n  b: 2\n", 'f.yaml:3: not valid YAML: found duplicate key "b"'),
        ("a:\n\tb: 1\n", "f.yaml:2: not valid YAML: found character '\\t' that cannot start any token"),
        ("a: [1, 2\nb: 3\n", "f.yaml:"),
        ("a: 'never closed\n", "f.yaml:"),
        ("a: 1\n---\nb: 2\n", "f.yaml:2: not valid YAML"),
        ("a: \x01\n", "f.yaml: not valid YAML: unacceptable character"),
        ("1: a\n'1': b\n", "f.yaml: not valid YAML: two keys of one map are the same text; remove one"),
        ("a: .nan\n", "f.yaml: not valid YAML: nan is not a JSON number; write a finite one"),
        ("a: [-.inf]\n", "f.yaml: not valid YAML: -inf is not a JSON number; write a finite one"),
        (f"a: {'9' * 5000}\n", "f.yaml: not valid YAML: Exceeds the limit"),
        (f"a: 0x{'f' * 5000}\n", "f.yaml: not valid YAML: a whole number of 20000 bits is too large"),
        ("- " * 2000, "f.yaml:"),
        ("[\n" * 2000, "f.yaml: not valid YAML"),
        ("? : []", "f.yaml: not valid YAML"),
        ("a: 2024-13-45\n", "f.yaml: not valid YAML: month must be in 1..12"),
    ],
)
def test_what_is_not_yaml_is_refused(text: str, complaint: str) -> None:
    assert _refused(text).startswith(complaint)


BOMB = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}]\n" for old, new in zip("abcdefghijkl", "bcdefghijklm", strict=True)
)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (BOMB, 1),
        ("x: 1\na: &b\n", 2),
        ("x: 1\ny: 2\na: &b [1]\n", 3),
        ("[&a x, *a]", 1),
        ("&a [*a]", 1),
        ("a:\n  - {&k k: v}\n", 2),
        ("a: 1\n<<: *b\nb: &b {}\n", None),
    ],
)
def test_anchors_and_aliases_are_refused(text: str, line: int | None) -> None:
    place = f"f.yaml:{line}: " if line else "f.yaml:"
    assert _refused(text).startswith(place)
    assert "anchors and aliases are not accepted here; write the value out" in _refused(text)


@pytest.mark.parametrize(
    "value", ["!!set {a, b}", "!!python/object/apply:os.system [id]", "!mine x", "!!bool maybe", "!!int x"]
)
def test_tags_are_refused(value: str) -> None:
    assert _refused(f"x: 1\na: {value}\n") == (
        "f.yaml:2: YAML tags are not accepted here; leave the tag out, or quote the value"
    )


def test_signs_inside_text_are_text() -> None:
    text = "a: Ask & answer!\nb: 'see *this* &that'\nc: \"!wow\"\nd: |\n  &anchor *alias !tag\n# &comment\n"
    assert parse_yaml(text, "f.yaml").data == {
        "a": "Ask & answer!",
        "b": "see *this* &that",
        "c": "!wow",
        "d": "&anchor *alias !tag\n",
    }


def test_yaml_is_1_2() -> None:
    """`on`, `yes` and `010` are what they look like."""
    assert parse_yaml("a: yes\non: off\nb: 010\nc: 1_0\nd: true\ne: 12:30\nf: 2024-01-31\n", "f").data == {
        "a": "yes",
        "on": "off",
        "b": 10,
        "c": 10,
        "d": True,
        "e": "12:30",
        "f": "2024-01-31",
    }


def test_huge_files_are_refused_before_they_are_parsed() -> None:
    text = "a" * (MAX_SOURCE_CHARACTERS + 1)
    assert _refused(text) == "f.yaml: 1000001 characters are more than the 1000000 a definition may have"


def test_lines_of_places_that_are_not_in_the_file() -> None:
    """`$file` puts data where the file has none; then the nearest line is named, not a wrong one or a stack trace."""
    source = parse_yaml("a: 1\nb:\n  c: [1, 2]\n<<: {merged: 1}\n", "f.yaml")
    assert source.complaint([], "x") == "f.yaml:1: x"
    assert source.complaint(["b", "c", 1], "x") == "f.yaml:3: b.c.1: x"
    assert source.complaint(["b", "c", 7], "x") == "f.yaml:3: b.c.7: x"
    assert source.complaint(["b", "nope", "deep"], "x") == "f.yaml:2: b.nope.deep: x"
    assert source.complaint(["merged"], "x").startswith("f.yaml:")


@pytest.mark.parametrize(
    ("field", "complaint"),
    [
        ("effect: sometimes", "f.yaml:3: effect: is \"sometimes\" (a string); must be 'pure' or 'mutating'"),
        (
            "effect: pure\ncompensate: true",
            "f.yaml:1: a pure tool has nothing to compensate, probe or repeat; make it mutating or remove these fields",
        ),
        ("effect: pure\nhonours_idempotency: true", "f.yaml:1: a pure tool has nothing to compensate"),
        ("effect: pure\nlimits: {memory_mib: 1}", "f.yaml:4: limits.memory_mib: is 1; must be at least 64"),
    ],
)
def test_tool_contracts(field: str, complaint: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        validate(ToolContract, parse_yaml(f"name: t\ndescription: d\n{field}\ninput: {{}}\noutput: {{}}\n", "f.yaml"))
    assert caught.value.message.startswith(complaint)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "p.yaml:1: the file is empty; `interlock schema` prints what it may contain"),
        ("messages: []", "p.yaml:1: messages: must have at least 1 entry"),
        (
            "messages:\n  - {role: tool, content: x}",
            "p.yaml:2: messages.0.role: is \"tool\" (a string); must be 'system', 'developer',",
        ),
        ("messages:\n  - role: user\n    content: ''", "p.yaml:3: messages.0.content: must have at least 1 character"),
        (
            "messages:\n  - role: user\n    content: 5",
            "p.yaml:3: messages.0.content: is 5 (a number); must be a string",
        ),
    ],
)
def test_prompts(text: str, complaint: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        validate(PromptSpec, parse_yaml(text, "p.yaml"))
    assert caught.value.message.startswith(complaint)
