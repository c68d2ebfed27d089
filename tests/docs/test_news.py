"""News fragments: their names and form, and the changelog entry that they become."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DIRECTORY = ROOT / "newsfragments"
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*\.(feature|change|fix|removal)\.md")


def objection(name: str, text: str) -> str | None:
    """The rule that a fragment breaks, or None."""
    if not NAME.fullmatch(name):
        return "its name is not SLUG.TYPE.md with a TYPE of feature, change, fix or removal"
    if not text.strip():
        return "it is empty"
    if re.search(r"\n\s*\n", text.strip()) or re.search(r"^\s*([-*+#>|]|\d+\.)\s", text, re.MULTILINE):
        return "it is more than one paragraph"
    if not text.strip().endswith("."):
        return "it does not end with a full stop"
    return None


def fragments() -> list[Path]:
    return sorted(path for path in DIRECTORY.iterdir() if path.name != "README.md")


@pytest.mark.parametrize(
    ("name", "text", "refused"),
    [
        ("new-command.feature.md", "A command.\n", False),
        ("two-lines.fix.md", "A long\nsentence.\n", False),
        ("new-command.md", "A command.\n", True),
        ("new-command.feature", "A command.\n", True),
        ("new-command.bugfix.md", "A command.\n", True),
        ("New_Command.feature.md", "A command.\n", True),
        ("empty.fix.md", " \n", True),
        ("two.fix.md", "One.\n\nTwo.\n", True),
        ("list.fix.md", "- One.\n- Two.\n", True),
        ("heading.fix.md", "# Heading.\n", True),
        ("open.fix.md", "No end\n", True),
    ],
)
def test_the_rules_for_a_fragment(name: str, text: str, *, refused: bool) -> None:
    assert (objection(name, text) is not None) == refused


def test_every_fragment_keeps_the_rules() -> None:
    found = {path.name: objection(path.name, path.read_text(encoding="utf-8")) for path in fragments()}
    assert {name: reason for name, reason in found.items() if reason} == {}


def test_every_fragment_is_in_the_next_entry_of_the_changelog() -> None:
    command = [sys.executable, "-m", "towncrier", "build", "--draft"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    titles = {"feature": "Added", "change": "Changed", "fix": "Fixed", "removal": "Removed"}
    parts = re.split(r"^### (.+)$", done.stdout, flags=re.MULTILINE)
    sections = {title: _plain(body) for title, body in zip(parts[1::2], parts[2::2], strict=True)}
    for path in fragments():
        section = sections[titles[path.name.split(".")[1]]]
        assert f"- {_plain(path.read_text(encoding='utf-8'))}" in section, path.name
        assert f"({path.name.split('.')[0]})" not in section, path.name


def test_the_changelog_has_the_place_where_the_next_entry_goes() -> None:
    assert (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").count("<!-- releases -->\n") == 1


def _plain(text: str) -> str:
    return " ".join(text.split())
