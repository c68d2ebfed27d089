"""Identifiers: a readable prefix, then a ULID, so that ids sort by time of creation and never collide."""

from __future__ import annotations

import time

from interlock.base.entropy import random_bytes

# Crockford's base 32 (https://www.crockford.com/base32.html): no I, L, O, U to misread.
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


# Two characters for each 10 bits.
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]


def new_id(prefix: str) -> str:
    """A fresh id such as `run_01j9z…`: 48 bits of milliseconds, 80 random bits (the ULID layout)."""
    number = (int(time.time() * 1000) << 80) | int.from_bytes(random_bytes(10))
    return f"{prefix}_" + "".join([_PAIRS[(number >> shift) & 1023] for shift in range(120, -1, -10)])


def random_token(characters: int = 10) -> str:
    """Random characters of the same alphabet, 5 bits each; carries no information about what it stands for."""
    number = int.from_bytes(random_bytes((characters * 5 + 7) // 8))
    return "".join(_ALPHABET[(number >> (5 * place)) & 31] for place in range(characters))
