"""Files around the code: Makefile, CI, pre-commit and the wheel name things that exist and fit together."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def read_yaml(name: str) -> Any:
    return YAML(typ="safe", pure=True).load(ROOT / name)


def test_what_test_fast_leaves_out_exists() -> None:
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    slow = re.search(r"^SLOW := (.*)$", makefile, re.MULTILINE)
    assert slow
    assert [path for path in slow[1].split() if not (ROOT / path).exists()] == []


def test_hooks_are_local_and_run_installed_programs() -> None:
    for repository in read_yaml(".pre-commit-config.yaml")["repos"]:
        assert repository["repo"] == "local"
        for hook in repository["hooks"]:
            program, *arguments = hook["entry"].split()
            assert hook["language"] == "system"
            assert program.startswith(".venv/bin/")
            assert (BIN / Path(program).name).exists(), program
            for argument in arguments:
                assert not argument.endswith(".py") or (ROOT / argument).exists(), argument


def test_continuous_integration_runs_the_script_on_supported_pythons() -> None:
    job = read_yaml(".github/workflows/ci.yml")["jobs"]["run"]
    assert "bash .ci/run" in [step.get("run") for step in job["steps"]]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    prefix = "Programming Language :: Python :: "
    supported = [one.removeprefix(prefix) for one in project["classifiers"] if re.match(prefix + r"3\.\d+$", one)]
    assert project["requires-python"] == f">={supported[0]}"
    assert len(job["strategy"]["matrix"]["python"]) == 2
    assert set(job["strategy"]["matrix"]["python"]) <= set(supported)


def test_the_wheel_says_that_it_is_typed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert "interlock/py.typed" in archive.namelist()
        metadata = next(archive.read(name) for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    assert b"Classifier: Typing :: Typed" in metadata
