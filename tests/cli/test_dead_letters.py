"""letters: what failed for good, shown, edited and tried again from the command line."""

from __future__ import annotations

import json

import pytest

from .conftest import Cli
from .test_runs import run_id_of

WORKFLOW = """\
name: look
input: {type: object, properties: {input: {type: string}}, required: [input]}
allow: [picky]
on_failure: hold
steps:
  - {id: try, kind: tool, tool: picky, input: {input: $input.input}}
output: {text: $steps.try.text}
"""
TOOL = """\
name: picky
description: Takes everything but bad.
effect: pure
input: {type: object, properties: {input: {type: string}}, required: [input], additionalProperties: false}
output: {type: object, properties: {text: {type: string}}, required: [text]}
"""
CODE = """\
def run(input):
    if input == "bad":
        raise RuntimeError("no bad")
    return {"text": input}
"""


@pytest.fixture
def held(cli: Cli) -> tuple[Cli, str, str]:
    """Commands, and the run and letter of a step that is held."""
    cli.write("workflows/look.yaml", WORKFLOW)
    cli.write("tools/picky/tool.yaml", TOOL)
    cli.write("tools/picky/main.py", CODE)
    cli.write("policies/main.cedar", "permit(principal, action, resource);\n")
    said = cli.waits("run", "look", "--input", '{"input": "bad"}').out
    (dead_letter,) = cli.ok("dead-letters", "list", "--json").json
    assert f"interlock dead-letters show {dead_letter['dead_letter_id']}" in said
    return cli, run_id_of(said), dead_letter["dead_letter_id"]


def test_shown_edited_and_requeued(held: tuple[Cli, str, str]) -> None:
    cli, run_id, dead_letter_id = held
    listed = cli.ok("dead-letters", "list").out
    for word in (dead_letter_id, "look", "try", run_id):
        assert word in listed
    shown = cli.ok("dead-letters", "show", dead_letter_id).json
    assert shown["input"] == {"input": "bad"}
    # What `show` printed can be given back, edited as a whole …
    cli.write("letter.json", json.dumps({**shown, "input": {"input": 7}}))
    assert "arguments" in cli.fails(2, "dead-letters", "requeue", dead_letter_id, "--input", "@letter.json")
    cli.write("letter.json", json.dumps({**shown, "input": {"input": "good"}}))
    said = cli.ok("dead-letters", "requeue", dead_letter_id, "--input", "@letter.json", "--note", "mended").out
    assert f"requeued: try (run {run_id})" in said
    assert cli.ok("dead-letters", "list").out == "nothing waits for a decision\n"
    (one,) = cli.ok("dead-letters", "list", "--all", "--json").json
    assert (one["status"], one["note"]) == ("requeued", "mended")
    assert "already requeued" in cli.fails(4, "dead-letters", "discard", dead_letter_id)


def test_arguments_alone_from_standard_input(held: tuple[Cli, str, str]) -> None:
    # … or only the arguments, even if one of them is called input.
    cli, _, dead_letter_id = held
    cli.ok("dead-letters", "requeue", dead_letter_id, "--input", "-", stdin=b'{"input": "good"}')
    (one,) = cli.ok("dead-letters", "list", "--all", "--json").json
    assert one["status"] == "requeued"


def test_discarded(held: tuple[Cli, str, str]) -> None:
    cli, run_id, dead_letter_id = held
    for arguments, code in (
        (("dead-letters", "show", "ltr_nosuch"), 3),
        (("dead-letters", "requeue", dead_letter_id, "--input", "@nosuch.json"), 2),
        (("dead-letters", "requeue", dead_letter_id, "--input", "@workflows/look.yaml"), 2),
        (("dead-letters", "discard", "../runs"), 3),
    ):
        cli.fails(code, *arguments)
    said = cli.fails(2, "dead-letters", "requeue", dead_letter_id, "--input", "letter.json")
    assert "for a file write @FILE" in said
    assert f"discarded: try (run {run_id})" in cli.ok("dead-letters", "discard", dead_letter_id).out
