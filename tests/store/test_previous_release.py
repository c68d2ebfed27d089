"""The tool that runs the last release's engine tests against the schema at hand. Until there is a release: against one made up."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import previous_release  # noqa: E402  a program, not a package

# Writes a run through the committer of the "release" and reads its own version and place.
RELEASED_TEST = """
from importlib.metadata import version
from pathlib import Path

import interlock
from interlock.store.commit import Commit, Committer
from store.rows import deploy, journal, new_run


async def test_a_commit(database, owner, tenants):
    assert version("interlock") == "0.0.7"
    assert Path(interlock.__file__).is_relative_to(Path(__file__).parents[1])
    assert owner.execute("select count(*) from pg_class where relname = 'of_the_code_at_hand'").fetchone() == (1,)
    deploy(owner, "acme")
    committer = Committer(database, lambda entries, seq, head: ([], seq, head))
    committer.start()
    run = new_run("acme")
    await committer.submit(Commit("acme", new_runs=[run], journal=[journal(run, 1)]))
    await committer.close()
"""


def git(repository: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(repository), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one commit: this code, as version 0.0.7, with one test of the write path."""
    made = tmp_path / "repository"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src", made / "src", ignore=ignored)
    (made / "tests" / "store").mkdir(parents=True)
    for name in ("conftest.py", "store/__init__.py", "store/rows.py"):
        shutil.copy(ROOT / "tests" / name, made / "tests" / name)
    (made / "tests" / "test_released.py").write_text(RELEASED_TEST)
    settings = (ROOT / "pyproject.toml").read_text()
    (made / "pyproject.toml").write_text(settings.replace('version = "0.1.0"', 'version = "0.0.7"', 1))
    git(made, "init", "-q")
    git(made, "add", ".")
    git(made, "commit", "-q", "-m", "released")
    return made


def to_next(repository: Path, old: str, new: str, file: str) -> None:
    """A commit after the release, in which the SQL differs: a table more, and one text replaced."""
    sql = repository / "src" / "interlock" / "store" / "sql"
    (sql / "migrations" / "0003.next.sql").write_text(
        "-- depends: 0002.security\ncreate table of_the_code_at_hand ();\n"
    )
    text = (sql / file).read_text()
    assert old in text
    (sql / file).write_text(text.replace(old, new))
    git(repository, "commit", "-q", "-a", "-m", "next")


def test_without_a_tag_nothing_is_run_and_it_says_so(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    git(repository, "tag", "nightly")
    assert previous_release.main([], root=repository) == 0
    assert "no release tag" in capsys.readouterr().out


def test_the_last_release_is_the_highest_version_before_this_commit(repository: Path) -> None:
    for tag in ("v0.9.0", "v0.10.0", "v0.2.1", "vnext", "v1.0"):
        git(repository, "tag", tag)
    assert previous_release.last_tag(repository) is None, "this commit is the release"
    git(repository, "commit", "-q", "--allow-empty", "-m", "next")
    git(repository, "tag", "v0.11.0")
    assert previous_release.last_tag(repository) == "v0.10.0"


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [("'audit head moved'", "'the audit head moved'", 0), ("function settle_v1(", "function settle_v2(", 1)],
    ids=["takes what the release sends", "does not"],
)
def test_the_released_code_runs_against_the_schema_at_hand(
    repository: Path, old: str, new: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_TESTRUNUID"):
        monkeypatch.delenv(name, raising=False)
    git(repository, "tag", "v0.0.7")
    to_next(repository, old, new, "functions/settle_v1.sql" if code else "functions/settle_v1_guards.sql")
    assert previous_release.main(["-p", "no:cacheprovider", "tests/test_released.py"], root=repository) == code
