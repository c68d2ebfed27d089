"""Wrapping of documents (tools/wrap.py): what is filled, and what must keep its lines."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location("wrap", ROOT / "tools" / "wrap.py")
assert _SPEC is not None
assert _SPEC.loader is not None
wrap = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(wrap)

LONG = "word " * 40


def test_a_paragraph_is_filled_and_its_neighbours_keep_their_lines() -> None:
    text = f"# Title\n\nshort\nlines\n\n{LONG.strip()}\nend\n\nshort\nagain\n"
    lines = wrap.wrapped(text).splitlines()
    assert lines[:5] == ["# Title", "", "short", "lines", ""]
    assert lines[-3:] == ["", "short", "again"]
    assert [len(line) for line in lines[5:-3]] == [119, 83]
    assert " ".join(lines[5:-3]) == LONG + "end"
    assert wrap.too_long(text) == [6]
    assert wrap.too_long("\n".join(lines)) == []


def test_a_list_item_is_filled_under_its_text() -> None:
    lines = wrap.wrapped(f"- {LONG}\n- short\n  10. {LONG}\n").splitlines()
    assert [line[:6] for line in lines] == ["- word", "  word", "- shor", "  10. ", "      "]


@pytest.mark.parametrize(
    "text",
    [
        f"| {LONG} |\n",
        f"## {LONG}\n",
        f"```\n{LONG}\n```\n",
        f"```\n~~~\n{LONG}\n```\n",
        f"> {LONG}\n",
        f"<!-- {LONG} -->\n",
        f"[target]: {LONG}\n",
        f"`{LONG}`\n",
        f"![{LONG}](picture.svg)\n",
        "a" * 200 + "\n",
    ],
)
def test_what_cannot_be_broken_keeps_its_line(text: str) -> None:
    assert wrap.wrapped(text) == text
    assert wrap.too_long(text) == []


def test_a_word_that_would_begin_another_block_stays_on_its_line() -> None:
    for word in ("-", "+", "*", "1.", "#", "|", ">", "---"):
        for start in range(100, 120):
            lines = wrap.wrapped("x" * start + f" {word} after it comes more text, so it must be broken\n").splitlines()
            assert len(lines) == 2
            assert not lines[1].startswith(word)


@given(st.lists(st.sampled_from(["a", "-", "1.", "`code span`", "[a link](to/it.md)", "#", "a" * 50]), min_size=1))
def test_filling_keeps_every_word_and_is_done_once(words: list[str]) -> None:
    text = "start " + " ".join(words) + "\n"
    filled = wrap.wrapped(text)
    assert filled.split() == text.split()
    assert wrap.wrapped(filled) == filled
    assert wrap.too_long(filled) == []
    for line in filled.splitlines():
        assert line.count("`") % 2 == 0
