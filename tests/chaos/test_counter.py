"""The oracle itself: it counts what it did, whatever happens to it or to its callers."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from interlock.chaos import counter


class Counter:
    """The service as a process, and callers of its raw wire."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._start()

    def _start(self) -> None:
        port_file = self._directory / "port"
        port_file.unlink(missing_ok=True)
        database = self._directory / "counter.sqlite"
        command = [sys.executable, "-I", str(counter.__file__), "--db", str(database), "--port-file", str(port_file)]
        self.process = subprocess.Popen(command)
        deadline = time.monotonic() + 120
        while not port_file.exists():
            assert time.monotonic() < deadline, "the counter does not start"
            time.sleep(0.02)
        self.port = int(port_file.read_text())

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def restart(self) -> None:
        self.kill()
        self._start()

    def send(self, method: str, path: str, body: Any = None, key: str = "", timeout: float = 120) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        headers = {"Idempotency-Key": key} if key else {}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def work(self, manner: str, business: str, key: str, timeout: float = 120) -> tuple[int, Any]:
        return self.send("POST", f"/{manner}/effects", {"business": business}, key, timeout)

    def fault(self, mode: str, seconds: float = 600, requests: int = 1) -> None:
        self.send("POST", "/faults", {"mode": mode, "seconds": seconds, "requests": requests})

    def book(self) -> dict[str, Any]:
        return dict(self.send("GET", "/book")[1])

    def until(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline, self.book()
            time.sleep(0.02)

    @property
    def effects(self) -> list[str]:
        return [effect["business"] for effect in self.book()["effects"]]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Counter]:
    service = Counter(tmp_path)
    yield service
    service.kill()


def test_a_honoured_key_does_the_work_once(service: Counter) -> None:
    first = service.work("honours", "a/pay", "k1")
    assert first[0] == 201
    assert service.work("honours", "a/pay", "k1") == (200, first[1])
    assert service.work("honours", "a/pay", "k2")[0] == 201
    assert service.effects == ["a/pay", "a/pay"]
    assert len(service.book()["requests"]) == 3


def test_without_promises_every_request_does_the_work(service: Counter) -> None:
    assert [service.work("plain", "a/pay", "k1")[0] for _ in range(3)] == [201] * 3
    assert service.effects == ["a/pay"] * 3
    found = service.send("GET", "/effects?key=k1")[1]["effects"]
    assert [one["effect"] for one in found] == [1, 2, 3]
    assert service.send("GET", "/effects?key=none")[1] == {"effects": []}
    assert len(service.send("GET", "/effects?business=a/pay")[1]["effects"]) == 3


def test_a_reversal_counts_once_a_key(service: Counter) -> None:
    number = service.work("plain", "a/pay", "k1")[1]["effect"]
    for key in ("u1", "u1", "u2"):
        assert service.send("POST", f"/effects/{number}/reversal", {}, key)[0] in {200, 201}
    assert service.send("POST", "/effects/99/reversal", {}, "u3")[0] == 404
    assert [one["key"] for one in service.book()["reversals"]] == ["u1", "u2"]


def test_what_was_answered_survives_kill_9(service: Counter) -> None:
    first = service.work("honours", "a/pay", "k1")[1]
    service.restart()
    assert service.work("honours", "a/pay", "k1") == (200, first)
    assert service.effects == ["a/pay"]


@pytest.mark.parametrize(("mode", "done"), [("refuse", False), ("drop", True)])
def test_a_broken_connection_with_and_without_the_work(service: Counter, mode: str, done: bool) -> None:
    service.fault(mode)
    with pytest.raises((http.client.HTTPException, OSError)):
        service.work("plain", "a/pay", "k1")
    assert service.effects == (["a/pay"] if done else [])
    assert service.book()["requests"][0]["struck"] == mode
    assert service.work("plain", "b/pay", "k2")[0] == 201  # one request was to be struck


@pytest.mark.parametrize(("mode", "done"), [("hang", False), ("late", True)])
def test_no_answer_with_and_without_the_work(service: Counter, mode: str, done: bool) -> None:
    service.fault(mode)
    with pytest.raises(TimeoutError):
        service.work("plain", "a/pay", "k1", timeout=0.5)
    service.until(lambda: service.book()["requests"] and (service.effects or not done))
    assert service.effects == (["a/pay"] if done else [])


def test_slow_work_is_done_although_its_caller_is_gone(service: Counter) -> None:
    service.fault("slow")
    with pytest.raises(TimeoutError):
        service.work("plain", "a/pay", "k1", timeout=0.2)
    service.until(lambda: service.effects == ["a/pay"])
    (request,), (effect,) = service.book()["requests"], service.book()["effects"]
    assert effect["at"] - request["at"] > counter.SLOW_SECONDS / 2


def test_a_fault_ends_with_its_time_and_spares_people(service: Counter) -> None:
    service.fault("refuse", requests=100)
    assert service.send("GET", "/effects?business=a/pay")[0] == 200
    with pytest.raises((http.client.HTTPException, OSError)):
        service.send("GET", "/effects?key=k1")  # a tool's probe is not spared
    service.fault("refuse", seconds=0.2, requests=100)
    time.sleep(0.3)
    assert service.work("plain", "a/pay", "k1")[0] == 201


def test_many_at_once_with_one_key_do_the_work_once(service: Counter) -> None:
    threads = [threading.Thread(target=service.work, args=("honours", "a/pay", "k1")) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert service.effects == ["a/pay"]


@pytest.mark.parametrize(
    ("path", "body", "key", "status"),
    [
        ("/honours/effects", {"business": "a"}, "", 400),
        ("/honours/effects", {}, "k", 404),
        ("/other/effects", {"business": "a"}, "k", 404),
    ],
)
def test_nonsense_is_refused(service: Counter, path: str, body: Any, key: str, status: int) -> None:
    assert service.send("POST", path, body, key)[0] == status
    assert service.effects == []
