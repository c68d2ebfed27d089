"""`interlock worker --engine temporal`, and what it says when it cannot."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.conftest import Desk, OpenApp
from engines.harness import PATIENCE, Bank, Observer, clean_environment, until
from engines.temporal.conftest import TemporalServer
from interlock.base.errors import Unavailable
from interlock.engines.temporal.worker import build_id

Start = Callable[..., subprocess.Popen[str]]
CLI = "from interlock.cli.main import main; main()"
WITHOUT_EXTRA = "import sys; sys.modules['temporalio'] = None; " + CLI


@pytest.fixture
def start(project: Path, data_dir: Path, database_url: str, settings: dict[str, Any]) -> Iterator[Start]:
    """The command as users start it, in a project directory, configured by the environment."""
    started: list[subprocess.Popen[str]] = []

    def command(*arguments: str, program: str = CLI) -> subprocess.Popen[str]:
        environment = clean_environment(
            INTERLOCK_DATA_DIR=str(data_dir),
            INTERLOCK_DATABASE__URL=database_url,
            INTERLOCK_MODELS=json.dumps(settings["models"]),
            INTERLOCK_VARIABLES=json.dumps(settings["variables"]),
            INTERLOCK_TEMPORAL__TASK_QUEUE=settings["temporal"]["task_queue"],
            INTERLOCK_TEMPORAL__CACHED_RUNS="0",
            INTERLOCK_SANDBOX__WARM="0",
        )
        given = [sys.executable, "-c", program, "worker", *arguments]
        process = subprocess.Popen(
            given, cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        started.append(process)
        return process

    yield command
    for process in started:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    """Its words on one line, once it has ended."""
    return " ".join(process.communicate(timeout=PATIENCE)[0].split())


async def test_a_worker_from_the_command_line(
    desk: Desk, start: Start, seen: Observer, bank: Bank, temporal_server: TemporalServer
) -> None:
    worker = start("--engine", "temporal", "--address", temporal_server.address, "--unversioned")
    run = await desk.start("pay_keyed", ticket="a")
    await until(
        lambda: seen.status(run) == "succeeded" or worker.poll() is not None, lambda: f"no progress: {seen.kinds(run)}"
    )
    assert bank.refunds == {"a": 1}
    worker.send_signal(signal.SIGTERM)
    assert "finishes the steps under way" in said(worker)
    assert worker.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "program", "sentence", "status"),
    [
        (
            ["--engine", "temporal", "--address", "127.0.0.1:9"],
            CLI,
            "no Temporal server answers at 127.0.0.1:9; start it, or set temporal.address",
            8,
        ),
        (
            ["--engine", "temporal"],
            WITHOUT_EXTRA,
            'the Temporal engine needs a package that is not installed; run pip install "interlock[temporal]"',
            8,
        ),
        (["--engine", "temporel"], CLI, '--engine "temporel" is not known; use postgres or temporal', 2),
        (["--address", "127.0.0.1:9"], CLI, "are for the Temporal engine; add --engine temporal", 2),
    ],
    ids=["unreachable", "not installed", "misspelt", "for the other engine"],
)
async def test_one_sentence_says_what_to_mend(
    desk: Desk, start: Start, arguments: list[str], program: str, sentence: str, status: int
) -> None:
    worker = start(*arguments, program=program)
    words = said(worker)
    assert sentence in words
    assert "Traceback" not in words
    assert worker.returncode == status


@pytest.mark.parametrize("temporal", [{"versioned": True}], indirect=True)
async def test_a_server_without_versioning_is_refused(desk: Desk, open_app: OpenApp, temporal: dict[str, Any]) -> None:
    """The test server is one. A run must not move to other code in the middle because nobody noticed."""
    with pytest.raises(Unavailable, match="--unversioned"):
        await open_app(start_worker=True)


def test_the_build_is_named_after_the_code() -> None:
    version, _, digest = build_id().partition("-")
    assert version.count(".") == 2
    assert len(digest) == 12
