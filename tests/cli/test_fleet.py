"""versions, rolling back, workers, and draining them from outside."""

from __future__ import annotations

import json
import os
import pwd
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg

from interlock.testing import answer

from .conftest import QUESTION, Cli, FakeModel


def versions(cli: Cli) -> list[str]:
    """The workflow's versions, the head marked with a star."""
    return [one["version"] + "*" * one["head"] for one in cli.ok("versions", "answer", "--json").json]


def test_versions_and_the_way_back(cli: Cli, model: FakeModel) -> None:
    cli.ok("deploy")
    (first,) = versions(cli)
    old = first.rstrip("*")
    model.always(answer({"topic": "other", "answer": "?"}))
    waiting = cli.waits("run", "answer", "-i", QUESTION, "--json").json
    cli.edit("prompts/answer.yaml", "You answer customers", "You gladly answer customers")
    assert "deployed answer@" in cli.ok("deploy").out
    new, was = versions(cli)
    assert (new[-1], was) == ("*", old)
    found = cli.ok("versions", "answer", "--json").json
    assert [one["running"] for one in found] == [0, 1]
    assert found[0]["deployed_by"] == "local-admin"
    assert found[0]["prompts"] != found[1]["prompts"]
    assert found[0]["tools"] == found[1]["tools"]
    assert found[0]["models"] == {"default": model.pin}

    shown = cli.ok("versions", "answer").out
    for word in (f"answer@{old}", "1 run in progress", "head: used by new runs", f"default {model.pin}"):
        assert word in shown
    assert old not in cli.ok("versions").out  # without a name, the heads

    assert f"new runs get answer@{old}" in cli.ok("deploy", "--to", old[:6], "answer").out
    assert versions(cli)[1] == f"{old}*"
    assert "nothing to do" in cli.ok("deploy", "--to", old, "answer").out
    # Runs in flight stay on theirs, and the way back leads on from there.
    assert cli.ok("show", waiting["run_id"], "--json").json["version"] == old
    for arguments, code in (
        (("deploy", "--to", "nosuch", "answer"), 3),
        (("deploy", "--to", old, "nosuch"), 3),
        (("deploy", "--to", old), 2),
        (("deploy", "answer"), 2),
        (("deploy", "--to", "", "answer"), 3),
        (("deploy", "--to", "%", "answer"), 3),
        (("versions", "nosuch"), 3),
    ):
        cli.fails(code, *arguments)
    assert versions(cli)[1] == f"{old}*"


def test_workers_are_listed_and_drained_from_outside(cli: Cli, model: FakeModel) -> None:
    """The step under way is finished, the process ends by itself with code 0, and the others work on."""
    cli.ok("deploy")
    assert cli.ok("workers").out == "no workers\n"
    assert cli.ok("drain", "--all").out == "no workers\n"
    first = cli.start("worker")
    first.says("worker runs")
    second = cli.start("worker")
    second.says("worker runs")
    found = cli.ok("workers", "--json").json
    assert sorted(one["pid"] for one in found) == sorted([first.pid, second.pid])
    assert {one["engine"] for one in found} == {"postgres"}
    assert not any(one["draining"] for one in found)
    ids = {one["pid"]: one["worker_id"] for one in found}
    assert f"{ids[first.pid]} has drained" in cli.ok("drain", "--worker", ids[first.pid], "--wait").out
    done = first.wait()
    assert (done.code, "Traceback" in done.err) == (0, False)
    assert [one["worker_id"] for one in cli.ok("workers", "--json").json] == [ids[second.pid]]
    assert "no worker" in cli.fails(3, "drain", "--worker", ids[first.pid])
    cli.fails(2, "drain")
    cli.fails(2, "drain", "--all", "--worker", ids[second.pid])
    cli.ok("drain", "--all", "--wait")
    assert second.wait().code == 0
    assert cli.ok("workers").out == "no workers\n"
    # Who asked is on record, for each worker that was asked, and nothing where there was nobody to ask.
    entries = [one["entry"] for one in cli.ok("audit", "list", "--json").json]
    drains = [one for one in entries if one["event_type"] == "worker.drain_requested"]
    assert [one["resource"] for one in drains] == [f"worker:{ids[first.pid]}", f"worker:{ids[second.pid]}"]
    login = f"{pwd.getpwuid(os.getuid()).pw_name}@{os.uname().nodename}"
    for one in drains:
        assert (one["actor"], one["action"], one["decision"]) == ("user:local-admin", "drain", "allow")
        assert one["detail"] == {"login": login}
    cli.ok("audit", "verify")


