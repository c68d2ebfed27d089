from __future__ import annotations

# The same stage as for the engine's tests, with small workflows of each test's own.
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from engines.conftest import (  # noqa: F401
    Desk,
    OpenApp,
    bank,
    desk,
    lapse,
    model,
    open_app,
    seen,
    settings,
    spawn,
    start_bank,
    strict,
)
from engines.harness import BOOM_CODE, BOOM_TOOL, NOTE_CODE, NOTE_TOOL, PERMIT_ALL, PROMPT, refund_tool, write
from gateway.batch_server import BatchServer
from interlock.execution.batch.calls import BatchedCalls

Deploy = Callable[..., Awaitable[Desk]]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Tools and a prompt, and one workflow because a project needs one; tests add theirs with `deploy`."""
    directory = tmp_path / "project"
    write(
        directory,
        {
            "policies/main.cedar": PERMIT_ALL,
            "prompts/think.yaml": PROMPT,
            "tools/note/tool.yaml": NOTE_TOOL,
            "tools/note/main.py": NOTE_CODE,
            "tools/boom/tool.yaml": BOOM_TOOL,
            "tools/boom/main.py": BOOM_CODE,
            **refund_tool("refund", "bank", "honours_idempotency", "compensate"),
        },
    )
    return directory


@pytest.fixture
async def deploy(project: Path, open_app: OpenApp, admin: object) -> Deploy:  # noqa: F811
    """Writes files into the project, deploys it, starts a worker; keywords are settings."""

    async def make(*files: dict[str, str], **changes: object) -> Desk:
        for part in files:
            write(project, part)
        return Desk(await open_app(start_worker=True, deploy=True, **changes), admin)  # type: ignore[arg-type]

    return make


class Gathering:
    """While `held`, no batched call is handed in; from then on those that wait go together, however slowly they came."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.held = True
        original = BatchedCalls._submit_batch

        async def hand_in(calls: BatchedCalls, *given: object) -> None:
            if not self.held:
                await original(calls, *given)  # type: ignore[arg-type]

        monkeypatch.setattr(BatchedCalls, "_submit_batch", hand_in)


@pytest.fixture
def gathering(monkeypatch: pytest.MonkeyPatch) -> Gathering:
    return Gathering(monkeypatch)


@pytest.fixture
async def provider(monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]) -> AsyncIterator[BatchServer]:  # noqa: F811
    """A provider with a batch API, in both dialects: the test's settings name it instead of the fake model."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-test-0123456789")
    async with BatchServer() as server:
        settings["providers"] = server.providers
        yield server


@pytest.fixture(params=["openai", "anthropic"])
def pin(provider: BatchServer, request: pytest.FixtureRequest) -> str:
    """Each of its dialects in turn."""
    return provider.pin if request.param == "openai" else provider.anthropic_pin
