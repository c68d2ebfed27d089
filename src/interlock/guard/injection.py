"""Detection of prompt injection by pattern. It finds only well-known phrasings."""

from __future__ import annotations

import re
import unicodedata

from interlock.guard.pii import strings
from interlock.guard.windows import WINDOW, found_in

_INVISIBLE = frozenset({"Cf", "Mn", "Me"})  # Unicode categories of formatting characters and of combining marks

_PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("override", re.compile(r"\b(?:ignore|disregard|forget|override|bypass)\b[^.!?\n]{0,40}\b(?:previous|prior|above|earlier|all|any|your|the|system|safety)\b[^.!?\n]{0,30}\b(?:instruction|prompt|rule|guideline|direction|order|context|restriction)s?\b", re.IGNORECASE)),
    ("new_role", re.compile(r"\b(?:you are now|from now on,? you(?:'re| are| will)?|act as|pretend (?:to be|you are))\b[^.!?\n]{0,60}\b(?:unrestricted|jailbroken|DAN|developer mode|no (?:rules|restrictions|filters)|without (?:rules|restrictions|filters)|evil|root|admin)", re.IGNORECASE)),
    ("leak", re.compile(r"\b(?:reveal|print|repeat|show|output|display|tell me)\b[^.!?\n]{0,40}\b(?:system prompt|hidden prompt|initial instructions|your instructions|secret key|api key)", re.IGNORECASE)),
    ("markup", re.compile(r"<\|?(?:im_start|im_end|system|endoftext)\|?>|\[/?INST\]|<</?SYS>>|^#{2,20}\s{0,200}(?:system|instruction)s?\b", re.IGNORECASE | re.MULTILINE)),
    ("tool_order", re.compile(r"\b(?:call|invoke|execute|run|use)\b[^.!?\n]{0,20}\b(?:tool|function)\b[^.!?\n]{0,60}\b(?:delete|drop|transfer|refund|send|confirm)", re.IGNORECASE)),
)  # fmt: skip

_SHORTEST = len("[INST]")  # characters of the shortest match


def scan(value: object) -> list[str]:
    """Kinds of prompt injection found in a JSON value's raw strings; empty if none."""
    found = set()
    for text in strings(value):
        plain = text if text.isascii() else _plain(text)
        if len(plain) >= _SHORTEST:
            found |= {kind for kind, pattern in _PATTERNS if found_in(pattern, plain)}
    return sorted(found)


def _plain(text: str) -> str:
    """Removes characters that hide words from a pattern. Combining marks are removed before the normalisation, which needs
    quadratic time for a long sequence of them."""
    shown = (
        character
        for character in text
        if unicodedata.category(character) not in _INVISIBLE and not unicodedata.combining(character)
    )
    joined = "".join(shown)
    # In pieces, because one call over megabytes would stop every other thread.
    pieces = (joined[begin : begin + WINDOW] for begin in range(0, len(joined), WINDOW))
    return "".join(unicodedata.normalize("NFKC", piece) for piece in pieces)
