"""audit, keys, migrate, doctor, and how commands find a server."""

from __future__ import annotations

import http.server
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psycopg
import pytest

import interlock.audit.verify
from interlock.testing import hang

from .conftest import QUESTION, Cli, FakeModel, left_with


def verify_alone(log: Path, *keys: str) -> subprocess.CompletedProcess[str]:
    """The stand-alone verifier, copied out of the package: it must need nothing of ours."""
    script = log.with_name("verify.py")
    script.write_text(Path(interlock.audit.verify.__file__).read_text())
    arguments = [argument for key in keys for argument in ("--public-key", key)]
    # -P and an empty directory: nothing of this repository can be imported from there.
    command = [sys.executable, "-P", str(script), str(log), *arguments]
    return subprocess.run(command, cwd=log.parent, capture_output=True, text=True, check=False)


def test_the_record_is_listed_verified_exported_and_verified_elsewhere(
    cli: Cli, tmp_path: Path, owner: psycopg.Connection[object]
) -> None:
    run_id = cli.ok("run", "answer", "-i", QUESTION, "--json").json["run_id"]
    entries = cli.ok("audit", "list", "--json").json
    types = [one["entry"]["event_type"] for one in entries]
    assert types == [
        "org.created", "key.created", "policy.activated", "workflow.deployed", "run.created", "tool.call", "model.call",
        "run.finished",
    ]  # fmt: skip
    assert cli.ok("audit", "verify").out == f"audit: {len(entries)} entries verified\n"
    listed = cli.ok("audit", "list", "--run", run_id).out
    assert "tool:search_faq" in listed
    assert "key.created" not in listed
    assert cli.ok("audit", "list", "--run", run_id, "--json").json == entries[4:]
    assert cli.ok("audit", "list", "--after", "4", "--limit", "1", "--json").json == entries[4:5]
    assert cli.ok("audit", "list", "--run", "nobody").out == "no entries\n"
    assert "limit" in cli.fails(2, "audit", "list", "--limit", "0")
    assert "after" in cli.fails(2, "audit", "list", "--after", "-1")

    log = tmp_path / "export" / "audit.jsonl"
    log.parent.mkdir()
    assert f"{len(entries)} entries in" in cli.ok("audit", "export", str(log)).out
    assert [json.loads(line)["hash"] for line in log.read_text().splitlines()] == [one["hash"] for one in entries]
    assert list(log.parent.iterdir()) == [log]
    key = cli.ok("audit", "key").out.strip()
    assert re.fullmatch(r"[0-9a-f]{16}=[0-9a-f]{64}", key)
    good = verify_alone(log, key)
    assert (good.returncode, good.stdout) == (0, f"audit: {len(entries)} entries verified\n"), good.stderr
    assert verify_alone(log).returncode == 2  # without a key nothing is verified
    lines = log.read_text().splitlines()
    for bad in (lines[1:], lines[:2] + lines[3:], [line.replace("local-admin", "somebody") for line in lines]):
        log.write_text("\n".join(bad) + "\n")
        found = verify_alone(log, key)
        assert found.returncode == 1
        assert "TAMPERED" in found.stdout
    assert "cannot be written" in cli.fails(2, "audit", "export", str(tmp_path))
    assert "cannot be written" in cli.fails(2, "audit", "export", str(tmp_path / "none" / "x"))

    # Somebody with the owner's password changes the past: the same log says so now.
    owner.execute("alter table audit disable trigger all")
    owner.execute("update audit set entry = jsonb_set(entry, '{actor}', '\"user:somebody\"') where seq = 2")
    said = cli.fails(9, "audit", "verify")
    assert "TAMPERED: entry 2: was changed after it was written; 1 entries before it are valid" in said


def test_keys_are_made_shown_once_listed_and_revoked(cli: Cli) -> None:
    key = cli.ok("keys", "create", "ann [/x]", "--role", "viewer", "--role", "reviewer").out.strip()
    assert re.fullmatch(r"il_[0-9a-z]{16}_[0-9a-z]{40}", key)
    listed = cli.ok("keys", "list").out
    assert "ann [/x]" in listed
    assert "reviewer, viewer" in listed
    assert key.split("_")[2] not in listed
    assert cli.ok("keys", "revoke", key.split("_")[1]).out == f"revoked {key.split('_')[1]}\n"
    assert "no active key" in cli.fails(3, "keys", "revoke", key.split("_")[1])
    for arguments, said in ((("x", "--role", "root"), "'reviewer' or 'viewer'"), (("", "--role", "viewer"), "user_id"),
                            (("a\nb", "--role", "viewer"), "cannot be printed"), (("\udcff", "--role", "viewer"), "surrogate"),
                            (("x",), "--role")):  # fmt: skip
        assert said in cli.fails(2, "keys", "create", *arguments)


