"""init, check, schema."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from ruamel.yaml import YAML

from interlock.base.errors import Conflict, InvalidSpec
from interlock.base.settings import load_settings
from interlock.cli import main
from interlock.definitions.project import read_project

from .conftest import Cli, Command

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


def test_the_template_passes_this_projects_linter(files: Cli) -> None:
    """README has a reader make it inside the checkout."""
    ruff = [sys.executable, "-m", "ruff"]
    root = Path(__file__).parents[2]
    for command in (["check"], ["format", "--check"]):
        given = [*ruff, *command, "--config", str(root / "pyproject.toml"), str(files.directory)]
        done = subprocess.run(given, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "/my-agent/" in (root / ".gitignore").read_text().splitlines()


def test_init_prints_a_command_that_a_shell_understands(bare: Cli) -> None:
    assert "cd 'a b/agent'\n" in bare.ok("init", "a b/agent").out


def test_a_budget_in_usd_needs_a_price(files: Cli) -> None:
    files.edit("workflows/answer.yaml", "{tokens: 4000}", "{usd: 1}")
    files.ok("check")  # local models cost nothing
    pin = "openai:fake-1"
    assert files.fails(2, "check", INTERLOCK_MODELS__DEFAULT=pin).strip() == (
        f'workflows/answer.yaml:10: budget.usd: model "default" = {pin} has no known price, so a budget in USD refuses all its '
        "calls; use budget.tokens, or remove usd"
    )


def test_check_notes_imports_that_are_missing(files: Cli) -> None:
    files.edit("tools/search_faq/main.py", "import json\n", "import json\nimport nonexistent\n")
    assert (
        "note: tools/search_faq/main.py:4: imports nonexistent, which is neither in the tool" in files.ok("check").out
    )


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
    assert "cannot be created" in bare.fails(2, "init", "sub/agent")


# -- check -----------------------------------------------------------------------------------------------------

# What is done to the template: (file, old text, new text, what stands in the line to be named, what to say about it).
WORKFLOW, PROMPT, TOOL = "workflows/answer.yaml", "prompts/answer.yaml", "tools/search_faq/tool.yaml"
EVAL = "evals/answer.yaml"
POLICY, SETTINGS = "policies/main.cedar", "interlock.toml"
FAULTS: dict[str, tuple[str, str, str, str, str]] = {
    "no YAML": (WORKFLOW, "steps:", "steps: [", "- id: search", "not valid YAML"),
    "control character": (WORKFLOW, "Answers a", '"A\\0"  # ', "description:", "NUL"),
    "half a surrogate pair": (WORKFLOW, "Answers a", '"A\\ud800"  # ', "description:", "surrogate"),
    "unknown field": (WORKFLOW, "max_tokens: 120", "max_token: 120", "max_token:", "max_token"),
    "missing field": (WORKFLOW, "    prompt: answer\n", "", "- id: reply", "prompt: is required"),
    "unknown kind": (WORKFLOW, "kind: model", "kind: modal", "- id: reply", "kind 'modal' is not known"),
    "wrong type": (WORKFLOW, "max_tokens: 120", "max_tokens: many", "max_tokens:", "must be a whole number"),
    "unknown tool": (WORKFLOW, "tool: search_faq", "tool: search", "tool: search", "known tools: search_faq"),
    "tool not allowed": (WORKFLOW, "allow: [search_faq]", "allow: []", "tool: search_faq", "which is not in allow"),
    "allows no tool": (WORKFLOW, "[search_faq]", "[search_faq, rm]", "allow:", 'tool "rm" does not exist'),
    "unknown prompt": (WORKFLOW, "prompt: answer", "prompt: reply", "prompt: reply", "known prompts: answer"),
    "unbound slot": (WORKFLOW, "{question: $input.question, entries", "{entries", "values:", 'needs slot "question"'),
    "unknown slot": (WORKFLOW, "values: {", "values: {tone: kind, ", "values:", 'no slot "tone"'),
    "later step": (WORKFLOW, "$steps.search.entries}", "$steps.approve.note}", "values:", "is not an earlier step"),
    "no such field": (WORKFLOW, "{question: $input.question}", "{question: $input.text}", "$input.text", 'no field "text"'),
    "no reference": (WORKFLOW, "topic: $steps.reply.topic", "topic: $reply", "output:\n  topic", '"$reply" is not a reference'),
    "condition": (WORKFLOW, "search.found == 0", "search.found ==", "- when:", "is not CEL"),
    "unknown fact": (WORKFLOW, "search.found", "serch.found", "- when:", 'reads "serch"'),
    "id twice": (WORKFLOW, "id: unsure", "id: search", "id: search\n    kind: branch", "is used twice"),
    "schema": (WORKFLOW, "{type: string, maxLength: 300}", "{type: strng}", "output:\n      type", "JSON Schema"),
    "model alias": (WORKFLOW, "prompt: answer", "model: large\n    prompt: answer", "model: large", "known models: default"),
    "file missing": (WORKFLOW, "input:\n", "input: {$file: schemas/none.json}\nx:\n", "input: {$file", "cannot be read"),
    "file outside": (WORKFLOW, "input:\n", "input: {$file: ../../etc/passwd}\nx:\n", "input: {$file", "is outside the project"),
    "file of no JSON": (WORKFLOW, "input:\n", "input: {$file: interlock.toml}\nx:\n", "input: {$file", "is not JSON"),
    "file with NUL": (WORKFLOW, "input:\n", 'input: {$file: "a\\0b"}\nx:\n', "input: {$file", "is not JSON"),
    "file is a directory": (WORKFLOW, "input:\n", "input: {$file: tools}\nx:\n", "input: {$file", "cannot be read"),
    "no variable": (WORKFLOW, "Answers a", "${greeting} a", "description:", "${greeting} is not among"),
    "prompt syntax": (PROMPT, "{{ question }}", "{{ question", "content: |\n      FAQ", "line 5"),
    "undeclared slot": (PROMPT, "{{ question }}", "{{ question }} {{ name }}", "slots:", 'uses "name"'),
    "unused slot": (PROMPT, "Question: {{ question }}", "Question", "slots:", 'declares slot "question"'),
    "prompt role": (PROMPT, "role: system", "role: boss", "role: boss", "'system', 'developer', 'user'"),
    "slot schema": (PROMPT, "question: {type: string}", "question: {type: strng}", "slots:", "JSON Schema"),
    "tool name": (TOOL, "name: search_faq", "name: search", "name:", 'in directory "search_faq"'),
    "tool effect": (TOOL, "effect: pure", "effect: none", "effect:", "'pure' or 'mutating'"),
    "tool promises": (TOOL, "timeout: 10", "probe: true", "name:", "make it mutating"),
    "tool schema": (TOOL, "found: {type: integer}", "found: {type: int}", "", "JSON Schema"),
    "enum value": (WORKFLOW, "search.found == 0", "search.found == 'none'", "- when:", "is compared with"),
    "argument": (WORKFLOW, "input: {question: $input.question}", "input: {question: 5}", "question: 5", "is 5 (a number)"),
    "variable in capitals": (WORKFLOW, "Answers a", "${BANK} a", "description:", "${BANK} is not among"),
    "parameter": ("tools/search_faq/main.py", "def run(question", "def run(quest", "", 'run() needs "quest"'),
    "eval field": (EVAL, "expect:", "expects:", "expects:", "is not a known field"),
    "eval workflow": (EVAL, "workflow: answer", "workflow: nope", "workflow: nope", 'workflow "nope" does not exist'),
    "eval input": (EVAL, "{question: How", "{quest: How", "input:", "declared are question; the value has quest"),
    "eval step": (EVAL, "search: {found: 1}", "serch: {found: 1}", "serch:", 'the workflow has no step "serch"'),
    "egress": (TOOL, "timeout: 10", 'egress: ["example.com"]', "egress:", "names no port"),
    "policy": (POLICY, '"call_model", resource);', '"call_model" resource);', '"call_model" resource);', "not valid Cedar"),
    "policy without an end": (POLICY, "digest_matches };", "digest_matches }", "digest_matches }", "not valid Cedar"),
    "model pin": (SETTINGS, "local:smollm2-135m-instruct-q4_1", "smollm2", "", '"smollm2" is not a model'),
    "settings": (SETTINGS, "[models]", "[model]", "", 'setting "model" is not accepted'),
    "no TOML": (SETTINGS, "[models]", "[models", "", "not valid TOML"),
}  # fmt: skip


BY_COMMAND = {"no YAML", "tool not allowed", "prompt syntax", "tool name", "policy", "model pin", "settings", "no TOML"}
BY_COMMAND |= {name for name in FAULTS if name.startswith("eval")}


def test_check_names_the_place_and_the_mend(files: Cli, subtests: pytest.Subtests) -> None:
    for name, (file, old, new, anchor, said) in FAULTS.items():
        with subtests.test(name):
            before = (files.directory / file).read_text()
            files.edit(file, old, new)
            after = (files.directory / file).read_text()
            if name in BY_COMMAND:
                lines = files.fails(2, "check").splitlines()
            else:  # what the command does, without the process
                with pytest.raises(InvalidSpec) as refused:
                    read_project(files.directory, load_settings(files.directory))
                lines = refused.value.message.splitlines()
            (files.directory / file).write_text(before)
            line = next((line for line in lines if said in line), None)
            assert line is not None, lines
            assert file in line or name in {"tool schema", "parameter"}
            if anchor:
                assert after.count(anchor) == 1
                number = after[: after.index(anchor)].count("\n") + 1
                assert line.startswith(f"{file}:{number}: ")
    assert files.ok("check").out.startswith("answer@")


def test_check_finds_all_faults_at_once(files: Cli) -> None:
    """First those of each file, then, once every file is whole, those of how they fit each other."""
    files.edit(PROMPT, "role: system", "role: boss")
    files.edit(TOOL, "effect: pure", "effect: none")
    files.edit(POLICY, "permit(principal", "permit(prncpal")
    files.write("policies/other.cedar", "permit(;")
    files.write("workflows/second.yaml", "name: second\n")
    files.write(SETTINGS, '[models]\ndefault = "nonsense"\n')
    said = files.fails(2, "check").splitlines()
    places = [line.partition(": ")[0].partition(":")[0] for line in said]
    assert sorted(set(places)) == [SETTINGS, POLICY, "policies/other.cedar", PROMPT, TOOL, "workflows/second.yaml"]
    assert places.count("workflows/second.yaml") == 2  # input and steps are missing


def test_check_finds_everything_that_does_not_fit(files: Cli) -> None:
    files.edit(WORKFLOW, "prompt: answer", "prompt: reply")
    files.edit(WORKFLOW, "search.found", "serch.found")
    text = (files.directory / WORKFLOW).read_text()
    files.write("workflows/second.yaml", text.replace("name: answer", "name: second", 1))
    said = files.fails(2, "check").splitlines()
    assert [line.partition(":")[0] for line in said] == [WORKFLOW] * 2 + ["workflows/second.yaml"] * 2
    files.write("workflows/second.yaml", text)
    assert "is also in workflows/answer.yaml; rename one" in files.fails(2, "check")
    files.write("prompts/answer.yml", (files.directory / PROMPT).read_text())
    assert 'prompts/answer.yml:1: there is another prompt "answer"' in files.fails(2, "check")


def test_hidden_files_are_no_definitions(files: Cli) -> None:
    (files.directory / "workflows" / ".#answer.yaml").symlink_to("somebody@host.123")  # Emacs' lock
    files.write("prompts/.answer.yaml", "draft")
    files.write("policies/.main.cedar", "draft")
    assert files.ok("check").out.startswith("answer@")


def test_check_outside_a_project_says_so(bare: Cli) -> None:
    for command in (("check",), ("run", "answer"), ("dev",)):
        said = bare.fails(2, *command)
        assert "has no workflows directory" in said
        assert "interlock init" in said
    assert list(bare.directory.iterdir()) == []


@pytest.mark.parametrize("name", [WORKFLOW, PROMPT, TOOL, POLICY, SETTINGS, "evals/answer.yaml"])
def test_no_file_of_a_project_can_bring_a_command_down(files: Cli, name: str) -> None:
    path = files.directory / name
    for content in (b"\xff\xfe\xfa", b"null"):  # tests/tools/test_project.py has more
        path.write_bytes(content)
        done = files("eval" if name.startswith("evals") else "check", INTERLOCK_DATABASE__URL="postgresql:///nowhere")
        assert "internal error" not in done.err, (content, done.err)
        assert done.code == 2, (content, done.err)
        assert name in done.err


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "large"])
@pytest.mark.parametrize("name", [WORKFLOW, PROMPT, TOOL, POLICY, SETTINGS, "evals/answer.yaml", "schemas/x.json"])
def test_only_regular_files_of_bounded_size_are_read(files: Cli, name: str, kind: str) -> None:
    """A pipe without a writer would stop the command for ever, and a device would fill its memory."""
    path = files.directory / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "large":
        path.write_bytes(b"x" * (5 * 2**20))
    else:
        with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(path.parent):
            server.bind(path.name)
    if name == "schemas/x.json":
        files.edit(WORKFLOW, "input:\n", "input: {$file: schemas/x.json}\nx:\n")
    said = files.fails(
        2, "eval" if name.startswith("evals") else "check", INTERLOCK_DATABASE__URL="postgresql:///nowhere"
    )
    assert name in said
    why = {"large": "it is larger than 4 MiB", "socket": "No such device or address"}.get(kind, "it is no regular file")
    outside = name == "schemas/x.json" and kind == "device"  # which is looked at first
    assert ("is outside the project" if outside else f"cannot be read: {why}") in said
    assert len(said.splitlines()) == 1


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


def test_a_reader_that_has_seen_enough_is_no_error(bare: Cli) -> None:
    reading, writing = os.pipe()
    os.close(reading)  # as `interlock schema | head -1` does, only sooner
    command = Command(bare.zygote, ("schema",), bare.directory, bare.env, b"", stdout=writing)
    bare.started.append(command)
    os.close(writing)
    done = command.wait()
    assert done.err == ""
    assert done.code in {0, 1, 120}


def test_the_stack_is_shown_to_whoever_asks_for_it(files: Cli) -> None:
    (files.directory / SETTINGS).unlink()
    (files.directory / SETTINGS).mkdir()
    said = files.fails(2, "check")
    assert f"{SETTINGS}: cannot be read" in said
    assert len(said.splitlines()) == 1
    shown = files.start("check", INTERLOCK_DEBUG="1").wait()
    assert shown.code != 0
    assert "Traceback" in shown.err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (RuntimeError("one\ntwo"), 1, "an internal error (RuntimeError: one); INTERLOCK_DEBUG=1 shows where"),
        (RuntimeError(), 1, "an internal error (RuntimeError: )"),
        (RecursionError("too deep"), 1, "an internal error (RecursionError: too deep)"),
        (OSError(28, "No space left on device", "/some/file"), 8, "/some/file: No space left on device"),
        (OSError("odd"), 8, "the system: odd"),
        (Conflict("it [bold]is[/] \x1b[31m there"), 4, "it [bold]is[/] \\u001b[31m there"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_whatever_goes_wrong_ends_in_a_sentence_and_a_code(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise error

    monkeypatch.setattr(main, "cli", broken)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        main.main()
    signal.signal(signal.SIGTERM, before)
    assert ended.value.code == code
    shown = capfd.readouterr().err
    assert shown.startswith(said)
    assert len(shown.splitlines()) == bool(said)


def test_every_command_explains_itself(bare: Cli) -> None:
    said = bare.ok("--help").out
    commands = re.findall(r"^  ([a-z]+)  ", said, flags=re.MULTILINE)
    assert {"init", "check", "schema", "eval", "run", "runs", "show", "trace", "cancel", "review"} <= set(commands)
    assert {"dev", "serve", "worker", "migrate", "demo", "doctor", "audit", "keys"} <= set(commands)
    for command in commands:
        assert len(bare.ok(command, "--help").out.splitlines()) > 3
    assert "No such command" in bare.fails(2, "[/nonsense]")
    assert json.loads(bare.ok("schema").out)
