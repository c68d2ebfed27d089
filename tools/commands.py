# ruff: noqa: T201  (these speak to the person at the terminal; rich is not installed yet)
"""What setup uses to call other programs: steps told as they pass, a log, and failures turned into one sentence."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

NEEDED_GB = 2.0  # .venv takes 0.6 GB and the caches as much; the rest is for the database and the model

# Settings of the caller's that would send packages elsewhere or change what is installed.
MISLEADING = (
    "CONDA_PREFIX",
    "PIP_CONSTRAINT",
    "PIP_NO_BINARY",
    "PIP_ONLY_BINARY",
    "PIP_PREFIX",
    "PIP_PYTHON",
    "PIP_ROOT",
    "PIP_TARGET",
    "PIP_USER",
    "PYTHONHOME",
    "PYTHONPATH",
    "UV_BUILD_CONSTRAINT",
    "UV_CONSTRAINT",
    "UV_EXCLUDE_NEWER",
    "UV_NO_BINARY",
    "UV_OVERRIDE",
    "UV_PYTHON",
    "UV_SYSTEM_PYTHON",
    "UV_TARGET",
    "VIRTUAL_ENV",
)

# What pip and uv print, and what it means; the first that matches is told.
DIAGNOSES = (
    (
        r"No space left on device|Disk quota exceeded|os error 28\b",
        "the disk is full; free {needed:.0f} GB where the checkout, the home and the temporary directory ({tmp}) are",
    ),
    (
        r"DO NOT MATCH THE HASHES|[Hh]ash mismatch",
        "a package came other than it was locked; a mirror or proxy changed it or the transfer broke: try again, "
        "then try another mirror",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|invalid peer certificate|UnknownIssuer|SSLError",
        "the package index's certificate is not trusted; name your organisation's certificates in SSL_CERT_FILE "
        "and PIP_CERT",
    ),
    (
        r"ProxyError|407 Proxy|Tunnel connection failed",
        "the proxy refused the connection; check HTTPS_PROXY",
    ),
    (
        r"\b(401|403) (Client Error|Unauthorized|Forbidden)|HTTP status client error \((401|403)",
        "the package index refused access; check the credentials in your pip or uv configuration",
    ),
    (
        r"NewConnectionError|[Cc]onnection (refused|reset|broken)|[Nn]ame resolution|Name or service not known|"
        r"timed out|[Tt]imeoutError|unreachable|dns error|error sending request|network connectivity is disabled|"
        r"ConnectionResetError|IncompleteRead|RemoteDisconnected|5\d\d Server Error",
        "the package index cannot be reached; connect to the network, or name your mirror (PIP_INDEX_URL) or proxy "
        "(HTTPS_PROXY)",
    ),
    (
        r"No matching distribution|no usable wheels|no wheels with a matching|not a supported wheel",
        "the package index has no fitting file for a locked package; a mirror may lag behind, or pip is set to use "
        "no index (PIP_NO_INDEX)",
    ),
    (
        r"Permission denied|Read-only file system|Operation not permitted",
        "a file could not be written; check who owns .venv, .cache and the home directory",
    ),
)


class SetupFailed(Exception):
    """The message is one sentence for the user: what is wrong, and the mend."""


class CommandFailed(SetupFailed):
    """A program that setup called gave up; `output` is what it said."""

    def __init__(self, message: str, output: str) -> None:
        super().__init__(message)
        self.output = output


class Steps:
    """Says what is being done: one line a step, and while it lasts, how long it has taken and its latest news."""

    def __init__(self, total: int) -> None:
        self.total, self.number, self.label = total, 0, ""
        self.began = self.told = 0.0
        self.live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"

    def start(self, label: str) -> None:
        self.number += 1
        self.label, self.began, self.told = label, time.monotonic(), time.monotonic()
        print(f"[{self.number}/{self.total}] {label} …", end="" if self.live else "\n", flush=True)

    def tick(self, news: str) -> None:
        now = time.monotonic()
        if not self.live and now - self.told < 10:  # seconds; a log wants few lines
            return
        self.told = now
        text = f"[{self.number}/{self.total}] {self.label} … {now - self.began:.0f} s  {news.strip()}"
        if self.live:
            print("\r\x1b[K" + text[: shutil.get_terminal_size().columns - 1], end="", flush=True)
        else:
            print(f"      {now - self.began:.0f} s  {news.strip()[:100]}", flush=True)

    def done(self) -> None:
        text = f"[{self.number}/{self.total}] {self.label}: done in {time.monotonic() - self.began:.1f} s"
        print(("\r\x1b[K" if self.live else "") + text, flush=True)

    def note(self, text: str) -> None:
        print(("\r\x1b[K" if self.live else "") + f"      {text}", flush=True)


class Runner:
    """Calls programs with a clean environment, keeps what they say in the log, and turns failures into a sentence."""

    def __init__(self, steps: Steps, root: Path, work: Path, lock_fd: int) -> None:
        self.steps, self.root, self.log, self.lock_fd = steps, root, work / "setup.log", lock_fd
        self.log.write_text("")
        self.env = {name: value for name, value in os.environ.items() if name not in MISLEADING}
        self.env |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_PROGRESS_BAR": "off"}
        self.env |= {"PYTHONNOUSERSITE": "1", "UV_NO_PROGRESS": "1", "NO_COLOR": "1"}
        if not _home_is_ours():
            self.env |= {"UV_CACHE_DIR": str(work / "uv"), "PIP_CACHE_DIR": str(work / "pip")}

    def call(self, command: Sequence[str | Path]) -> None:
        """Raises CommandFailed with a sentence when the program ends with anything but 0."""
        said: list[str] = []
        with self.log.open("a") as log:
            log.write(f"\n$ {' '.join(map(str, command))}\n")
            try:
                # A setup that is killed leaves this child behind for a moment; with the lock in its hands,
                # the next setup waits for it.
                child = subprocess.Popen(
                    command,
                    cwd=self.root,
                    env=self.env,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                    pass_fds=(self.lock_fd,),
                )
            except OSError as error:
                raise CommandFailed(
                    f"{command[0]} does not start ({error.strerror}); run make clean, then again", ""
                ) from error
            reader = threading.Thread(target=_collect, args=(child, said, log), daemon=True)
            reader.start()
            try:
                while child.poll() is None:
                    time.sleep(0.1)
                    self.steps.tick(said[-1] if said else "")
            except BaseException:
                child.terminate()
                child.wait()
                raise
            reader.join()
        if child.returncode != 0:
            output = "".join(said)
            raise CommandFailed(diagnose(command, child.returncode, output), output)


def _collect(child: "subprocess.Popen[str]", said: list[str], log: TextIO) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        log.write(line)
        if line.strip():
            said.append(line)


def _home_is_ours() -> bool:
    """False for users without a home, and for root in somebody else's: caches there would be lost or in the way."""
    home = Path(os.environ.get("HOME") or "/nonexistent")
    return home.is_dir() and os.access(home, os.W_OK) and home.stat().st_uid == os.geteuid()


def diagnose(command: Sequence[str | Path], code: int, output: str) -> str:
    for pattern, sentence in DIAGNOSES:
        if re.search(pattern, output):
            return sentence.format(needed=NEEDED_GB, tmp=tempfile.gettempdir())
    last = output.strip().splitlines()[-1:] or ["it said nothing"]
    return f"`{Path(command[0]).name} {' '.join(map(str, command[1:4]))}` ended with code {code}: {last[0].strip()}"


def is_disk_full(output: str) -> bool:
    return re.search(DIAGNOSES[0][0], output) is not None
