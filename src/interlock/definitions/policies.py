"""Policy files of a project: read, checked file by file against the project's names, and joined to one policy set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from interlock.base.errors import InvalidSpec
from interlock.base.files import read_text, why_unreadable
from interlock.policy.cedar import CedarPolicy
from interlock.policy.schema import Names, faults_of


def read_policies(directory: Path, paths: Sequence[Path], names: Names, faults: list[str]) -> str | None:
    """The text of a project's policy set; None if it has no policies, or one of them is faulty."""
    texts: list[str] = []
    found: list[str] = []
    for path in paths:
        name = path.relative_to(directory).as_posix()
        try:
            texts.append(read_text(path))
        except (OSError, UnicodeDecodeError) as error:
            found.append(f"{name}: cannot be read: {why_unreadable(error)}")
            continue
        found += [f"{name}:{fault.line}: {fault.message}" for fault in faults_of(texts[-1], names)]
    whole = "\n".join(texts)
    if texts and not found:
        try:
            CedarPolicy(whole, source="policies")  # together they may exceed a bound
        except InvalidSpec as error:
            found.append(error.message)
    faults += found
    return whole if texts and not found else None
