"""The bounds of JSON from outside, and places in messages."""

from __future__ import annotations

import json
from typing import Any

import pytest

from interlock.base.json import MAX_DEPTH, MAX_PLACE, InvalidJson, accept_json, parse_json, place, sentence

CANARY = "alice@example.com, SSN 078-05-1120"


def nested(levels: int) -> Any:
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        (f'{{"{CANARY}": 1, "{CANARY}": 2}}', "same key twice"),
        ("NaN", "NaN is not a JSON number"),
        ('{"a": -Infinity}', "-Infinity is not a JSON number"),
        ("1e999", "NaN and infinity"),
        ("9223372036854775808", "outside -2^63"),
        ("-9223372036854775809", "outside -2^63"),
        ("1" + "0" * 400, "outside -2^63"),
        ("9" * 5000, "digits"),
        (f'"{CANARY} \\ud800"', "surrogate"),
        (f'{{"{CANARY} \\udc00": 1}}', "surrogate"),
        (f'"{CANARY} \\u0000"', "NUL"),
        (f'[{{"{CANARY} é \\u0000": 1}}]', "NUL"),
        ("[" * 101 + "]" * 101, "100 levels"),
        ("[" * 100_000 + "]" * 100_000, "100 levels"),
        ('{"a":' * 101 + "1" + "}" * 101, "100 levels"),
        (b'"\xff"', "byte 1 is not UTF-8"),
        (b'"\xed\xa0\x80"', "not UTF-8"),
    ],
)
def test_what_is_refused(text: str | bytes, said: str) -> None:
    with pytest.raises(InvalidJson) as caught:
        parse_json(text)
    assert said in caught.value.message
    assert "alice" not in caught.value.message
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    "value",
    [
        None,
        [True, False, 0, -0.0, 1.5e300, 2**63 - 1, -(2**63)],
        {"": {"é\u202e\x1b": "😀\n"}},
        nested(MAX_DEPTH),
    ],
)
def test_what_is_accepted_comes_back_the_same(value: Any) -> None:
    assert accept_json(value) is value
    assert parse_json(json.dumps(value)) == value
    assert parse_json(b"\xef\xbb\xbf" + json.dumps(value).encode()) == value


@pytest.mark.parametrize("value", [(1, 2), {1: 2}, {"a": b"x"}, [object()], float("nan"), nested(MAX_DEPTH + 1)])
def test_values_of_python_that_are_no_json_are_refused(value: Any) -> None:
    with pytest.raises(InvalidJson):
        accept_json(value)


def test_a_size_can_be_bounded() -> None:
    accept_json(["x" * 96], limit_bytes=100)
    with pytest.raises(InvalidJson, match="more than 100 bytes"):
        accept_json(["x" * 97], limit_bytes=100)


@pytest.mark.parametrize(
    ("path", "value", "shown"),
    [
        ([], {}, ""),
        (["items", 3, "name"], {"items": [0, 0, 0, {"name": 1}]}, "/items/3/name"),
        (["items", 0, CANARY], {"items": [{"a": 1, CANARY: 2}]}, "/items/0/1"),
        ([CANARY, "name"], {CANARY: {"name": 1}}, "/0/name"),
        ([CANARY, 5, CANARY], {}, "/*/5/*"),
        (["na\nme"], {"na\nme": 1}, "/0"),
        (["x" * 70], {"x" * 70: 1}, "…" + "x" * (MAX_PLACE - 1)),
    ],
)
def test_a_place_has_numbers_and_declared_names_only(path: list[str | int], value: Any, shown: str) -> None:
    assert place(path, {"items", "name", "na\nme", "x" * 70}, value) == shown
    assert len(shown) <= MAX_PLACE


def test_a_sentence_is_one_printable_line() -> None:
    assert sentence("a\x00b\n\x1b[31m \u202ec \ud800", 20) == "a b [31m c"
    assert sentence("x" * 3_000_000, 20) == "x" * 19 + "…"
