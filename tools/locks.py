# ruff: noqa: T201  (a program for the terminal)
"""Keeps the lock files and pyproject.toml together.

    write [uv options]   resolve again; what need not change keeps its version (`--upgrade` for the newest)
    check                exit code 0 when the locks belong to pyproject.toml and to each other; needs no network

Each lock carries in its third line a digest of the requirements that it was resolved from.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNTIME = ROOT / "requirements.lock"
DEV = ROOT / "requirements-dev.lock"
OPTIONS: list[str | Path] = [
    "--universal",
    "--python-version=3.11",
    "--generate-hashes",
    "--only-binary=:all:",
    "--quiet",
]
OPTIONS += ["--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"]


class LockFailed(Exception):
    """The message is one sentence for the user: what is wrong, and the mend."""


def header(path: Path) -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    inputs = [project["project"]["requires-python"], project["project"]["dependencies"]]
    if path == DEV:
        inputs.append(project["dependency-groups"]["dev"])
    holds = "what Interlock needs to run" if path == RUNTIME else "requirements.lock and the dependency group dev"
    return (
        f"# Made by `make lock`; do not edit. Holds {holds},\n"
        "# for Linux on x86-64 and aarch64 and Python 3.11 to 3.14, every file by its SHA-256.\n"
        f"# inputs {hashlib.sha256(json.dumps(inputs).encode()).hexdigest()}\n"
    )


def pins(path: Path) -> set[str]:
    return set(re.findall(r"^[a-z0-9].*?==\S+", path.read_text(), re.MULTILINE))


def write(extra: list[str]) -> None:
    for path in (RUNTIME, DEV):
        with tempfile.TemporaryDirectory() as folder:
            new = Path(folder, path.name)
            if path.exists():
                shutil.copy(path, new)  # uv prefers the versions that it finds in its output file
            group: list[str | Path] = ["--group", "dev", "--constraints", RUNTIME.name] if path == DEV else []
            command: list[str | Path] = [
                "uv",
                "pip",
                "compile",
                "pyproject.toml",
                *OPTIONS,
                *group,
                *extra,
                "--output-file",
                new,
            ]
            uv = Path(sys.executable).with_name("uv")
            if subprocess.call(command, executable=uv, cwd=ROOT, stdout=subprocess.DEVNULL) != 0:
                raise LockFailed(f"uv could not resolve {path.name} (its reason is above); mend pyproject.toml")
            path.write_text(header(path) + new.read_text())
        print(f"lock: {path.name} holds {len(pins(path))} packages")
    check()


def check() -> None:
    for path in (RUNTIME, DEV):
        text = path.read_text() if path.exists() else ""
        if not text.startswith(header(path)):
            raise LockFailed(f"{path.name} was not made from what pyproject.toml asks for now; run make lock")
        if "://" in text or " @ " in text:
            raise LockFailed(f"{path.name} names an address, and a lock must work with every mirror; run make lock")
    if apart := pins(RUNTIME) - pins(DEV):
        raise LockFailed(f"the lock files disagree on {', '.join(sorted(apart))}; run make lock")


def main(arguments: list[str]) -> int:
    try:
        match arguments:
            case ["check"]:
                check()
            case ["write", *extra]:
                write(extra)
            case _:
                raise LockFailed("the command is not known; use write or check")
    except LockFailed as failure:
        print(f"lock: {failure}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
