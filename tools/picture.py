"""Draws the end of a demo's output for the README: `make demo | python tools/picture.py > docs/demo.svg`."""

from __future__ import annotations

import io
import re
import sys

from rich.console import Console
from rich.text import Text

WIDTH = 100
_LEFT_OUT = re.compile(r"^(\[\d/\d\]|\d+/24 )|^setup: .* ready")
_FONTS = re.compile(
    r"@font-face \{.*?\}\s*", re.DOTALL
)  # Rich would have the reader's browser fetch them from elsewhere
_BOLD = re.compile(r"^(ticket +category|Look at|Make your own)")


def main() -> None:
    console = Console(record=True, width=WIDTH, file=io.StringIO(), highlight=False)
    console.print(Text("~/interlock $ make demo", style="bold"))
    for line in sys.stdin.read().splitlines():
        if not _LEFT_OUT.match(line):
            console.print(Text(line.rstrip(), style="bold" if _BOLD.match(line) else ""))
    drawn = _FONTS.sub("", console.export_svg(title="make demo"))
    sys.stdout.write(drawn.replace("Fira Code, monospace", "DejaVu Sans Mono, Menlo, Consolas, monospace"))


if __name__ == "__main__":
    main()
