"""`verify.py` alone, in a directory of its own: for the auditor who has Python, one library and no reason to trust us."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from interlock.audit import verify

from .logs import export, trusted

SOURCE = Path(verify.__file__)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return Path(shutil.copy(SOURCE, tmp_path / "verify.py"))


def run(script: Path, *arguments: str) -> tuple[int, str, str]:
    # -I: neither this directory, nor the environment, nor user packages are looked at for imports.
    command = [sys.executable, "-I", str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=script.parent, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def written(script: Path, rows: list[Any]) -> str:
    path = script.with_name("audit.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def key() -> str:
    ((name, raw),) = trusted().items()
    return f"--public-key={name}={raw.hex()}"


def test_it_needs_nothing_but_the_standard_library_and_cryptography() -> None:
    imported = set()
    for node in ast.walk(ast.parse(SOURCE.read_text())):
        if isinstance(node, ast.Import):
            imported |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(str(node.module).split(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"cryptography"}


def test_an_intact_log(script: Path) -> None:
    assert run(script, written(script, export("acme", 5)), key()) == (0, "audit: 5 entries verified\n", "")


def test_a_log_that_was_tampered_with(script: Path) -> None:
    rows = export("acme", 5)
    rows[2]["entry"]["actor"] = "user:eve"
    code, out, _ = run(script, written(script, rows), key())
    assert (code, out) == (1, "audit: TAMPERED: entry 3: was changed after it was written\n")


def test_without_the_key_nothing_is_proven(script: Path) -> None:
    code, out, err = run(script, written(script, export("acme", 5)))
    assert (code, out) == (2, "")  # not "tampered with": the log may be sound
    assert err.startswith("cannot be verified: no key given; add --public-key")
    code, out, _ = run(script, written(script, export("acme", 5)), "--public-key=other=" + "00" * 32)
    assert code == 1
    assert "not among the known keys" in out


def test_rows_of_two_organisations_in_one_file(script: Path) -> None:
    code, out, _ = run(script, written(script, [*export("acme", 2), *export("globex", 3)[2:]]), key())
    assert code == 1
    assert "entry 3: belongs to another organisation" in out


@pytest.mark.parametrize("rows", [[{}], [{"org_id": "acme"}], [{"org_id": 7, "seq": "x"}]])
def test_rows_that_are_no_entries(script: Path, rows: list[Any]) -> None:
    code, out, _ = run(script, written(script, rows), key())
    assert code == 1
    assert "entry 1" in out


@pytest.mark.parametrize(
    "content", ["not json", '{"half": ', "[1]\n", "7\n", "[" * 200_000, "\xff\xfe"], ids=lambda text: text[:5]
)
def test_what_is_no_log_at_all(script: Path, content: str) -> None:
    path = script.with_name("audit.jsonl")
    path.write_bytes(content.encode("latin-1"))
    code, out, error = run(script, str(path), key())
    assert (code, out) == (2, "")
    assert error.startswith("cannot read: ")


@pytest.mark.parametrize("argument", ["--public-key=k=zz", "--public-key=k=00", "--public-key", "--unknown"])
def test_arguments_that_cannot_be_used(script: Path, argument: str) -> None:
    code, out, error = run(script, written(script, export("acme", 1)), argument)
    assert (code, out) == (2, "")
    assert error


def test_a_file_that_is_not_there(script: Path) -> None:
    assert run(script, str(script.with_name("nothing.jsonl")))[0] == 2


def test_an_empty_log(script: Path) -> None:
    assert run(script, written(script, []), key()) == (0, "audit: 0 entries verified\n", "")
