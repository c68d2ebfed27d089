"""What the documents say, tried: examples are accepted, commands and files exist."""

from __future__ import annotations

import re
import shutil
import time
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from typer.main import get_command

from interlock.base.settings import Settings
from interlock.cli.main import cli
from interlock.definitions.project import read_project
from interlock.evals.suite import Suite
from interlock.notify.webhook import signature_of
from interlock.workflows.contracts import ToolContract
from interlock.workflows.prompts import PromptSpec, compile_prompt
from interlock.workflows.source import parse_yaml, validate
from interlock.workflows.spec import Steps

ROOT = Path(__file__).parents[2]
TOP = [ROOT / f"{name}.md" for name in ("README", "ARCHITECTURE", "CONTRIBUTING", "SECURITY", "CHANGELOG")]
DOCUMENTS = [*TOP, *sorted((ROOT / "docs").rglob("*.md"))]


def fenced(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_first_workflow_of_the_readme_fits_a_new_project(tmp_path: Path) -> None:
    project = tmp_path / "my-agent"
    shutil.copytree(Path(str(resources.files("interlock.cli"))) / "template", project)
    workflow = next(text for text in fenced(ROOT / "README.md", "yaml") if text.startswith("name:"))
    (project / "workflows" / "answer.yaml").write_text(workflow)
    assert set(read_project(project, Settings()).definitions) == {"answer"}
    assert len(workflow.splitlines()) <= 21


def test_the_contract_in_the_docs_is_one() -> None:
    for text in fenced(ROOT / "docs" / "tools.md", "yaml"):
        contract = validate(ToolContract, parse_yaml(text, "docs/tools.md"))
        assert contract.mutating


def test_the_steps_in_the_docs_are_steps() -> None:
    texts = fenced(ROOT / "docs" / "workflows.md", "yaml")
    steps = [step for text in texts for step in TypeAdapter(Steps).validate_python(parse_yaml(text, "docs").data)]
    assert {"agent", "map", "model", "tool"} <= {step.kind for step in steps}


def test_the_prompt_and_the_eval_case_in_the_docs_are_valid() -> None:
    prompt, suite = fenced(ROOT / "docs" / "prompts.md", "yaml")
    compiled = compile_prompt("answer", validate(PromptSpec, parse_yaml(prompt, "docs/prompts.md")))
    assert set(compiled.spec.slots) == {"question", "entries"}
    assert validate(Suite, parse_yaml(suite, "docs/prompts.md")).cases[0].expect.output == {"topic": "refunds"}


def test_the_receiver_in_the_docs_verifies_signatures() -> None:
    scope: dict[str, Any] = {}
    exec(fenced(ROOT / "docs" / "operations.md", "python")[0], scope)
    is_genuine, key, body, now = scope["is_genuine"], bytes(range(32)), b'{"id": 1}', int(time.time())
    assert is_genuine(signature_of(key, now, body), body, key.hex())
    for header, sent, secret in (
        (signature_of(key, now - 3600, body), body, key),
        (signature_of(key, now, body).replace(f"t={now}", f"t={now + 1}"), body, key),
        (signature_of(key, now, body), body + b" ", key),
        (signature_of(key, now, body), body, bytes(32)),
        ("", body, key),
        ("t=x,v1=ø", body, key),
    ):
        assert not is_genuine(header, sent, secret.hex())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_linked_files_exist(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_named_commands_and_make_targets_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    commands = set(get_command(cli).commands)  # type: ignore[attr-defined]
    for name in re.findall(r"(?:^|[`\s/])interlock ([a-z]+)(?=[\s`]|$)", "\n".join(_code(text)), re.MULTILINE):
        assert name in commands, f"{document.name} names interlock {name}"
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name in re.findall(r"\bmake ([a-z-]+)\b", "\n".join(_code(text))):
        assert name in targets, f"{document.name} names make {name}"


def test_settings_in_the_docs_exist() -> None:
    rows = re.findall(r"^\| (`[^|]+) \|", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    known = Settings.model_fields
    for name in [name for row in rows for name in re.findall(r"`([a-z_]+\.[a-zA-Z_]+)`", row)]:
        section, key = name.split(".")
        if section in {"models", "variables"}:
            continue
        assert key in known[section].annotation.model_fields, name  # type: ignore[union-attr]


def _code(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text) + re.findall(r"^```[a-z]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
