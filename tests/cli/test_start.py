"""Start of a command: what it imports, its help, completion, and the project it is about."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from interlock.base import errors
from interlock.cli import commands
from interlock.cli.commands import COMMANDS, load
from interlock.cli.main import cli as app

from .conftest import Cli, fixed_server

HEAVY = {
    *("fastapi", "starlette", "uvicorn", "aiohttp", "asyncpg", "psycopg", "cedarpy", "obstore", "cryptography"),
    *("jinja2", "ruamel.yaml", "xllamacpp", "watchfiles", "opentelemetry.sdk"),
    *("interlock.api", "interlock.app", "interlock.execution", "interlock.engines", "interlock.definitions"),
    *("interlock.gateway", "interlock.sandbox", "interlock.store", "interlock.chaos", "interlock.workflows.spec"),
}
FOR_HELP = HEAVY | {"asyncio", "httpx", "pydantic", "pydantic_settings", "rich", "ssl", "interlock.base.settings"}

PROGRAM = """
import atexit, json, sys
from interlock.cli.main import main
out, sys.argv = sys.argv[1], ["interlock", *sys.argv[2:]]
atexit.register(lambda: open(out, "w").write(json.dumps(sorted(sys.modules))))
main()
"""

EMPTY = {"/v1/runs": "runs", "/v1/reviews": "reviews", "/v1/dead-letters": "dead_letters", "/v1/audit": "entries",
         "/v1/keys": "keys", "/v1/policies": "policies", "/v1/quotas": "quotas", "/v1/workflows": "workflows"}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server that knows nothing but empty lists."""
    with fixed_server(lambda path: {EMPTY[path]: []}) as url:
        yield url


def modules_of(directory: Path, *arguments: str, **env: str) -> set[str]:
    """The modules that a process of this command has loaded at its end."""
    found = directory / "modules.json"
    command = [sys.executable, "-c", PROGRAM, str(found), *arguments]
    clean = {"PATH": os.environ["PATH"], "HOME": str(directory), **env}
    done = subprocess.run(command, cwd=directory, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(found.read_text()))


@pytest.mark.parametrize("option", ["--help", "-h", "--version"])
def test_the_help_imports_no_command(option: str, tmp_path: Path) -> None:
    loaded = modules_of(tmp_path, option)
    assert loaded & FOR_HELP == set()
    assert {f"interlock.cli.{entry.module}" for entry in COMMANDS.values()} & loaded == set()


@pytest.mark.parametrize(
    "command",
    ["runs", "review list", "dead-letters list", "audit list", "keys list", "policies list", "quota list", "versions"],
)
def test_a_client_command_imports_no_server(command: str, server: str, tmp_path: Path) -> None:
    loaded = modules_of(tmp_path, *command.split(), INTERLOCK_URL=server)
    assert "httpx" in loaded
    assert loaded & HEAVY == set()


def test_the_table_has_the_help_of_every_command() -> None:
    for name, entry in COMMANDS.items():
        command = load(name)
        assert command.name == name
        assert " ".join((command.help or "").split("\n\n")[0].split()) == entry.help
    source = Path(commands.__file__).parent
    written = {
        path.stem
        for path in source.glob("*.py")
        if re.search(r"^def register|^group = ", path.read_text(), re.MULTILINE)
    }
    assert written == {entry.module for entry in COMMANDS.values()}


def test_every_command_has_both_help_options() -> None:
    lines = [[name] for name in COMMANDS]
    lines += [[name, inner] for name in COMMANDS for inner in getattr(load(name), "commands", ())]
    assert len(lines) > 45
    for line in ([], *lines):
        short, long = (CliRunner().invoke(app, [*line, option]) for option in ("-h", "--help"))
        assert (short.exit_code, short.output) == (0, long.output), line
        assert f"Usage: interlock{' ' if line else ''}{' '.join(line)}" in short.output


def test_every_command_prints_json() -> None:
    leaves = [load(name) for name in COMMANDS]
    leaves = [leaf for one in leaves for leaf in getattr(one, "commands", {one.name: one}).values()]
    without = set()
    for leaf in leaves:
        flags = [one for one in leaf.params if "--json" in one.opts]
        assert all(one.is_flag for one in flags), leaf.name
        if not flags:
            without.add(leaf.name)
    assert without == {"dev", "serve", "worker", "demo"}  # they run until they are stopped, or are shown to people


def test_the_exit_codes_are_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    section = text.split("## Exit codes\n")[1].split("\n## ")[0]
    documented = [int(code) for code in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)]
    kinds = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "exit_code")}
    assert set(documented) == kinds | {0, 10, 11, 130}
    assert len(set(documented)) == len(documented)


def test_without_a_command_the_help_is_the_answer(bare: Cli) -> None:
    done = bare.ok()
    assert done.err == ""
    assert done.out == bare.ok("--help").out


def test_a_locale_without_unicode(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "interlock.cli.main", "init", "pläne/agent"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"created pl" in done.stdout


def test_the_version(bare: Cli) -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.+)"', project, re.MULTILINE)
    assert version
    assert bare.ok("--version").out == f"interlock {version[1]}\n"


@pytest.mark.parametrize(
    ("words", "suggested"),
    [("interlock dead", "dead-letters"), ("interlock review app", "approve"), ("interlock runs --st", "--status")],
)
def test_completion(words: str, suggested: str, bare: Cli) -> None:
    last = str(len(words.split()) - 1)
    done = bare.ok(_INTERLOCK_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=last)
    assert done.out.split() == [suggested]


def test_a_mistyped_command_is_named(bare: Cli) -> None:
    assert "Did you mean 'run" in bare.fails(2, "rnu")


# -- the project -------------------------------------------------------------------------------------------------


def test_the_project_is_found_from_below(files: Cli) -> None:
    deep = files.directory / "tools" / "search_faq"
    checked = files.ok("check")
    assert "answer@" in checked.out
    assert files.ok("check", cwd=deep).out == checked.out
    (files.directory / "interlock.toml").unlink()
    assert "answer@" in files.ok("check", cwd=deep).out  # workflows/ is a mark too


def test_the_nearest_project_counts(files: Cli) -> None:
    inner = files.directory / "tools" / "inner"
    (inner / "workflows").mkdir(parents=True)
    (inner / "sub").mkdir()
    (inner / "interlock.toml").write_text("nonsense = 1")
    assert f"{inner}/interlock.toml" in files.fails(2, "check", cwd=inner / "sub")


@pytest.mark.parametrize("option", ["-C", "--project"])
def test_a_project_elsewhere(option: str, files: Cli, tmp_path: Path) -> None:
    assert "answer@" in files.ok(option, str(files.directory), "check", cwd=tmp_path).out
    assert "answer@" in files.ok(option, "../agent/prompts", "check", cwd=files.directory.parent / "home").out


def test_a_project_that_is_no_directory(files: Cli) -> None:
    assert "--project: nowhere is not a directory" in files.fails(2, "-C", "nowhere", "check")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_above_is_passed_over(bare: Cli) -> None:
    settings = bare.directory.parent / "interlock.toml"
    settings.write_text("nonsense = 1")
    assert str(settings) in bare.fails(2, "check")
    os.chown(settings, 12345, 12345)
    assert "nonsense" not in bare.fails(2, "check")
