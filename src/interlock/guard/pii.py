"""Finds personal data and secrets by pattern and checksum, and replaces them with random tokens.

Patterns only: e-mail, phone, payment card (Luhn), IBAN (mod 97), US SSN, IPv4, API keys. Names and addresses
need a model and are not found here.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from interlock.base.ids import random_token

_PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "api_key",
        re.compile(
            r"\b(?:sk-[A-Za-z0-9_-]{16,}|AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36,}|xox[abpr]-[A-Za-z0-9-]{10,}|il_[0-9a-z]{16}_[0-9a-z]{40})"
        ),
    ),
    (
        "email",
        re.compile(r"\b[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){0,8}\.[A-Za-z]{2,24}\b"),
    ),
    ("iban", re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")),
    ("card", re.compile(r"(?<![\d-])\d(?:[ -]?\d){12,18}(?![\d-])")),
    ("ssn", re.compile(r"\b(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}\b")),
    ("ip", re.compile(r"\b(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)\b")),
    (
        "phone",
        re.compile(
            r"(?<![\w.-])(?:\+\d{1,3}[ .-]?)?(?:\(\d{2,4}\)[ .-]?)?\d{2,4}(?:[ .-]\d{2,4}){2,4}(?![\w-])|\+\d{8,15}\b"
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """A span of text and what it is."""

    start: int
    end: int
    kind: str


def find(text: str) -> list[Finding]:
    """Findings in order, without overlaps; where two overlap the earlier pattern of the table wins."""
    taken: list[Finding] = []
    for kind, pattern in _PATTERNS:
        for match in pattern.finditer(text):
            if not _plausible(kind, match[0]):
                continue
            if all(match.end() <= one.start or match.start() >= one.end for one in taken):
                taken.append(Finding(match.start(), match.end(), kind))
    return sorted(taken, key=lambda one: one.start)


@dataclass(slots=True)
class Redactor:
    """Replaces findings with random tokens; one value gets one token within a redactor.

    Tokens are random, so they tell nothing about the value and keep no structure an attacker could use.

    Attributes:
        vault: token → value; secret, kept encrypted, the only way back.
        counts: findings by kind.
    """

    vault: dict[str, str]
    counts: dict[str, int]

    @classmethod
    def new(cls) -> Redactor:
        return cls({}, {})

    def redact(self, value: Any) -> Any:
        """A JSON value with every string redacted; keys stay."""
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, dict):
            return {key: self.redact(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.redact(item) for item in value]
        return value

    def _text(self, text: str) -> str:
        parts, position = [], 0
        for finding in find(text):
            parts += [text[position : finding.start], self._token(finding.kind, text[finding.start : finding.end])]
            position = finding.end
        return "".join([*parts, text[position:]])

    def _token(self, kind: str, original: str) -> str:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        for token, known in self.vault.items():
            if known == original:
                return token
        token = f"{kind}_{random_token(10)}"
        self.vault[token] = original
        return token


def reveal(value: Any, vault: dict[str, str]) -> Any:
    """A JSON value with the vault's tokens replaced by what they stand for."""
    if isinstance(value, str):
        for token, original in vault.items():
            value = value.replace(token, original)
        return value
    if isinstance(value, dict):
        return {key: reveal(item, vault) for key, item in value.items()}
    if isinstance(value, list):
        return [reveal(item, vault) for item in value]
    return value


def strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value, keys included: an order can hide in a key as well."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


def _plausible(kind: str, text: str) -> bool:
    if kind == "card":
        return _luhn(text)
    if kind == "iban":
        return _mod97(text)
    if kind == "ip":
        return ipaddress.ip_address(text).is_global  # loopback and private addresses are nobody's
    if kind == "phone":
        return 7 <= sum(character.isdigit() for character in text) <= 15
    return True


def _luhn(text: str) -> bool:
    """ISO/IEC 7812-1 annex B."""
    digits = [int(character) for character in text if character.isdigit()]
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _mod97(text: str) -> bool:
    """ISO 13616: the country code moves to the end, letters count from 10, the remainder is 1."""
    compact = text.replace(" ", "")
    rotated = compact[4:] + compact[:4]
    return int("".join(str(int(character, 36)) for character in rotated)) % 97 == 1
