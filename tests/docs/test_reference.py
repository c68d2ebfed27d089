"""The API reference: built without a warning, complete, and readable without a network."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import interlock.testing

ROOT = Path(__file__).parents[2]


def test_the_reference_shows_every_public_name_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "reference.py"), str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "interlock" / "testing.html").read_text(encoding="utf-8")
    for name in interlock.testing.__all__:
        assert f'id="{name}"' in page, name
    for module in ("base/errors", "base/settings", "workflows/spec", "workflows/contracts", "workflows/prompts"):
        assert (tmp_path / "interlock" / f"{module}.html").exists(), module
    for written in tmp_path.rglob("*.html"):
        assert not re.search(r'<(script|link|img)\b[^>]*(src|href)="https?:', written.read_text(encoding="utf-8"))
