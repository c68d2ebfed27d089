"""Identifiers never collide, and sort by the time they were made."""

from __future__ import annotations

import re
import time
from itertools import pairwise

import pytest

from interlock.base import ids
from interlock.base.ids import new_id, random_token


def test_shape() -> None:
    assert re.fullmatch(r"run_[0-9a-hjkmnp-tv-z]{26}", new_id("run"))


def test_no_two_are_alike() -> None:
    assert len({new_id("x") for _ in range(20_000)}) == 20_000
    assert len({random_token() for _ in range(5000)}) == 5000


def test_they_sort_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = [0.0, 1.0, 1.002, 2.0, 1_000_000_000.0, 1_767_225_600.0, 1_767_225_600.001, 4_102_444_800.0]
    made = []
    for moment in moments:
        monkeypatch.setattr(time, "time", lambda moment=moment: moment)
        made.append(new_id("run"))
    assert all(earlier < later for earlier, later in pairwise(made))


def test_the_first_ten_characters_are_the_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1469918176.385)  # the example of the ULID specification: 01ARYZ6S41…
    monkeypatch.setattr(ids, "random_bytes", lambda count: b"\xff" * count)
    assert new_id("run") == "run_01aryz6s41" + "z" * 16


@pytest.mark.parametrize("characters", [1, 10, 16, 33])
def test_tokens_use_the_whole_alphabet(characters: int) -> None:
    assert len(random_token(characters)) == characters
    seen = set("".join(random_token(characters) for _ in range(3000)))
    assert seen == set("0123456789abcdefghjkmnpqrstvwxyz")
