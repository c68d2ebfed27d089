# ruff: noqa: T201  (a program for the terminal)
"""Runs the engine tests of the last release, with that release's code, against a database that the code at hand has migrated.

During an update workers of both releases write to one database. A failure here means that workers of the last release would fail.

    python tools/previous_release.py [--tag v0.1.0] [pytest arguments]

Without a release tag (`vMAJOR.MINOR.PATCH`) before this commit there is nothing to run, and the exit code is 0.
"""

import argparse
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TAG = re.compile(r"v(\d+)\.(\d+)\.(\d+)")
SUITE = ("tests/engines",)
_PLUGIN = "interlock_migrated_by"

# Replaces `interlock.store.migrate.migrate` of the last release, before its conftest imports it, by the code at hand.
_PLUGIN_TEXT = """
import subprocess, sys
import interlock.store.migrate as released

def migrate(owner_url, master_key):
    script = "import sys; sys.path.insert(0, sys.argv[1]); from interlock.store.migrate import migrate; " \\
        "print(*migrate(sys.argv[2], bytes.fromhex(sys.argv[3])))"
    command = [sys.executable, "-I", "-c", script, {source!r}, owner_url, master_key.hex()]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.split()

released.migrate = migrate
"""


def last_tag(repository: Path) -> str | None:
    """The release tag with the highest version among the ancestors of the commit before HEAD; None if there is none."""
    command = ["git", "-C", str(repository), "tag", "--merged", "HEAD", "--no-contains", "HEAD"]
    tags = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    versions = [(tuple(map(int, found.groups())), tag) for tag in tags if (found := TAG.fullmatch(tag))]
    return max(versions)[1] if versions else None


def check_out(repository: Path, tag: str, target: Path) -> None:
    """Writes the release's files to `target`, with the metadata that makes its code know its version."""
    command = ["git", "-C", str(repository), "archive", tag]
    archive = subprocess.run(command, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(target, filter="data")
    version = tomllib.loads((target / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    metadata = target / "src" / f"interlock-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: interlock\nVersion: {version}\n", encoding="utf-8"
    )


def run_tests(release: Path, source: Path, arguments: list[str]) -> int:
    """Runs pytest in the checked-out `release`, whose code comes first; `source` is the code that migrates. The exit code."""
    (release / f"{_PLUGIN}.py").write_text(_PLUGIN_TEXT.format(source=str(source)), encoding="utf-8")
    path = os.pathsep.join([str(release / "src"), str(release)])
    command = [sys.executable, "-m", "pytest", "-p", _PLUGIN, *arguments]
    return subprocess.run(command, cwd=release, env={**os.environ, "PYTHONPATH": path}, check=False).returncode


def main(arguments: list[str] | None = None, *, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tag", help="the release; otherwise the last one before this commit")
    asked, rest = parser.parse_known_args(arguments)
    tag = asked.tag or last_tag(root)
    if tag is None:
        print("previous release: there is no release tag before this commit, so nothing was run")
        return 0
    with tempfile.TemporaryDirectory(prefix="interlock-release-") as directory:
        check_out(root, tag, Path(directory))
        print(f"previous release: the engine tests of {tag} against the schema of {root}", flush=True)
        return run_tests(Path(directory), root / "src", rest or ["-m", "not chaos", *SUITE])


if __name__ == "__main__":
    sys.exit(main())
