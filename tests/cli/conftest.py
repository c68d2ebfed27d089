"""Commands in processes of their own, over the test's database or an embedded one, with a fake model behind real HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from interlock.testing import Behaviour, FakeProvider

PATIENCE = 180  # seconds after which a test calls what it waits for lost
QUESTION = '{"question": "How do I get my money back?"}'


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Command:
    """A command under way."""

    def __init__(
        self,
        zygote: str,
        arguments: tuple[str, ...],
        cwd: Path,
        env: dict[str, str],
        stdin: bytes,
        stdout: int | None = None,
        *,
        background: bool = False,
    ) -> None:
        self._files = {name: tempfile.TemporaryFile() for name in ("in", "out", "err")}  # noqa: SIM115  see close
        self._files["in"].write(stdin)
        self._files["in"].seek(0)
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection.settimeout(PATIENCE)
        self._connection.connect(zygote)
        request = json.dumps({"argv": arguments, "cwd": str(cwd), "env": env, "background": background}).encode()
        descriptors = [file.fileno() for file in self._files.values()]
        if stdout is not None:
            descriptors[1] = stdout
        socket.send_fds(self._connection, [request], descriptors)
        self._said = self._connection.makefile("rb")
        self.pid = int(self._said.readline())
        self._code: int | None = None

    def _read(self, name: str) -> str:
        # pread: the child shares our offset, and moves it.
        descriptor = self._files[name].fileno()
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="surrogateescape")

    @property
    def out(self) -> str:
        return self._read("out")

    @property
    def err(self) -> str:
        return self._read("err")

    def wait(self) -> Finished:
        if self._code is None:
            self._code = int(self._said.readline())
        return Finished(self._code, self.out, self.err)

    def until(self, condition: Callable[[], Any]) -> Any:
        """What `condition` gives once it gives something; fails if the command ends before."""
        deadline = time.monotonic() + PATIENCE
        while not (given := condition()):
            alive = Path(f"/proc/{self.pid}").exists()
            assert alive, f"ended: {self.out} {self.err}"
            assert time.monotonic() < deadline, f"not yet: {self.out} {self.err}"
            time.sleep(0.03)
        return given

    def says(self, text: str) -> None:
        self.until(lambda: text in self.out + self.err)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> Finished:
        os.kill(self.pid, number)
        return self.wait()

    def close(self) -> None:
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self._said.close()
        self._connection.close()
        for file in self._files.values():
            file.close()


@dataclass
class Cli:
    """Runs `interlock` in a project directory, with an empty HOME and nothing else of the tests' environment."""

    zygote: str
    directory: Path
    env: dict[str, str]
    started: list[Command] = field(default_factory=list)

    def start(
        self, *arguments: str, cwd: Path | None = None, stdin: bytes = b"", background: bool = False, **env: str
    ) -> Command:
        """Starts a command; in the background as a shell script does, with SIGINT ignored."""
        environment = {**self.env, **env}
        command = Command(self.zygote, arguments, cwd or self.directory, environment, stdin, background=background)
        self.started.append(command)
        return command

    def __call__(self, *arguments: str, cwd: Path | None = None, stdin: bytes = b"", **env: str) -> Finished:
        """The command's end; whatever it was, nobody was shown a stack trace."""
        done = self.start(*arguments, cwd=cwd, stdin=stdin, **env).wait()
        assert "Traceback" not in done.out + done.err, done.err
        return done

    def ok(self, *arguments: str, **keywords: Any) -> Finished:
        """The end of a command that has to succeed."""
        done = self(*arguments, **keywords)
        assert done.code == 0, done.out + done.err
        return done

    def waits(self, *arguments: str, **keywords: Any) -> Finished:
        """The end of a `run` whose run waits for a person or a signal."""
        done = self(*arguments, **keywords)
        assert done.code == 10, (done.code, done.out + done.err)
        return done

    def fails(self, code: int, *arguments: str, **keywords: Any) -> str:
        """What a command that has to fail with this exit code says on standard error."""
        done = self(*arguments, **keywords)
        assert done.code == code, (done.code, done.out + done.err)
        assert done.err.strip()
        return done.err

    def write(self, name: str, text: str | bytes) -> Path:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self.directory / name).read_text()
        assert old in text
        (self.directory / name).write_text(text.replace(old, new, 1))


@pytest.fixture(scope="session")
def zygote() -> Iterator[str]:
    directory = tempfile.mkdtemp(prefix="il-")
    path = f"{directory}/zygote"
    command = [sys.executable, str(Path(__file__).with_name("zygote.py")), path]
    # The size of our own terminal must not be that of the commands.
    env = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=env) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield path
        process.terminate()
    shutil.rmtree(directory)


