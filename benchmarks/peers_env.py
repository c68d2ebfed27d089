"""The peers' own virtual environment, `.bench-venv`: made once, brought up to date when the lock changes.

Run it alone to prepare the machine before a measurement: `python benchmarks/peers_env.py`.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
LOCK = HERE / "peers" / "requirements.txt"
VENV = HERE.parent / ".bench-venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".interlock-lock"


class PeersEnvFailed(RuntimeError):
    """The peers' environment could not be made; the message says which command failed."""


def ensure_peers_python() -> Path:
    """Path of a Python that has every peer at its locked version.

    Raises PeersEnvFailed when the environment cannot be made (no network, no disk, no `venv` module).
    """
    wanted = _fingerprint()
    if PYTHON.exists() and STAMP.exists() and STAMP.read_text() == wanted:
        print(f"peers: {VENV.name} is up to date")
        return PYTHON
    uv = _find_uv()
    # The stamp goes first and comes back last: an install that is interrupted is not taken for a finished one.
    # Made anew rather than mended: what is there may belong to another Python, or have no pip.
    STAMP.unlink(missing_ok=True)
    shutil.rmtree(VENV, ignore_errors=True)
    print(f"peers: creating {VENV.name} with Python {sys.version.split()[0]}", flush=True)
    _call([uv, "venv", "--quiet", "--python", sys.executable, str(VENV)] if uv else _plain_venv())
    print(f"peers: installing {_count_pins()} locked packages into {VENV.name}", flush=True)
    _call(_install_command(uv))
    STAMP.write_text(wanted)
    return PYTHON


def _install_command(uv: str | None) -> list[str]:
    if uv:
        return [uv, "pip", "sync", "--require-hashes", "--python", str(PYTHON), str(LOCK)]
    return [str(PYTHON), "-m", "pip", "install", "--require-hashes", "--no-deps", "--requirement", str(LOCK)]


def _plain_venv() -> list[str]:
    return [sys.executable, "-m", "venv", str(VENV)]


def _find_uv() -> str | None:
    beside = Path(sys.executable).parent / "uv"
    return str(beside) if beside.exists() else shutil.which("uv")


def _fingerprint() -> str:
    """Changes when the lock or the interpreter does: wheels built for one Python do not load in another."""
    version = ".".join(map(str, sys.version_info[:3]))
    return f"{hashlib.sha256(LOCK.read_bytes()).hexdigest()} {version}\n"


def _count_pins() -> int:
    return sum("==" in line and not line.startswith((" ", "#")) for line in LOCK.read_text().splitlines())


def _call(command: list[str]) -> None:
    # An activated environment would otherwise win over the one that is named.
    env = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    code = subprocess.call(command, env=env)
    if code != 0:
        raise PeersEnvFailed(f"`{' '.join(command)}` ended with exit code {code}; its output is above")


if __name__ == "__main__":
    try:
        print(ensure_peers_python())
    except PeersEnvFailed as failure:
        sys.exit(f"peers: {failure}")
