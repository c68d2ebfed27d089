"""Detection of personal data and secrets by pattern and checksum, and their replacement by random tokens.

Patterns only: e-mail, phone, payment card (Luhn), IBAN (mod 97), US SSN, IPv4, API keys. Names and addresses
need a model and are not found here.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

from interlock.base.credentials import KEYS
from interlock.base.ids import random_token
from interlock.base.json import Json
from interlock.guard.windows import WINDOW, matches

_PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("api_key", KEYS),
    (
        "email",
        re.compile(r"\b[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){0,8}\.[A-Za-z]{2,24}\b"),
    ),
    ("iban", re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")),
    ("card", re.compile(r"(?<![\d-])\d(?:[ -]?\d){12}")),  # the beginning of a run of digits, see `_runs`
    ("ssn", re.compile(r"\b(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}\b")),
    ("ip", re.compile(r"\b(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)\b")),
    (
        "phone",
        re.compile(
            r"(?<![\w.-])(?:"
            r"(?:\+\d{1,3}[ .-]?)?(?:\((?:0|\d{2,4})\)[ .-]?\d{1,4}|\d{2,4})(?:[ .-]\d{2,4}){2,4}"  # +41 (0)71 526 99 04
            r"|(?:\+\d{1,3}[ .-]?)?\(\d{2,4}\)[ .-]?\d{3,4}[ .-]\d{3,4}"  # (602) 272-9781
            r"|0\d{2,4}[ /-]\d{3} ?\d{3,5}"  # 0341 8387176
            r")(?:x\d{1,5})?(?![\w-])"
            r"|\+\d(?:[ .()-]{0,3}\d){7,14}(?!\d)"  # +447700 208 815
        ),
    ),
)

_KEY_CHARACTERS = re.compile(r"[A-Za-z0-9_-]*")
_MORE_DIGITS = re.compile(r"(?:[ -]?\d)*")
_NEEDED = re.compile(r"[@\d]")  # in every match of a pattern other than `api_key`; most texts have none
_WITHOUT = _PATTERNS[:1]

_CARD_DIGITS_LEAST, _CARD_DIGITS = 13, 19
_TOKEN_CHARACTERS = 10
_DOUBLED = tuple(digit * 2 - 9 * (digit > 4) for digit in range(10))


@dataclass(frozen=True, slots=True)
class Finding:
    """A span of text and its kind."""

    start: int
    end: int
    kind: str


def find(text: str) -> list[Finding]:
    """Findings in order, without overlaps; where two overlap the earlier pattern of the table wins."""
    taken: list[Finding] = []
    for kind, pattern in _PATTERNS if _NEEDED.search(text) else _WITHOUT:
        taken = list(_added(taken, kind, _spans(kind, pattern, text)))
    return taken


def _added(taken: list[Finding], kind: str, spans: Iterator[tuple[int, int]]) -> Iterator[Finding]:
    """Both in order, without the spans that overlap with what is taken."""
    place = 0
    for start, end in spans:
        while place < len(taken) and taken[place].end <= start:
            yield taken[place]
            place += 1
        if place == len(taken) or taken[place].start >= end:
            yield Finding(start, end, kind)
    yield from taken[place:]


def _spans(kind: str, pattern: re.Pattern[str], text: str) -> Iterator[tuple[int, int]]:
    if kind == "card":
        for start, end in _runs(pattern, text):
            yield from _plausible_parts(kind, start, text[start:end])
        return
    for match in matches(pattern, text, _KEY_CHARACTERS if kind == "api_key" else None):
        yield from _plausible_parts(kind, match.start(), match[0])


def _runs(beginning: re.Pattern[str], text: str) -> Iterator[tuple[int, int]]:
    """Runs of digits that may contain cards, with single spaces or hyphens between them and no hyphen behind them."""
    position = 0
    for match in matches(beginning, text):
        if match.start() < position:
            continue  # a part of the last run
        position = match.end()
        while (more := _MORE_DIGITS.match(text, position, position + WINDOW)) is not None and more.end() > position:
            position = more.end()
        end = position
        if text.startswith("-", end):
            end = text.rfind(" ", match.start(), end)  # the digits behind the last space do not belong to it
        if end > match.start():
            yield match.start(), end


def _plausible_parts(kind: str, start: int, found: str) -> Iterator[tuple[int, int]]:
    """Plausible parts of a match. Number patterns are greedy: a match may include a date or currency beside a card or IBAN."""
    if _plausible(kind, found):
        yield start, start + len(found)
    elif kind == "iban":
        groups = found.split(" ")
        for kept in range(len(groups) - 1, 1, -1):
            text = " ".join(groups[:kept])
            if _mod97(text):
                yield start, start + len(text)
                return
    elif kind == "card":
        for inner in _cards(found):
            yield start + inner[0], start + inner[1]


def _cards(text: str) -> Iterator[tuple[int, int]]:
    """Card numbers among other numbers: whole groups, with a first digit used by issuers (ISO/IEC 7812-1: 2 to 6)."""
    groups = [match.span() for match in re.finditer(r"\d+", text)]
    # The sum of a slice of digits is a difference of two prefix sums, so the cost of a candidate does not depend on its length.
    digits = [int(character) for character in text if character.isdigit()]
    sums = [
        [0, *accumulate(digit if place % 2 == parity else _DOUBLED[digit] for place, digit in enumerate(digits))]
        for parity in (0, 1)
    ]
    position, before = 0, 0
    for first, (start, end) in enumerate(groups):
        begin, before = before, before + end - start
        if start < position or text[start] not in "23456":
            continue
        until = begin
        for group in groups[first : first + _CARD_DIGITS]:
            until += group[1] - group[0]
            if until - begin > _CARD_DIGITS:
                break
            of_parity = sums[(until - 1) % 2]  # the last digit counts once
            if until - begin >= _CARD_DIGITS_LEAST and (of_parity[until] - of_parity[begin]) % 10 == 0:
                yield start, group[1]
                position = group[1]
                break


@dataclass(slots=True)
class Redactor:
    """Replaces findings with random tokens; one value gets one token within a redactor.

    Tokens are random, so they reveal neither the value nor its structure.

    Attributes:
        vault: token → value; secret, stored encrypted, and the only way to restore values.
        counts: findings by kind.
    """

    vault: dict[str, str]
    counts: dict[str, int]
    _tokens: dict[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._tokens = {original: token for token, original in self.vault.items()}

    @classmethod
    def new(cls) -> Redactor:
        return cls({}, {})

    def redact(self, value: Json) -> Json:
        """A JSON value with every string redacted; keys are unchanged."""
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
        token = self._tokens.get(original)
        if token is None:
            token = self._tokens[original] = f"{kind}_{random_token(_TOKEN_CHARACTERS)}"
            self.vault[token] = original
        return token


def reveal(value: Json, vault: dict[str, str]) -> Json:
    """A JSON value with the vault's tokens replaced by their values."""
    kinds = "|".join(sorted({re.escape(token[: -_TOKEN_CHARACTERS - 1]) for token in vault}, key=len, reverse=True))
    pattern = re.compile(f"(?:{kinds})_[0-9a-z]{{{_TOKEN_CHARACTERS}}}")

    def replace(item: Json) -> Json:
        if isinstance(item, str):
            return pattern.sub(lambda match: vault.get(match[0], match[0]), item)
        if isinstance(item, dict):
            return {key: replace(inner) for key, inner in item.items()}
        if isinstance(item, list):
            return [replace(inner) for inner in item]
        return item

    return replace(value) if vault else value


def strings(value: object) -> Iterator[str]:
    """Every string in a JSON value, keys included, because a key can contain an injection too."""
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
        digits = sum(character.isdigit() for character in text)
        return _CARD_DIGITS_LEAST <= digits <= _CARD_DIGITS and _luhn(text)
    if kind == "iban":
        return _mod97(text)
    if kind == "ip":
        return _is_global(text) is True  # loopback and private addresses identify no person
    if kind == "phone":
        return 7 <= sum(character.isdigit() for character in text) <= 15 and _is_global(text) is None
    return True


def _is_global(text: str) -> bool | None:
    """True if an IPv4 address is public; None if the text is no address (a leading zero, another script)."""
    try:
        return ipaddress.IPv4Address(text).is_global
    except ValueError:
        return None


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
