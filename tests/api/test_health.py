"""Health, and what callers hear while the database is away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from interlock.api.server import Server
from interlock.app import App
from interlock.base.errors import Unavailable
from interlock.base.settings import Settings
from interlock.store import database
from interlock.testing import FakeProvider, answer, cut_stream

from .conftest import Serve, Served, problem_of


@pytest.fixture(autouse=True)
def _slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that is only slow is not away."""
    monkeypatch.setattr("interlock.services.health._READY_SECONDS", 60.0)


async def test_readiness_tells_how_much_waits(served: Served) -> None:
    client = await served.client(None)
    assert (await client.get("/readyz")).json() == {"status": "ok", "queue_depth": 0, "workers": 0}
    await served.start()
    await served.start(role="stranger")
    assert (await client.get("/readyz")).json() == {"status": "ok", "queue_depth": 2, "workers": 0}


async def test_readiness_reports_a_full_disk(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await served.client(None)
    monkeypatch.setattr("interlock.services.health._FREE_BYTES", 2**80)
    given = await client.get("/readyz")
    assert given.status_code == 503
    code, message = problem_of(given)
    assert code == "unavailable"
    assert message.startswith("only ")
    assert "MiB are free on the disk of the data directory" in message
    assert message.endswith("make room")
    assert (await client.get("/healthz")).status_code == 200


async def test_while_the_database_is_away_callers_are_told_and_afterwards_nothing_is_missing(
    private_server: Any, project: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_WAITS", (0.01,) * 10)  # how long it is patient is not the question here
    settings = Settings(database={"url": private_server.url, "pool_size": 4}, data_dir=data_dir)  # type: ignore[arg-type]
    async with App(project, settings) as app:
        principal, key = await app.admin.local_principal()
        await app.admin.deploy(principal, app.read_project())
        server = Server(app.services, host="127.0.0.1", port=0, payload_bytes=app.settings.limits.payload_bytes)
        await server.start()
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=server.url, headers=headers, trust_env=False, timeout=60) as client:
            assert (await client.get("/readyz")).status_code == 200

            async def start(name: str) -> httpx.Response:
                body = {"workflow": "ask", "input": {"text": name}}
                return await client.post("/v1/runs", json=body, headers={"Idempotency-Key": name})

            before = (await start("before")).json()["run_id"]
            private_server.crash()
            for _ in range(2):
                answers = {
                    "/readyz": await client.get("/readyz"),
                    "/v1/runs": await client.get("/v1/runs"),
                    "POST": await start("meanwhile"),
                }
                for path, given in answers.items():
                    assert given.status_code == 503, path
                    code, message = problem_of(given)
                    assert code == "unavailable"
                    assert "database" in message
                    assert "postgresql://" not in message
                assert (await client.get("/healthz")).json() == {"status": "ok"}
            private_server.start()
            ready = await client.get("/readyz")
            assert ready.json() == {"status": "ok", "queue_depth": 1, "workers": 0}
            # The request that was refused was not half-accepted: the same key is a new run, once.
            again = await start("meanwhile")
            assert again.status_code == 201
            assert (await start("meanwhile")).json() == {"run_id": again.json()["run_id"], "new": False}
            assert (await start("before")).json() == {"run_id": before, "new": False}
            assert {run["run_id"] for run in (await client.get("/v1/runs")).json()["runs"]} == {
                before,
                again.json()["run_id"],
            }
            assert (await client.get("/v1/audit/verify")).json()["ok"] is True
        await server.stop()


async def test_a_bug_is_told_in_a_sentence_and_logged_with_its_stack(
    served: Served, log_file: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_args: Any, **_keywords: Any) -> None:
        raise RuntimeError("sk-0123456789abcdef was here")

    monkeypatch.setattr(served.app.runs, "page", broken)
    monkeypatch.setattr(served.app.services.followers, "follow", broken)
    client = await served.client()
    run_id = await served.start()
    for path in ("/v1/runs", f"/v1/runs/{run_id}/events"):
        given = await client.get(path)
        assert given.status_code == 500
        assert problem_of(given) == ("internal", "an internal error; the server's log has the details")
    lines = [json.loads(line) for line in log_file.read_text().splitlines()]
    logged = [line for line in lines if line["level"] == "error"]
    assert logged
    assert all("RuntimeError" in line["structured_data"]["exception"] for line in logged)
    assert "sk-0123456789abcdef" not in log_file.read_text()
    shown = capfd.readouterr()
    assert "Traceback" not in shown.out + shown.err


MODEL = """\
name: say
input: {type: object}
steps:
  - id: talk
    kind: model
    prompt: talk
    output: {type: object, properties: {words: {type: string}}, required: [words]}
    retry: {max_attempts: 1}
output: {words: $steps.talk.words}
"""
PROMPT = """\
messages:
  - {role: user, content: Say something.}
"""


async def test_what_a_model_says_is_shown_whatever_it_says(serve: Serve, project: Path) -> None:
    (project / "workflows" / "say.yaml").write_text(MODEL)
    (project / "prompts").mkdir()
    (project / "prompts" / "talk.yaml").write_text(PROMPT)
    refused = ['{"words": "\\ud800 half"}', '{"words": "a\\u0000b"}']  # and corrected
    said = [*refused, '{"words": "</script>\\u001b[31m"}']
    async with FakeProvider() as fake:
        served = await serve(
            worker=True, models={"default": "openai:fake"}, providers={"openai": {"base_url": fake.url}}
        )
        client = await served.client()
        for text in said:
            fake.script(answer(text))
            run_id = (await client.post("/v1/runs", json={"workflow": "say", "input": {}})).json()["run_id"]
            run = await served.run(run_id, lambda run: run["finished_at"] is not None)
            shown = await client.get(f"/v1/runs/{run_id}/result")
            assert shown.status_code == 200
            assert run["status"] in {"succeeded", "failed"}
            if run["status"] == "succeeded":
                assert (shown.json()["output"] == json.loads(text)) is (text not in refused)
            for part in ("values", "trace", "events"):
                assert (await client.get(f"/v1/runs/{run_id}/{part}")).status_code == 200
        # Faults of the provider end the run with a sentence in it, and no stack trace.
        for fault in (cut_stream(), answer("x", finish_reason="length")):
            fake.always(fault)
            run_id = (await client.post("/v1/runs", json={"workflow": "say", "input": {}})).json()["run_id"]
            run = await served.run(run_id, lambda run: run["finished_at"] is not None)
            assert run["status"] == "failed"
            assert run["reason"].startswith('step "talk": ')
            assert "Traceback" not in run["reason"]


def test_a_port_that_is_taken_is_refused_in_a_sentence(served: Served) -> None:
    with pytest.raises(Unavailable) as refused:
        Server(
            served.app.services,
            host="127.0.0.1",
            port=served.port,
            payload_bytes=served.app.settings.limits.payload_bytes,
        )
    assert f"port {served.port} on 127.0.0.1" in str(refused.value)
    assert "server.port" in str(refused.value)


async def test_the_server_speaks_ipv6(served: Served) -> None:
    try:
        server = Server(served.app.services, host="::1", port=0, payload_bytes=served.app.settings.limits.payload_bytes)
    except Unavailable:
        pytest.skip("this machine has no IPv6 loopback")
    await server.start()
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            assert (await client.get(f"{server.url}/healthz")).status_code == 200
    finally:
        await server.stop()
