"""Directory of the project that a command is about."""

from __future__ import annotations

import os
from contextvars import ContextVar
from pathlib import Path

from interlock.base.errors import InvalidInput

_MARKS = ("interlock.toml", "workflows")

_chosen: ContextVar[Path | None] = ContextVar("chosen", default=None)


def choose_project(directory: Path) -> None:
    """Makes a directory the start of the search, as `--project` does.

    Raises:
        InvalidInput: it is not a directory.
    """
    if not directory.is_dir():
        raise InvalidInput(f"--project: {str(directory)[:200]} is not a directory; name the directory of a project")
    _chosen.set(directory.resolve())


def project_directory() -> Path:
    """The nearest directory with `interlock.toml` or `workflows/`, from the chosen or working directory upwards.

    Without one it is the directory where the search begins. A file of another user in a directory above is passed over:
    in a shared directory it could name a foreign database or model.
    """
    start = _chosen.get() or Path.cwd()
    if _is_project(start):
        return start
    return next((one for one in start.parents if _is_project(one) and _is_own(one)), start)


def _is_project(directory: Path) -> bool:
    return (directory / _MARKS[0]).is_file() or (directory / _MARKS[1]).is_dir()


def _is_own(directory: Path) -> bool:
    owners = {0, os.geteuid()}
    marks = [directory, *(directory / name for name in _MARKS)]
    return all(mark.stat().st_uid in owners for mark in marks if mark.exists())
