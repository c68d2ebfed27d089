"""`interlock worker --engine temporal`, and what it says when it cannot."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from engines.conftest import Desk, OpenApp
from engines.harness import Bank, Observer, until
from engines.temporal.conftest import CLI, Start, TemporalServer, said
from interlock.base.errors import Unavailable
from interlock.engines.temporal.worker import build_id

WITHOUT_EXTRA = "import sys; sys.modules['temporalio'] = None; " + CLI


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
    if os.environ.get("TEMPORAL_TEST_SERVER") == "real":
        pytest.skip("the real server has versioning")
    with pytest.raises(Unavailable, match="--unversioned"):
        await open_app(start_worker=True)


def test_the_build_is_named_after_the_code() -> None:
    version, _, digest = build_id().partition("-")
    assert version.count(".") == 2
    assert len(digest) == 12
