"""signal, pause, resume, and what `show` says about a run that waits or is large."""

from __future__ import annotations

import json
import time
from datetime import datetime, timedelta

import pytest

from .conftest import Cli
from .test_runs import run_id_of

LISTEN = """\
name: listen
input: {type: object}
steps:
  - {id: heard, kind: wait, signal: go, payload: {type: object, properties: {text: {type: string}}, required: [text]}}
output: {text: $steps.heard.text}
"""
MANY = """\
name: many
input: {type: object, properties: {items: {type: array, items: {type: string}}}, required: [items]}
allow: [picky]
steps:
  - id: each
    kind: map
    items: $input.items
    on_item_failure: continue
    steps:
      - {id: try, kind: tool, tool: picky, input: {text: $item}, fallback: [{value: {text: none}}]}
"""
TOOL = """\
name: picky
description: Takes everything but bad.
effect: pure
input: {type: object, properties: {text: {type: string}}, required: [text]}
output: {type: object, properties: {text: {type: string}}, required: [text]}
"""
CODE = """\
def run(text):
    if text == "bad":
        raise RuntimeError("no bad")
    return {"text": text}
"""


@pytest.fixture
def listening(cli: Cli) -> tuple[Cli, str]:
    cli.write("workflows/listen.yaml", LISTEN)
    said = cli.waits("run", "listen").out
    assert 'waits for signal "go"' in said
    return cli, run_id_of(said)


def test_sent_once_and_shown(listening: tuple[Cli, str]) -> None:
    cli, run_id = listening
    shown = cli.ok("show", run_id).out
    assert f'waits for signal "go" (step heard): interlock signal {run_id} go' in shown
    assert "it knows: go" in cli.fails(3, "signal", run_id, "stop")
    assert "payload" in cli.fails(2, "signal", run_id, "go")
    assert "--payload" in cli.fails(2, "signal", run_id, "go", "--payload", "{")
    assert "--payload" in cli.fails(2, "signal", run_id, "go", "--payload", "@nosuch.json")
    cli.write("payload.json", json.dumps({"text": "from a file"}))
    assert cli.ok("signal", run_id, "go", "--payload", "@payload.json", "--key", "k").out == f"sent go to {run_id}\n"
    again = cli.ok("signal", run_id, "go", "--payload", '{"text": "again"}', "--key", "k").out
    assert again == f"go was sent to {run_id} already\n"


def test_paused_and_resumed(listening: tuple[Cli, str]) -> None:
    cli, run_id = listening
    assert cli.ok("pause", run_id, "--reason", "later").out == f"asked {run_id} to pause\n"
    assert cli.ok("resume", run_id).out == f"asked {run_id} to resume\n"
    assert "no run" in cli.fails(3, "pause", "run_nosuch")


def test_a_moment_is_local_for_people_and_has_an_offset_in_json(cli: Cli) -> None:
    cli.write("workflows/listen.yaml", LISTEN.replace("signal: go", "signal: go, timeout: 864000"))
    before = time.time()
    run_id = run_id_of(cli.waits("run", "listen").out)
    (wait,) = cli.ok("show", run_id, "--json").json["waits_for"]
    until = datetime.fromisoformat(wait["until"])
    assert until.utcoffset() == timedelta(0)
    assert 863_900 < until.timestamp() - before < 865_000
    local = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(int(until.timestamp())))
    assert f"until {local}: interlock signal" in cli.ok("show", run_id).out


def test_a_partial_run_has_its_exit_code(cli: Cli) -> None:
    cli.write("workflows/many.yaml", MANY.replace(", fallback: [{value: {text: none}}]", ""))
    cli.write("tools/picky/tool.yaml", TOOL)
    cli.write("tools/picky/main.py", CODE)
    cli.write("policies/main.cedar", "permit(principal, action, resource);\n")
    done = cli("run", "many", "--json", "--input", '{"items": ["good", "bad"]}')
    assert (done.code, done.json["status"]) == (11, "partial")


def test_a_large_run_is_folded(cli: Cli) -> None:
    cli.write("workflows/many.yaml", MANY)
    cli.write("tools/picky/tool.yaml", TOOL)
    cli.write("tools/picky/main.py", CODE)
    cli.write("policies/main.cedar", "permit(principal, action, resource);\n")
    items = ["good"] * 24 + ["bad"]
    run_id = run_id_of(cli.ok("run", "many", "--input", json.dumps({"items": items})).out)
    shown = cli.ok("show", run_id).out
    assert len(shown.splitlines()) <= 45
    assert "each/try  25: 25 succeeded" in shown
    whole = cli.ok("show", run_id, "--json").json
    (instead,) = [step for step in whole["steps"] if step["fallback"]]
    assert (instead["id"], instead["fallback"]) == ("each#25/try", "fixed answer")
