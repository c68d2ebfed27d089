# ruff: noqa: T201  (a program for the terminal)
"""Line width of the Markdown documents: 120 columns.

    check   names the lines that are too long; exit code 1 if there are any
    write   wraps the paragraphs that hold such a line, and leaves all others as they are

Tables, headings, HTML and code blocks keep their lines. A code span and a link are never broken, so a line may be
longer when it consists of one of them. Only the files that git tracks, or would track, are read.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = 120

# One word for the wrapper: code spans and links keep their spaces.
_WORD = re.compile(r"(?:`[^`]*`|!?\[(?:[^\[\]`]|`[^`]*`)*\]\([^)]*\)|\S)+")
_ITEM = re.compile(r"(\s*)([-*+]|\d+[.)])\s+")
_FENCE = re.compile(r"\s*(```|~~~)")
# Lines that are a block of their own: blank, heading, table row, quotation, HTML, link definition, rule.
_APART = re.compile(r"\s*$|\s*(#{1,6}\s|\||>|<|\[[^\]]+\]:|(-{3,}|\*{3,}|={3,})\s*$)")
# A word that would begin a list, a heading, a table row or a quotation at the start of a line.
_MARKER = re.compile(r"([-*+]|\d+[.)]|#{1,6})$|[|>]|[-=]{3,}$")


def blocks(text: str) -> Iterator[tuple[int, list[str], bool]]:
    """Splits a document into blocks of lines: number of the first line (from 1), lines, and whether it may be wrapped."""
    fence, paragraph, start = "", list[str](), 0
    for number, line in enumerate(text.splitlines(), 1):
        mark = _FENCE.match(line)
        apart = bool(fence or mark or _APART.match(line))
        if paragraph and (apart or _ITEM.match(line)):
            yield start, paragraph, True
            paragraph = []
        if apart:
            yield number, [line], False
            if mark and fence in ("", mark[1]):
                fence = "" if fence else mark[1]
        else:
            start = start if paragraph else number
            paragraph.append(line)
    if paragraph:
        yield start, paragraph, True


def wrap(lines: list[str]) -> list[str]:
    """Fills one paragraph or list item; continuation lines of a list item are indented to its text."""
    item = _ITEM.match(lines[0])
    first = item[0] if item else lines[0][: len(lines[0]) - len(lines[0].lstrip())]
    rest = " " * len(first) if item else first
    words = _WORD.findall(" ".join([lines[0][len(first) :], *lines[1:]]))
    filled, line = list[str](), first + words[0]
    for word in words[1:]:
        if len(line) + 1 + len(word) <= COLUMNS or _MARKER.match(word):
            line += " " + word
        else:
            filled.append(line)
            line = rest + word
    return [*filled, line]


def wrapped(text: str) -> str:
    """The document with every over-long paragraph filled; equal to `text` if nothing has to change."""
    lines = [line for _, block, may in blocks(text) for line in (_fit(block) if may else block)]
    return "".join(line + "\n" for line in lines)


def too_long(text: str) -> list[int]:
    """Numbers of the lines that are longer than COLUMNS and could be wrapped."""
    return [
        start + index
        for start, block, may in blocks(text)
        if may and _fit(block) != block
        for index, line in enumerate(block)
        if len(line) > COLUMNS
    ]


def _fit(block: list[str]) -> list[str]:
    return wrap(block) if any(len(line) > COLUMNS for line in block) else block


def documents() -> list[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return sorted(path for name in set(names) if name and (path := ROOT / name).exists())


def main(arguments: list[str]) -> int:
    if arguments not in (["check"], ["write"]):
        print("wrap: the command is not known; use write or check.", file=sys.stderr)
        return 1
    found = 0
    for path in documents():
        text = path.read_text(encoding="utf-8")
        if arguments == ["write"]:
            if (new := wrapped(text)) != text:
                path.write_text(new, encoding="utf-8")
            continue
        for number in too_long(text):
            print(f"{path.relative_to(ROOT)}:{number}: longer than {COLUMNS} columns", file=sys.stderr)
            found += 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
