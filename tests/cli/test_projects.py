"""init, check, schema."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from ruamel.yaml import YAML

from .conftest import Cli

EXAMPLE = Path(__file__).parents[2] / "examples" / "support_triage"


# -- init ------------------------------------------------------------------------------------------------------


def test_init_writes_a_project_that_passes_its_own_check(bare: Cli) -> None:
    said = bare.ok("init", "my-agent").out
    project = bare.directory / "my-agent"
    assert "cd my-agent" in said
    assert "interlock dev" in said
    assert (project / ".gitignore").read_text() == ".interlock/\n"
    for name in ("workflows/answer.yaml", "prompts/answer.yaml", "tools/search_faq/main.py", "evals/answer.yaml"):
        assert (project / name).is_file(), name
    assert 'name = "my-agent"' in (project / "interlock.toml").read_text()
    assert not any("{{project}}" in path.read_text() for path in project.rglob("*") if path.is_file())
    assert not list(project.rglob("__pycache__"))
    assert re.fullmatch(r"answer@[0-9a-f]{16}  ok\n", bare.ok("check", cwd=project).out)
    assert not (project / ".interlock").exists()


def test_init_makes_the_directories_on_the_way_and_takes_an_empty_one(bare: Cli) -> None:
    (bare.directory / "empty").mkdir()
    for name in ("empty", "a/b/c", "./d", "Agent.2-x_y", str(bare.directory / "absolute"), "."):
        cwd = bare.directory
        if name == ".":
            cwd = bare.directory / "here"
            cwd.mkdir()
        bare.ok("init", name, cwd=cwd)
        assert (cwd / name / "workflows" / "answer.yaml").is_file()


@pytest.mark.parametrize("name", ["1agent", "-x", "a b", "ä", ".hidden", "a" * 64, "x\ny", 'a"b', "[bold]", "/"])
def test_init_refuses_bad_names(bare: Cli, name: str) -> None:
    said = bare.fails(2, "init", "--", name)
    assert "cannot be a project name" in said
    assert "begin with a letter" in said
    assert list(bare.directory.iterdir()) == []


def test_init_touches_nothing_that_is_there(bare: Cli) -> None:
    bare.write("full/notes.txt", "mine")
    bare.write("file", "mine")
    bare.write("sub", "a file where a directory would have to be")
    assert "not an empty directory" in bare.fails(4, "init", "full")
    assert [path.name for path in (bare.directory / "full").iterdir()] == ["notes.txt"]
    assert "not an empty directory" in bare.fails(4, "init", "file")
    assert (bare.directory / "file").read_text() == "mine"
    assert "cannot be made" in bare.fails(2, "init", "sub/agent")


# -- check -----------------------------------------------------------------------------------------------------

# What is done to the template (file, old text, new text) → how the complaint must begin, and what it must name.
FAULTS: dict[str, tuple[str, str, str, str, str]] = {
    "no YAML": ("workflows/answer.yaml", "steps:", "steps: [", "workflows/answer.yaml:", "not valid YAML"),
    "unknown field": ("workflows/answer.yaml", "max_tokens: 120", "max_token: 120", "workflows/answer.yaml:22: ", "max_token"),
    "missing field": ("workflows/answer.yaml", "    prompt: answer\n", "", "workflows/answer.yaml:18: ", "prompt"),
    "unknown kind": ("workflows/answer.yaml", "kind: model", "kind: modal", "workflows/answer.yaml:18: ", "modal"),
    "wrong type": ("workflows/answer.yaml", "max_tokens: 120", "max_tokens: many", "workflows/answer.yaml:22: ", "integer"),
    "unknown tool": ("workflows/answer.yaml", "tool: search_faq", "tool: search", "workflows/answer.yaml:16: ", "search_faq"),
    "tool not allowed": ("workflows/answer.yaml", "allow: [search_faq]", "allow: []", "workflows/answer.yaml:16: ", "allow"),
    "allows no tool": ("workflows/answer.yaml", "[search_faq]", "[search_faq, rm]", "workflows/answer.yaml:9: ", "rm"),
    "unknown prompt": ("workflows/answer.yaml", "prompt: answer", "prompt: reply", "workflows/answer.yaml:20: ", "reply"),
    "unbound slot": ("workflows/answer.yaml", "{question: $input.question, entries", "{entries", "workflows/answer.yaml:21: ", "question"),
    "unknown slot": ("workflows/answer.yaml", "values: {", "values: {tone: kind, ", "workflows/answer.yaml:21: ", "tone"),
    "later step": ("workflows/answer.yaml", "$steps.search.entries}", "$steps.approve.note}", "workflows/answer.yaml:21: ", "approve"),
    "no such field": ("workflows/answer.yaml", "$input.question}\n  - id: reply", "$input.text}\n  - id: reply", "workflows/answer.yaml:17: ", "text"),
    "no reference": ("workflows/answer.yaml", "topic: $steps.reply.topic", "topic: $reply", "workflows/answer.yaml:", "$reply"),
    "condition": ("workflows/answer.yaml", "search.found == 0", "search.found ==", "workflows/answer.yaml:33: ", "CEL"),
    "unknown fact": ("workflows/answer.yaml", "search.found", "serch.found", "workflows/answer.yaml:33: ", "serch"),
    "id twice": ("workflows/answer.yaml", "id: unsure", "id: search", "workflows/answer.yaml:30: ", "search"),
    "schema": ("workflows/answer.yaml", "{type: string, maxLength: 300}", "{type: strng}", "workflows/answer.yaml:23: ", "JSON Schema"),
    "model alias": ("workflows/answer.yaml", "prompt: answer", "model: large\n    prompt: answer", "workflows/answer.yaml:20: ", "large"),
    "no $file": ("workflows/answer.yaml", "output:\n      type", "output:\n      $file: schemas/none.json\n      x", "workflows/answer.yaml:", ""),
    "no variable": ("workflows/answer.yaml", "Answers a", "${greeting} a", "workflows/answer.yaml:2: ", "greeting"),
    "prompt syntax": ("prompts/answer.yaml", "{{ question }}", "{{ question", "prompts/answer.yaml:", "line 5"),
    "undeclared slot": ("prompts/answer.yaml", "{{ question }}", "{{ question }} {{ name }}", "prompts/answer.yaml:", "name"),
    "unused slot": ("prompts/answer.yaml", "Question: {{ question }}", "Question", "prompts/answer.yaml:2: ", "question"),
    "prompt role": ("prompts/answer.yaml", "role: system", "role: boss", "prompts/answer.yaml:6: ", "system"),
    "slot schema": ("prompts/answer.yaml", "question: {type: string}", "question: {type: strng}", "prompts/answer.yaml:2: ", "JSON Schema"),
    "tool name": ("tools/search_faq/tool.yaml", "name: search_faq", "name: search", "tools/search_faq/tool.yaml:1: ", "search_faq"),
    "tool effect": ("tools/search_faq/tool.yaml", "effect: pure", "effect: none", "tools/search_faq/tool.yaml:3: ", "pure"),
    "tool promises": ("tools/search_faq/tool.yaml", "timeout: 10", "probe: true", "tools/search_faq/tool.yaml:", "mutating"),
    "tool schema": ("tools/search_faq/tool.yaml", "found: {type: integer}", "found: {type: int}", "tools/search_faq/tool.yaml:", "JSON Schema"),
    "egress": ("tools/search_faq/tool.yaml", "timeout: 10", 'egress: ["example.com"]', "tools/search_faq/tool.yaml:", "example.com"),
    "policy": ("policies/main.cedar", "permit(principal, action == Action::\"call_model\", resource);", "permit(;", "policies/main.cedar:", "Cedar"),
    "model pin": ("interlock.toml", "local:smollm2-135m-instruct-q4_1", "smollm2", "", "smollm2"),
    "settings": ("interlock.toml", "[models]", "[model]", "", "model"),
    "no TOML": ("interlock.toml", "[models]", "[models", "", "interlock.toml"),
}  # fmt: skip


def test_check_names_the_place_and_the_mend(files: Cli, subtests: pytest.Subtests) -> None:
    for name, (file, old, new, begin, named) in FAULTS.items():
        with subtests.test(name):
            before = (files.directory / file).read_text()
            files.edit(file, old, new)
            said = files.fails(2, "check")
            (files.directory / file).write_text(before)
            line = next((line for line in said.splitlines() if line.startswith(begin)), None)
            assert line is not None, said
            assert named in line
            if begin:
                assert re.match(r"[\w./]+:\d+: ", line), said
    assert files.ok("check").out.startswith("answer@")


def test_check_finds_all_faults_at_once(files: Cli) -> None:
    files.edit("workflows/answer.yaml", "prompt: answer", "prompt: reply")
    files.edit("prompts/answer.yaml", "role: system", "role: boss")
    files.edit("tools/search_faq/tool.yaml", "effect: pure", "effect: none")
    files.edit("policies/main.cedar", "permit(principal", "permit(prncpal")
    files.write("workflows/second.yaml", "name: second\n")
    files.write("interlock.toml", '[models]\ndefault = "nonsense"\n')
    said = files.fails(2, "check").splitlines()
    for begin in (
        "workflows/answer.yaml",
        "workflows/second.yaml",
        "prompts/answer.yaml",
        "tools/search_faq/tool.yaml",
    ):
        assert any(line.startswith(begin) for line in said), begin
    assert any(line.startswith("policies/main.cedar") for line in said)
    assert any("nonsense" in line for line in said)


def test_check_outside_a_project_says_so(bare: Cli) -> None:
    for command in (("check",), ("run", "answer"), ("dev",)):
        said = bare.fails(2, *command)
        assert "has no workflows directory" in said
        assert "interlock init" in said
    assert list(bare.directory.iterdir()) == []


@pytest.mark.parametrize("name", ["workflows/answer.yaml", "prompts/answer.yaml", "tools/search_faq/tool.yaml", "policies/main.cedar", "interlock.toml", "evals/answer.yaml"])  # fmt: skip
def test_no_file_of_a_project_can_bring_check_down(files: Cli, name: str) -> None:
    odd = [b"", b"\xff\xfe\xfa", b"\0", b"null", b"[]", b"42", b"&a [*a]", b"a: &a [*a]\nb: [*a, *a]", b"- " * 400, b"[" * 2000,
           b'"\\ud800": "\\0"', b"x: .nan", b"? {a: b}\n: c", b"%YAML 9.9\n---\n", b"--- 1\n--- 2\n", b"\xef\xbb\xbfname: x"]  # fmt: skip
    path = files.directory / name
    for content in odd:
        path.write_bytes(content)
        done = files("eval" if name.startswith("evals") else "check", INTERLOCK_DATABASE__URL="postgresql:///nowhere")
        assert "internal error" not in done.err, (content, done.err)
        if name.startswith("policies") and content in {b"", b"\xef\xbb\xbfname: x"}:
            continue  # an empty policy set is one: it refuses everything
        if name == "interlock.toml" and not content:
            continue
        assert done.code == 2, (content, done.err)
        assert name in done.err


# -- schema ----------------------------------------------------------------------------------------------------


def plain(path: Path) -> Any:
    return YAML(typ="safe", pure=True).load(path.read_text())


def test_schemas_accept_what_interlock_accepts(files: Cli, subtests: pytest.Subtests) -> None:
    kinds = {"workflow": "workflows/*.yaml", "prompt": "prompts/*.yaml", "tool": "tools/*/tool.yaml"}
    assert files.ok("schema").out == files.ok("schema", "workflow").out
    for kind, pattern in kinds.items():
        schema = files.ok("schema", kind).json
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        assert jsonschema_rs.meta.is_valid(schema)
        validator = jsonschema_rs.validator_for(schema)
        found = [*files.directory.glob(pattern), *EXAMPLE.glob(pattern)]
        assert len(found) >= 2
        for path in found:
            with subtests.test(path.name, kind=kind):
                value = plain(path)
                validator.validate(value)
                # … and is not simply satisfied with everything.
                assert not validator.is_valid({**value, "nonsense": 1})
                for field in schema["required"]:
                    assert not validator.is_valid({key: one for key, one in value.items() if key != field}), field
    assert "Invalid value" in files.fails(2, "schema", "nonsense")


# -- the entry point itself --------------------------------------------------------------------------------------


def test_the_installed_command_works_with_an_empty_home(bare: Cli, tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("interlock")
    env = {"HOME": str(tmp_path / "nowhere"), "PATH": os.environ["PATH"]}
    for command, code in (([str(script), "--help"], 0), ([sys.executable, "-m", "interlock.cli.main", "check"], 2)):
        done = subprocess.run(command, cwd=bare.directory, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
    assert list(bare.directory.iterdir()) == []


def test_every_command_explains_itself(bare: Cli) -> None:
    said = bare.ok("--help").out
    commands = re.findall(r"^│ ([a-z]+) ", said, flags=re.MULTILINE)
    assert {"init", "check", "schema", "eval", "dev", "serve", "worker", "migrate", "run", "runs", "show", "trace", "cancel", "doctor", "review", "audit", "keys"} <= set(commands)  # fmt: skip
    for command in commands:
        assert len(bare.ok(command, "--help").out.splitlines()) > 3
    assert "No such command" in bare.fails(2, "[/nonsense]")
    assert json.loads(bare.ok("schema").out)