def test_a_lost_or_revoked_local_key_locks_nobody_out(cli: Cli, data_dir: Path) -> None:
    cli.ok("runs")
    kept = data_dir / "client.json"
    assert kept.stat().st_mode & 0o777 == 0o600
    first = json.loads(kept.read_text())["api_key"]
    cli.ok("keys", "revoke", first.split("_")[1])
    cli.ok("runs")
    second = json.loads(kept.read_text())["api_key"]
    assert second != first
    for broken in ("", "[]", '{"api_key": "il_nonsense"}'):
        kept.write_text(broken)
        cli.ok("runs")
        assert json.loads(kept.read_text())["api_key"] not in {first, second}
    assert (
        len(cli.ok("audit", "list", "--json").json) == 7
    )  # the organisation, five keys made and one revoked: all on record


def test_migrating_twice_does_nothing_the_second_time(cli: Cli, empty_url: str) -> None:
    first = cli.ok("migrate", INTERLOCK_DATABASE__URL=empty_url).out
    assert first.startswith("applied 0001.tables, 0002.")
    for _ in range(2):
        again = cli.ok("migrate", INTERLOCK_DATABASE__URL=empty_url).out
        assert again == "nothing to do: the database is up to date\n"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (
            "postgresql://app:secret-word@127.0.0.1:1/none",
            "PostgreSQL at 127.0.0.1:1/none cannot be used (Connection refused)",
        ),
        ("postgresql://app:secret-word@/none?host=/nowhere", "PostgreSQL at its socket/none cannot be used"),
        ("mysql://app:secret-word@127.0.0.1/none", 'database.url begins with "mysql:"'),
        ("nonsense", "database.url is no URL"),
    ],
)
def test_a_database_that_cannot_be_reached_is_named_without_its_password(cli: Cli, url: str, reason: str) -> None:
    said = cli.fails(8, "runs", INTERLOCK_DATABASE__URL=url)
    assert reason in said
    assert "secret-word" not in said
    assert "internal error" not in said


def test_nothing_has_run_here_yet(files: Cli) -> None:
    for command in (("runs",), ("review", "list"), ("audit", "verify"), ("keys", "list")):
        assert "nothing has run in this directory yet" in files.fails(3, *command)
    assert not (files.directory / ".interlock").exists()


# -- doctor ------------------------------------------------------------------------------------------------------


def test_doctor_finds_nothing_wrong(cli: Cli) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = cli.ok("doctor", INTERLOCK_SERVER__PORT=str(port)).out
    lines = said.splitlines()
    assert all(line.startswith("ok    ") for line in lines), said
    for what in (
        "Python 3.",
        "Linux",
        "MiB free",
        "sandbox (bubblewrap)",
        "model default",
        f"port {port}",
        "project with answer",
    ):
        assert any(what in line for line in lines), what


def test_doctor_names_what_is_missing_and_the_mend(cli: Cli) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        models = {
            "good": cli.env["INTERLOCK_MODELS__DEFAULT"],
            "dated": "anthropic:claude-sonnet-4-5-20250929",
            "alias": "openai:gpt-4o",
            "strange": "mistral:large-2411",
            "address": "openai:llama3.1@http://10.0.0.1:11434/v1",
            "away": "away:fake",
            "unknown": "local:llama-9",
        }
        del cli.env["INTERLOCK_MODELS__DEFAULT"]
        environment = {"INTERLOCK_MODELS": json.dumps(models), "INTERLOCK_SERVER__PORT": str(port)}
        environment["INTERLOCK_PROVIDERS__AWAY__BASE_URL"] = "http://127.0.0.1:1/v1"
        cli.write("workflows/broken.yaml", "name: broken\n")
        done = cli("doctor", **environment)
    assert done.code == 8
    lines = done.out.splitlines()
    for mark, what, said in (
        ("no  ", "model dated", "ANTHROPIC_API_KEY is not set; export it"),
        ("no  ", "model strange", "add [providers.mistral]"),
        ("no  ", "model address", "only the settings of the worker may"),
        ("no  ", "model alias", "pin a dated version"),
        ("ok  ", "model good", ""),
        ("note", "model away", "127.0.0.1:1 cannot be reached (Connection refused); start that server"),
        ("no  ", "model unknown", "the only local one is smollm2-135m-instruct-q4_1"),
        ("note", f"port {port} on 127.0.0.1", "INTERLOCK_SERVER__PORT"),
        ("note", "project", "workflows/broken.yaml:1: input: is required"),
    ):
        assert any(line.startswith(mark) and what in line and said in line for line in lines), (what, done.out)
    keyed = cli("doctor", ANTHROPIC_API_KEY="sk-x", **environment).out
    assert any(line.startswith("ok    model dated") for line in keyed.splitlines())


