"""dev, serve, worker: long-lived processes, their reloading, and what is left when they have stopped."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from interlock.base.errors import Unavailable
from interlock.base.settings import Settings
from interlock.cli import connection
from interlock.testing import answer

from .conftest import PATIENCE, QUESTION, Cli, Command, FakeModel, left_with


def url_of(cli: Cli) -> str:
    return str(json.loads((cli.directory / ".interlock" / "server.json").read_text())["url"])


def up(cli: Cli, command: Command) -> str:
    """Waits until the server runs; its URL."""
    command.says("Interlock runs at ")
    assert url_of(cli) in command.err
    return url_of(cli)


def ready(command: Command, url: str) -> None:
    """As soon as the database answers it as quickly as a probe wants."""
    command.until(lambda: httpx.get(f"{url}/readyz", trust_env=False, timeout=PATIENCE).status_code == 200)


def postmaster(cli: Cli) -> int:
    return int((cli.directory / ".interlock" / "pg" / "postmaster.pid").read_text().splitlines()[0])


def clean(cli: Cli, done: Any) -> None:
    """The command ended well and nothing of it is left."""
    assert done.code == 0, done.out + done.err
    assert "Traceback" not in done.out + done.err
    assert not (cli.directory / ".interlock" / "server.json").exists()
    assert left_with(str(cli.directory)) == []


def test_dev_runs_everything_reloads_and_stops_without_a_trace(embedded: Cli, model: FakeModel) -> None:
    cli = embedded
    dev = cli.start("dev", "--port", "0")
    url = up(cli, dev)
    assert "deployed answer@" in dev.err
    ready(dev, url)
    assert httpx.get(f"{url}/v1/runs", trust_env=False, timeout=PATIENCE).status_code == 401
    assert (cli.directory / ".interlock").stat().st_mode & 0o077 == 0 or all(
        (cli.directory / ".interlock" / name).stat().st_mode & 0o777 == 0o600 for name in ("client.json", "server.json")
    )

    # Other commands talk to it: its worker drives the run, and goes on when the review is approved.
    said = cli.fails(4, "dev", "--port", "0")
    assert f"a server for this project already runs at {url}; stop it first" in said
    assert url in cli.fails(4, "serve", "--port", "0")
    first = cli.ok("run", "answer", "-i", QUESTION, "--json").json
    assert first["status"] == "succeeded"
    assert f"server running at {url}" in cli.ok("doctor").out
    model.always(answer({"topic": "other", "answer": "?"}))
    waiting = cli.waits("run", "answer", "-i", QUESTION, "--json").json
    approved = cli.ok("review", "approve", waiting["reviews"][0]["review_id"]).out
    assert "no server runs here" not in approved
    dev.until(lambda: cli.ok("show", waiting["run_id"], "--json").json["status"] == "succeeded")

    # A changed prompt is a new version; new runs get it, without a restart.
    model.always(answer({"topic": "refunds", "answer": "x"}))
    cli.edit("prompts/answer.yaml", "You answer customers", "You gladly answer customers")
    dev.until(lambda: dev.err.count("deployed answer@") == 2)
    second = cli.ok("run", "answer", "-i", QUESTION, "--json").json
    assert second["version"] != first["version"]
    assert "gladly" in json.dumps(model.last["messages"])

    # A broken file is told and changes nothing; mended, it counts again. The same content is the same version.
    cli.edit("prompts/answer.yaml", "role: system", "role: boss")
    dev.says("prompts/answer.yaml:6: messages.0.role: ")
    cli.write("policies/main.cedar", b"\xff")
    dev.says("policies/main.cedar: cannot be read")
    assert cli.ok("run", "answer", "-i", QUESTION, "--json").json["version"] == second["version"]
    cli.write("policies/main.cedar", "permit(principal, action, resource);")
    cli.edit("prompts/answer.yaml", "role: boss", "role: system")
    dev.until(lambda: dev.err.count("activated policy set") == 2)
    third = cli.ok("run", "answer", "-i", QUESTION, "--json").json
    assert third["version"] == second["version"]

    # A sound file is deployed beside a faulty one, and a file that is mended to what is deployed is named as such.
    sound = (cli.directory / "workflows/answer.yaml").read_text()
    cli.write("workflows/broken.yaml", "name: broken\nsteps: 5\n")
    dev.says("workflows/broken.yaml:2: steps: is 5 (a number); must be a list")
    cli.write("workflows/second.yaml", sound.replace("name: answer", "name: second"))
    dev.says("deployed second@")
    (cli.directory / "workflows/broken.yaml").unlink()
    dev.says("no faults any more; all workflows are as deployed")

    # Settings of definitions are read again.
    cli.write(
        "workflows/third.yaml",
        sound.replace("name: answer", "name: third").replace("kind: model\n", "kind: model\n    model: gone\n"),
    )
    dev.says('model "gone" is not in the settings')
    cli.edit("interlock.toml", "[models]\n", f'[server]\nport = 1\n[models]\ngone = "{model.pin}"\n')
    dev.says("deployed third@")
    dev.says("interlock.toml: a change of server needs a restart")

    # Prints and tracebacks of tools are shown to their author.
    cli.write("tools/search_faq/main.py", "def run(question):\n    print('called', 'here')\n    return {}['nothing']\n")
    dev.until(lambda: dev.err.count("deployed answer@") == 3)
    assert cli("run", "answer", "-i", QUESTION).code == 7
    dev.says('  File "/tool/main.py", line 3, in run')
    assert "tool search_faq (run_" in dev.err
    assert "  called here\n" in dev.err
    assert "KeyError: 'nothing'" in dev.err

    clean(cli, dev.stop(signal.SIGTERM))
    # What was done is still there, seen without a server.
    assert {run["run_id"] for run in cli.ok("runs", "--json").json} >= {first["run_id"], third["run_id"]}


def test_stopping_finishes_the_step_under_way(embedded: Cli, model: FakeModel) -> None:
    """… and follows no stream any longer: whoever looks on in a browser does not hold the end up."""
    cli = embedded
    dev = cli.start("dev", "--port", "0")
    url = up(cli, dev)
    model.always(answer({"topic": "refunds", "answer": "x"}))
    model.hold()
    before = model.count
    key = json.loads((cli.directory / ".interlock" / "client.json").read_text())["api_key"]
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=PATIENCE) as client:
        body = {"workflow": "answer", "input": json.loads(QUESTION)}
        run_id = client.post("/v1/runs", json=body).json()["run_id"]
        dev.until(lambda: model.count > before)
        with client.stream("GET", f"/v1/runs/{run_id}/events") as stream:
            os.kill(dev.pid, signal.SIGINT)
            assert "event: end" not in "".join(stream.iter_text())
    model.hold(False)
    clean(cli, dev.wait())
    run = cli.ok("show", run_id, "--json").json
    finished = {step["id"]: step["status"] for step in run["steps"]}
    assert finished["reply"] == "succeeded"
    assert model.count == before + 1


@pytest.mark.parametrize(("command", "moment"), [("dev", "pg/PG_VERSION"), ("worker", "pg/postmaster.pid")])
def test_a_start_that_is_broken_off_leaves_no_database_behind(embedded: Cli, command: str, moment: str) -> None:
    start = embedded.start(command, INTERLOCK_SERVER__PORT="0")
    start.until((embedded.directory / ".interlock" / moment).exists)
    done = start.stop(signal.SIGTERM)
    assert done.code in {0, 130}  # 0 where it came up before the signal came through
    assert "Traceback" not in done.err
    assert left_with(str(embedded.directory)) == []


def test_a_closed_terminal_ends_everything(embedded: Cli) -> None:
    """A shell sends the signal, and the kernel sends it again."""
    dev = embedded.start("dev", "--port", "0")
    up(embedded, dev)
    os.kill(dev.pid, signal.SIGHUP)
    os.kill(dev.pid, signal.SIGHUP)
    clean(embedded, dev.wait())


def test_dev_starts_its_database_again(embedded: Cli, model: FakeModel) -> None:
    dev = embedded.start("dev", "--port", "0")
    url = up(embedded, dev)
    first = embedded.ok("run", "answer", "-i", QUESTION, "--json").json
    os.kill(postmaster(embedded), signal.SIGKILL)
    dev.says("PostgreSQL ended by itself and was started again")
    ready(dev, url)
    second = embedded.ok("run", "answer", "-i", QUESTION, "--json").json
    assert {first["status"], second["status"]} == {"succeeded"}
    clean(embedded, dev.stop(signal.SIGINT))
    assert "stopping: " in dev.err


def test_a_port_that_is_taken_is_told_before_anything_is_left_running(embedded: Cli) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = embedded.fails(8, "dev", "--port", str(port))
    assert f"port {port} on 127.0.0.1 cannot be used" in said
    assert "server.port" in said
    assert left_with(str(embedded.directory)) == []
    for nonsense in ("x", "70000", "-1"):
        assert embedded.fails(2, "dev", "--port", nonsense)


def test_dev_starts_with_a_broken_project_and_mends(cli: Cli, data_dir: Path) -> None:
    cli.edit("prompts/answer.yaml", "role: system", "role: boss")
    dev = cli.start("dev", "--port", "0")
    dev.says("prompts/answer.yaml:6: messages.0.role: ")
    dev.says("Interlock runs at ")
    assert "nobody" in cli.fails(3, "run", "nobody", "-i", "{}")
    cli.edit("prompts/answer.yaml", "role: boss", "role: system")
    dev.says("deployed answer@")
    assert cli.ok("run", "answer", "-i", QUESTION, "--json").json["status"] == "succeeded"
    done = dev.stop()
    assert done.code == 0
    assert not (data_dir / "server.json").exists()


def test_serve_and_worker_share_one_embedded_database(embedded: Cli, model: FakeModel) -> None:
    cli = embedded
    cli.ok("run", "answer", "-i", QUESTION)  # deploys: neither serve nor worker does
    serve, worker = cli.start("serve", "--port", "0"), cli.start("worker")
    url = up(cli, serve)
    worker.says("worker runs")
    shared = postmaster(cli)
    assert cli.ok("run", "answer", "-i", QUESTION, "--json").json["status"] == "succeeded"

    # The worker leaves: the server's database stays, and keeps what comes in until another worker takes it.
    assert worker.stop().code == 0
    ready(serve, url)
    assert postmaster(cli) == shared
    key = json.loads((cli.directory / ".interlock" / "client.json").read_text())["api_key"]
    body = {"workflow": "answer", "input": json.loads(QUESTION)}
    started = httpx.post(
        f"{url}/v1/runs", json=body, headers={"Authorization": f"Bearer {key}"}, trust_env=False, timeout=PATIENCE
    )
    run_id = started.json()["run_id"]
    assert cli.ok("show", run_id, "--json").json["status"] == "queued"

    # The server leaves: the worker's database stays.
    worker = cli.start("worker")
    worker.says("worker runs")
    serve.until(lambda: cli.ok("show", run_id, "--json").json["status"] == "succeeded")
    assert serve.stop(signal.SIGINT).code == 0
    assert postmaster(cli) == shared
    serve = cli.start("serve", "--port", "0")
    up(cli, serve)
    assert cli.ok("run", "answer", "-i", QUESTION, "--json").json["status"] == "succeeded"

    # One is killed outright: whoever leaves last still stops the database.
    os.kill(worker.pid, signal.SIGKILL)
    assert worker.wait().code == -signal.SIGKILL
    assert cli.ok("runs", "--json").json
    clean(cli, serve.stop())


def test_deploy_makes_a_version_once(embedded: Cli) -> None:
    policy, version = embedded.ok("deploy").out.splitlines()
    assert policy.startswith("activated policy set ")
    assert version.startswith("deployed answer@")
    assert embedded.ok("deploy").out.strip() == "nothing to do: this version is deployed already"
    embedded.edit("prompts/answer.yaml", "Use only", "Use nothing but")
    assert embedded.ok("deploy").out.startswith("deployed answer@")
    embedded.write("policies/main.cedar", "permit(principal, action, resource);\n")
    assert embedded.ok("deploy").out.startswith("activated policy set "), "the version stays"


async def test_a_server_that_lives_and_does_not_answer_is_no_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the command would do its work in a process of its own, beside the server's."""
    monkeypatch.setattr(connection, "_ANSWER_SECONDS", 0.3)
    settings = Settings(data_dir=tmp_path)
    (tmp_path / "client.json").write_text(json.dumps({"api_key": "il_x_y"}))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with connection.announced(settings, url), pytest.raises(Unavailable, match=f"{url} did not answer within"):
            await connection.find_server(settings)
    with connection.announced(settings, url):  # nobody listens there now: it is only starting
        assert await connection.find_server(settings) is None
