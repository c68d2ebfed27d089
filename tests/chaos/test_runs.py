"""All faults together: a short run through the command line, one against a shared database, and the long one."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from chaos.conftest import Run, clean
from interlock.app import App
from interlock.base.errors import InvalidInput
from interlock.chaos.faults import FAULTS
from interlock.cli.main import cli
from interlock.identity.principal import Principal


def interlock(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "interlock.cli.main", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=600)


async def test_all_faults_in_a_short_run(tmp_path: Path) -> None:
    for seed in ("7", "8", "9"):  # on a busy machine the time may pass before each fault has struck: that says nothing
        arguments = ("chaos", "--runs", "70", "--seconds", "36", "--seed", seed, "--json")
        done = await asyncio.to_thread(interlock, *arguments, cwd=tmp_path)
        report: dict[str, Any] = json.loads(done.stdout)
        if report["violations"] or min(report["strikes"].values()) >= 1:
            break
    assert done.returncode == 0, done.stdout + done.stderr
    assert report["ok"] is True
    assert set(report["strikes"]) == set(FAULTS)
    assert min(report["strikes"].values()) >= 1
    assert (report["duplicate_effects"], report["lost_effects"], report["violations"]) == (0, 0, [])
    assert report["runs_finished"] == report["runs_started"] > 70
    assert "Traceback" not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == [], "nothing is left in the directory it was called from"


@pytest.mark.parametrize("arguments", [("--faults", "kill,nonsense"), ("--faults", ","), ("--runs", "0")])
def test_arguments_that_mean_nothing(arguments: tuple[str, ...]) -> None:
    done = CliRunner().invoke(cli, ["chaos", *arguments])
    assert isinstance(done.exception, InvalidInput) or done.exit_code == InvalidInput.exit_code


async def test_a_shared_database_keeps_its_runs_and_its_server(
    drill: Run, app: App, admin: Principal, owner: psycopg.Connection[Any], owner_url: str, data_dir: Path
) -> None:
    """Another organisation's run waits in the same queue; no worker of the chaos run may touch it."""
    run_id, _ = await app.submission.accept(admin, "ask", {"text": "hello"}, None)
    report = await drill(
        runs=14, seconds=8, faults=("kill", "drain", "postgres"), url=owner_url, data_dir=data_dir, workers=2
    )
    clean(report)
    assert list(report.skipped) == ["postgres"]
    assert report.strikes["kill"] >= 1
    assert owner.execute("select worker, fence from queue where run_id = %s", (run_id,)).fetchone() == (None, 0)
    assert owner.execute("select distinct org_id from runs where workflow <> 'ask'").fetchall() == [("chaos",)]


@pytest.mark.chaos
@pytest.mark.timeout(1500)
async def test_a_thousand_runs(drill: Run) -> None:
    """The aim: nothing lost, nothing doubled, and whatever was hit goes on within ten seconds."""
    report = await drill(runs=1000, seconds=420, workers=3, seed=20, least=5)
    print(json.dumps(report.to_json(), indent=2))
    clean(report)
    assert report.objects > 0
    assert report.recovery_p99 < 10
    assert report.spared == [], "a worker must have been killed at every boundary"