class _Gated(FakeProvider):
    held = False

    async def _behave(self, request: Any, body: dict[str, Any], behaviour: Behaviour) -> Any:
        while self.held:
            await asyncio.sleep(0.02)
        return await super()._behave(request, body, behaviour)


class FakeModel:
    """`FakeProvider` in a thread of its own: the commands are other processes, and the tests are not async."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._provider = _Gated()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        asyncio.run_coroutine_threadsafe(self._provider.__aenter__(), self._loop).result(PATIENCE)

    @property
    def pin(self) -> str:
        return "openai:fake"

    @property
    def url(self) -> str:
        return self._provider.url

    @property
    def count(self) -> int:
        return self._provider.count

    @property
    def last(self) -> Any:
        return self._provider.requests[-1].body

    def always(self, behaviour: Behaviour) -> None:
        self._provider.always(behaviour)

    def hold(self, held: bool = True) -> None:
        """Answers nobody until `hold(False)`."""
        self._provider.held = held

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._provider.__aexit__(None, None, None), self._loop).result(PATIENCE)
        self._loop.call_soon_threadsafe(self._loop.stop)


@pytest.fixture(scope="session")
def _fake_model() -> Iterator[FakeModel]:
    fake = FakeModel()
    yield fake
    fake.close()


@pytest.fixture
def model(_fake_model: FakeModel) -> FakeModel:
    """The model behind every command; answers with a valid instance of the schema it is asked for."""
    _fake_model.always(Behaviour())
    _fake_model.hold(False)
    return _fake_model


def write_template(directory: Path) -> None:
    """The project that `interlock init` writes."""
    source = Path(str(resources.files("interlock.cli"))) / "template"
    shutil.copytree(source, directory, ignore=shutil.ignore_patterns("__pycache__"))
    for path in directory.rglob("*"):
        if path.is_file():
            path.write_text(path.read_text().replace("{{project}}", directory.name))


@pytest.fixture
def bare(zygote: str) -> Iterator[Cli]:
    """Commands in an empty directory.

    Not below pytest's own: that one is closed to others whenever a session starts, and PostgreSQL, which does not run
    as root, is one of the others.
    """
    root = Path(tempfile.mkdtemp(prefix="il-"))
    home, directory = root / "home", root / "agent"
    home.mkdir()
    directory.mkdir()
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8", "INTERLOCK_SANDBOX__WARM": "0"}
    cli = Cli(zygote, directory, env)
    yield cli
    for command in cli.started:
        command.close()
    shutil.rmtree(root)


@pytest.fixture
def files(bare: Cli) -> Cli:
    """Commands in the project that `interlock init` writes, without any server behind them."""
    bare.directory.rmdir()
    write_template(bare.directory)
    return bare


@pytest.fixture
def cli(files: Cli, owner_url: str, data_dir: Path, model: FakeModel) -> Cli:
    """Commands in that project, over the test's own database, with the fake model."""
    files.env |= {
        "INTERLOCK_DATABASE__URL": owner_url,
        "INTERLOCK_DATA_DIR": str(data_dir),
        "INTERLOCK_MODELS__DEFAULT": model.pin,
        "INTERLOCK_PROVIDERS__OPENAI__BASE_URL": model.url,
    }
    return files


@pytest.fixture
def embedded(files: Cli, model: FakeModel) -> Iterator[Cli]:
    """Commands in that project, with the PostgreSQL that Interlock starts by itself."""
    files.env |= {"INTERLOCK_MODELS__DEFAULT": model.pin, "INTERLOCK_PROVIDERS__OPENAI__BASE_URL": model.url}
    yield files
    left = left_with(str(files.directory))
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGQUIT)  # at the postmaster: stop at once
    assert left == [], "PostgreSQL was left running"


def left_with(marker: str) -> list[int]:
    """Processes as below that do not end; those that are about to are given the time."""
    deadline = time.monotonic() + PATIENCE
    while (left := processes_with(marker)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def processes_with(marker: str) -> list[int]:
    """Processes whose command line holds `marker`, zombies aside."""
    found = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            with contextlib.suppress(OSError):
                if marker.encode() in (directory / "cmdline").read_bytes():
                    found.append(int(directory.name))
    return found


@contextlib.contextmanager
def fixed_server(answer: Callable[[str], object]) -> Iterator[str]:
    """URL of a server whose answer to each GET is JSON of its path."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(answer(self.path.split("?")[0])).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
