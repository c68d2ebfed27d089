"""Patterns of credentials: one list for redaction of values and for scrubbing of logs and provider messages."""

from __future__ import annotations

import re

# Prefixes of keys that are recognised by the length of the rest: OpenAI and Anthropic (sk-), Groq (gsk), xAI, and others.
_PREFIXED = r"(?:sk|pk|gsk|xai)-"
_FIXED = (
    r"il_[0-9a-z]{16}_[0-9a-z]{40}",  # Interlock
    r"AKIA[0-9A-Z]{16}",  # AWS
    r"gh[pousr]_[A-Za-z0-9]{36,}",  # GitHub
    r"xox[abpr]-[A-Za-z0-9-]{10,}",  # Slack
)

KEYS = re.compile(rf"\b(?:{_PREFIXED}[A-Za-z0-9_-]{{16,}}|{'|'.join(_FIXED)})")
"""Keys in a value, of at least the real length."""

# Wider, for text that only has to stay readable: providers repeat a wrong key partly masked, and a key may have been cut.
_LOOSE = re.compile(
    r"il_[a-z0-9]{10,}_[a-z0-9]+|sk-[A-Za-z0-9_-]{8,}|(?i:\b(?:sk|pk|key|gsk|xai)-[\w*.-]{6,})"
    rf"|{'|'.join(_FIXED[1:])}|(?<=[Bb]earer )[^\s\"']{{6,}}|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"
)


def scrub_keys(text: str, shown: str) -> str:
    """The text with `shown` in place of everything that looks like a credential or a part of one."""
    return _LOOSE.sub(shown, text)
