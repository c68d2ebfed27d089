"""The main job with the real local model: what `make demo` does, with fewer tickets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from demo.conftest import Demo, processes_of


@pytest.mark.timeout(600)  # the weights are fetched on first use
async def test_the_demo_with_the_local_model(home: Path) -> None:
    demo = Demo(home, "--tickets", "3")
    assert await demo.ended(seconds=500) == 0, demo.said
    assert re.search(r"audit: \d+ entries verified", demo.said)
    assert "local:smollm2-135m" in demo.said
    assert re.search(r"category right: \d/3", demo.said)
    started = {run["run_id"] for run in demo.logged("run.started")}
    finished = {run["run_id"]: run["status"] for run in demo.logged("run.finished")}
    assert set(finished) == started
    assert list(finished.values()) == ["succeeded"] * 3
    calls = [line for line in demo.logged("step.finished") if "output_tokens" in line]
    assert len(calls) == 6, "two model steps a ticket"
    assert all(line["input_tokens"] > 0 and line["output_tokens"] > 0 for line in calls)
    assert processes_of(home) == []