def test_doctor_in_an_empty_directory(bare: Cli) -> None:
    done = bare(
        "doctor",
        INTERLOCK_SERVER__PORT="0",
        INTERLOCK_MODELS__DEFAULT="here:x",
        INTERLOCK_PROVIDERS__HERE__BASE_URL="http://127.0.0.1:1/v1",
    )
    assert done.code == 0, done.out
    assert "`interlock init my-agent` writes one" in done.out
    assert list(bare.directory.iterdir()) == []


# -- finding the server ------------------------------------------------------------------------------------------


class Foreign(http.server.BaseHTTPRequestHandler):
    """Some other web server."""

    def do_GET(self) -> None:
        status = 302 if self.path.startswith("/v1/reviews") else 200
        body = b"<html>It works!</html>" if "runs" in self.path else b""
        self.send_response(status)
        self.send_header("Location", "/login")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def foreign() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Foreign)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_server_elsewhere_that_is_none_of_ours(bare: Cli, foreign: str) -> None:
    for url, command, code, said in (
        ("http://127.0.0.1:1", ("runs",), 8, "does not answer"),
        ("http://127.0.0.1:1", ("audit", "export", "x"), 8, "does not answer"),
        (foreign, ("runs",), 8, "a response that is not Interlock's"),
        (foreign, ("review", "list"), 8, "a response that is not Interlock's"),
        (foreign, ("audit", "export", "missing/x"), 2, "cannot be written"),
        ("http://[::bad", ("runs",), 2, "is not a URL"),
        ("ftp://127.0.0.1", ("runs",), 2, "write http://HOST:PORT"),
        ("nonsense", ("runs",), 2, "write http://HOST:PORT"),
    ):
        assert said in bare.fails(code, *command, INTERLOCK_URL=url), url
    assert "ASCII" in bare.fails(2, "runs", INTERLOCK_URL=foreign, INTERLOCK_API_KEY="schlüssel")
    assert "ASCII" in bare.fails(2, "runs", INTERLOCK_URL=foreign, INTERLOCK_API_KEY="il_\n")
    assert list(bare.directory.iterdir()) == []


def test_what_a_dead_server_left_behind_does_not_matter(cli: Cli, data_dir: Path) -> None:
    cli.ok("migrate")
    for left in ('{"url": "http://127.0.0.1:1"}', '{"url": "http://[x"}', "[]"):
        (data_dir / "server.json").write_text(left)
        assert cli.ok("runs").out == "no runs yet\n", left


def test_whoever_has_a_dead_servers_port_is_not_shown_the_key(cli: Cli, data_dir: Path) -> None:
    cli.ok("migrate")
    cli.ok("runs")
    assert (data_dir / "client.json").exists()
    asked: list[str | None] = []

    class Stranger(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers.get("Authorization"))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"runs": []}')

    with HTTPServer(("127.0.0.1", 0), Stranger) as stranger:
        threading.Thread(target=stranger.serve_forever, daemon=True).start()
        (data_dir / "server.json").write_text(json.dumps({"url": f"http://127.0.0.1:{stranger.server_port}"}))
        assert cli.ok("runs").out == "no runs yet\n"
        stranger.shutdown()
    assert asked == []


# -- stopping ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "background"), [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGTERM, True)]
)
def test_a_command_that_is_stopped_leaves_nothing_running(
    embedded: Cli, model: FakeModel, number: signal.Signals, background: bool
) -> None:
    """Also one that ignores SIGINT."""
    embedded.edit(
        "workflows/answer.yaml", "max_tokens: 120", "timeout: 2\n    retry: {max_attempts: 20}\n    max_tokens: 120"
    )
    model.always(hang())
    command = embedded.start("run", "answer", "-i", QUESTION, background=background)
    before = model.count
    command.until(lambda: model.count > before)
    done = command.stop(number)
    assert done.code == 130
    assert "Traceback" not in done.out + done.err
    assert left_with(str(embedded.directory)) == []
