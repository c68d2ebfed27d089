"""Hostile inputs of 200 kB: a second at most where time grows with the length, minutes where it grows with its square.

No clock is read; the limit is for what would not come to an end, with room for a machine that is many times slower.
"""

from __future__ import annotations

import random

import pytest

from interlock.guard.injection import scan
from interlock.guard.pii import Redactor, find, reveal

SIZE = 200_000
pytestmark = pytest.mark.timeout(25)

FOR_PII = {
    "dead_letters": "a", "digits": "1", "digits and spaces": "1 ", "digits and dashes": "1-", "pairs": "12 ", "fours": "1234 ",
    "card starts": "4 ", "card pairs": "45 ", "plus": "+", "plus one": "+1 ", "brackets": "(12)", "area codes": "(123) ",
    "at": "@", "local parts": "a@", "half addresses": "a@a.", "labels": "a.", "hyphens": "a-", "addresses": "a@b.co ",
    "odd characters": "%+", "longest local part": "a" * 64 + "@", "IBAN starts": "AA11 ", "IBAN groups": "AB12 CD34 ",
    "dotted": "1.1.1.", "IP addresses": "8.8.8.8 ", "SSNs": "123-45-6789 ", "SSN starts": "123-45-",
    "key starts": "sk-", "keys": "sk-aaaaaaaaaaaaaaaaaaaa ", "our key starts": "il_0123456789abcdef_",
    "cards": "4111 1111 1111 1111 ", "nearly cards": "4111 1111 1111 1112 ", "other digits": "\u0661", "spaces": " ",
}  # fmt: skip

FOR_INJECTION = {
    "ignore": "ignore ", "ignore all": "ignore all ", "previous": "ignore previous ", "you are now": "you are now ",
    "act as": "act as ", "reveal": "reveal ", "use tool": "use tool ", "hashes": "#", "headings": "##\n",
    "wide headings": "##  \n", "lines": "\n", "angles": "<|", "INST": "[INST", "SYS": "<<",
    "marks": "\u0327\u0301", "marks the wrong way round": "\u0345\u0301\u0327", "sound marks": "\uff9e\u3099",
    "ligatures": "\ufdfa", "zero-width": "i\u200b", "full width": "\uff49\uff47\uff4e ", "syllables": "\u1100\u1161\u11a8",
}  # fmt: skip


def long(part: str) -> str:
    return (part * (SIZE // len(part) + 1))[:SIZE]


def anything() -> str:
    return "".join(random.Random(5).choices("0123456789 -.+()@aA_xX\n", k=SIZE))


@pytest.mark.parametrize("name", FOR_PII)
def test_long_hostile_inputs_are_searched_to_their_end(name: str) -> None:
    assert isinstance(find(long(FOR_PII[name])), list)


@pytest.mark.parametrize("name", FOR_INJECTION)
def test_long_hostile_inputs_are_scanned_to_their_end(name: str) -> None:
    assert isinstance(scan(long(FOR_INJECTION[name])), list)


def test_long_mixtures() -> None:
    third = SIZE // 3
    assert isinstance(find(anything()), list)
    assert isinstance(scan(anything()), list)
    assert scan("a" + "\u0345" * third + "\u0301" * third + "\u0327" * third) == []


def test_many_findings_are_redacted_and_revealed() -> None:
    text = " ".join(f"user{n}@example.com" for n in range(SIZE // 20))
    redactor = Redactor.new()
    redacted = redactor.redact(text)
    assert len(redactor.vault) == SIZE // 20
    assert "@" not in redacted
    assert reveal(redacted, redactor.vault) == text