def test_a_run_without_a_worker_says_so(cli: Cli, model: FakeModel) -> None:
    cli.ok("deploy")
    serve = cli.start("serve", "--port", "0", INTERLOCK_REVIEW__SELF_APPROVAL="true")
    serve.says("Interlock runs at ")
    run = cli.start("run", "answer", "-i", QUESTION)
    run.says("queued; waits for a worker; none is on this database: interlock worker")
    run_id = run.out.split()[1]
    assert "waits for a worker; none is on this database: interlock worker" in cli.ok("show", run_id).out
    assert "1 runs wait; no worker is on its database: start `interlock worker`" in cli("doctor").out
    worker = cli.start("worker")
    worker.says("worker runs")
    assert run.wait().code == 0
    assert "with 1 worker\n" in cli("doctor").out
    # A decision that no worker has acted on yet.
    model.always(answer({"topic": "other", "answer": "?"}))
    waiting = cli.waits("run", "answer", "-i", QUESTION, "--json").json
    cli.ok("drain", "--all", "--wait")
    cli.ok("review", "approve", waiting["reviews"][0]["review_id"])
    shown = cli.ok("show", waiting["run_id"]).out
    assert "waits for a worker; none is on this database: interlock worker" in shown
    assert "waits for a worker to act on the decision (step " in shown
    assert "…" not in shown.split("input:")[0].replace("… s", "")


def test_a_worker_that_died_has_not_drained(cli: Cli, model: FakeModel, owner_url: str) -> None:
    cli.ok("deploy")
    worker = cli.start("worker")
    worker.says("worker runs")
    (one,) = cli.ok("workers", "--json").json
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    with psycopg.connect(owner_url) as connection:
        connection.execute("update workers set seen_at = now() - interval '10 minutes'")
    said = cli.ok("drain", "--all", "--wait").out
    assert said.startswith(f"{one['worker_id']} has been silent for 60")
    assert "it ended without draining" in said


def test_the_second_signal_breaks_the_end_off(cli: Cli, model: FakeModel, data_dir: Path) -> None:
    cli.ok("deploy")
    model.always(answer({"topic": "refunds", "answer": "x"}, delay=600.0))
    dev = cli.start("dev", "--port", "0")
    dev.says("Interlock runs at ")
    before = model.count
    cli.start("run", "answer", "-i", QUESTION)
    dev.until(lambda: model.count > before)
    os.kill(dev.pid, signal.SIGTERM)
    dev.says("stopping: ")
    time.sleep(0.5)
    done = dev.stop(signal.SIGTERM)  # not when the model has answered
    assert done.code == 130
    assert "Traceback" not in done.err


def test_a_dev_server_that_is_drained_goes_on_serving(cli: Cli, model: FakeModel) -> None:
    dev = cli.start("dev", "--port", "0")
    dev.says("Interlock runs at ")
    cli.ok("drain", "--all", "--wait")
    dev.says("asked to drain")
    assert cli.ok("workers").out == "no workers\n"
    assert "answer" in cli.ok("versions").out
    assert dev.stop().code == 0


def test_refused_events_are_listed_and_sent_again(cli: Cli, model: FakeModel) -> None:
    """The webhook refuses the events of a run with 404, then takes them."""
    answers: list[int] = [404]
    taken: list[dict[str, Any]] = []
    signed: list[tuple[str, bytes]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            signed.append((self.headers["Interlock-Signature"], content))
            if answers[0] == 200:
                taken.append(json.loads(content))
            self.send_response(answers[0])
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    cli.ok("deploy")
    assert cli.ok("events", "refused").out == "no event was refused\n"
    assert cli.ok("events", "requeue", "--all").out == "no event was refused\n"
    with ThreadingHTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        cli.env["INTERLOCK_EVENTS__WEBHOOK"] = f"http://127.0.0.1:{server.server_port}/hook"
        worker = cli.start("worker")
        worker.says("worker runs")
        model.always(answer({"topic": "other", "answer": "?"}))
        run_id = cli.waits("run", "answer", "-i", QUESTION, "--json").json["run_id"]
        deadline = time.monotonic() + 120
        while not (found := cli.ok("events", "refused", "--json").json):
            assert time.monotonic() < deadline
        event = found[0]
        assert (event["sink"], event["run_id"], event["tries"]) == ("webhook", run_id, 1)
        assert "answered 404" in event["reason"]
        shown = cli.ok("events", "refused").out
        assert all(word in shown for word in (str(event["event_id"]), "webhook", event["topic"]))
        assert "no receiver refused event 999999" in cli.fails(3, "events", "requeue", "999999")
        cli.fails(2, "events", "requeue")
        answers[0] = 200
        assert cli.ok("events", "requeue", str(event["event_id"])).out == "1 to be sent again\n"
        while not taken:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert (taken[0]["id"], taken[0]["data"]["run_id"]) == (event["event_id"], run_id)
        server.shutdown()
    (entry,) = [
        one["entry"]
        for one in cli.ok("audit", "list", "--json").json
        if one["entry"]["event_type"] == "events.requeued"
    ]
    assert (entry["resource"], entry["detail"]["deliveries"]) == (f"event:{event['event_id']}", 1)
