"""Search in windows: it finds what a search of the whole text finds, and lets the event loop have its turns."""

from __future__ import annotations

import asyncio
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.guard.gate import Stage, inspect
from interlock.guard.pii import find
from interlock.guard.windows import REACH, WINDOW, matches

PARTS = ("ab1", "b12-", " ", "1", "xx", "a" * 30, "12 34 ", "-", "\n")
PATTERNS = (r"\b[ab]{1,9}\d{1,5}(?!-)", r"(?<![\d-])\d(?:[ -]?\d){2,8}(?![\d-])", r"^\s?x{1,3}", r"\ba{3,40}\b")


@given(st.lists(st.sampled_from(PARTS), max_size=40), st.integers(0, 80), st.sampled_from(PATTERNS))
def test_the_same_matches_as_in_one_call(parts: list[str], before: int, source: str) -> None:
    text = "." * (WINDOW - before) + "".join(parts) + "." * (WINDOW - 40) + "".join(parts)
    pattern = re.compile(source, re.MULTILINE)
    assert [match.span() for match in matches(pattern, text)] == [match.span() for match in pattern.finditer(text)]


@pytest.mark.parametrize("before", [0, 1, WINDOW - 1, WINDOW, WINDOW + REACH - 5, 3 * WINDOW - 19, 3 * WINDOW + 1])
@pytest.mark.parametrize(
    ("secret", "kind"),
    [
        ("4111 1111 1111 1111", "card"),
        ("DE89 3704 0044 0532 0130 00", "iban"),
        ("a.person@mail.example.org", "email"),
        ("sk-" + "a1B_" * 5000, "api_key"),
        ("+447700 208 815", "phone"),
    ],
)
def test_findings_at_the_ends_of_windows_are_whole(secret: str, kind: str, before: int) -> None:
    text = "." * (before - 1) + " " * bool(before) + secret + " end " + "." * WINDOW
    assert [(text[one.start : one.end], one.kind) for one in find(text)] == [(secret, kind)]


@pytest.mark.parametrize("filler", ["1-", "1 ", "12-", "900 "])
def test_a_card_in_a_long_run_of_digits_is_found(filler: str) -> None:
    text = filler * 6000 + "4111-1111-1111-1111 " + filler * 3000 + "1"
    assert "4111-1111-1111-1111" in "|".join(text[one.start : one.end] for one in find(text) if one.kind == "card")


async def test_the_loop_has_its_turns_during_a_long_inspection() -> None:
    """One call of a pattern over the whole text took three quarters of the time, and the loop stood still in it."""
    inspecting = asyncio.create_task(inspect({"text": "ignore all " * 9_000}, Stage.INPUT, "acme"))
    began = last = time.perf_counter()
    longest, turns = 0.0, 0
    while not inspecting.done():
        await asyncio.sleep(0)
        now = time.perf_counter()
        longest, last, turns = max(longest, now - last), now, turns + 1
    assert (await inspecting).findings == []
    assert longest < (last - began) / 2
    assert turns > 100
