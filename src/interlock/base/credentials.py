"""Shapes of credentials: one list for what is redacted from values, and what is scrubbed from logs and providers' words."""

from __future__ import annotations

import re

# Prefixes of keys whose rest is told by its length: OpenAI and Anthropic (sk-), Groq (gsk), xAI, and those like them.
_PREFIXED = r"(?:sk|pk|gsk|xai)-"
_FIXED = (
    r"il_[0-9a-z]{16}_[0-9a-z]{40}",  # Interlock
    r"AKIA[0-9A-Z]{16}",  # AWS
    r"gh[pousr]_[A-Za-z0-9]{36,}",  # GitHub
    r"xox[abpr]-[A-Za-z0-9-]{10,}",  # Slack
)

KEYS = re.compile(rf"\b(?:{_PREFIXED}[A-Za-z0-9_-]{{16,}}|{'|'.join(_FIXED)})")
"""Keys as they stand in a value: long enough to be one."""

# Wider, for text that only has to stay readable: providers echo a wrong key back half masked, and a cut may have shortened one.
_LOOSE = re.compile(
    r"il_[a-z0-9]{10,}_[a-z0-9]+|sk-[A-Za-z0-9_-]{8,}|(?i:\b(?:sk|pk|key|gsk|xai)-[\w*.-]{6,})"
    rf"|{'|'.join(_FIXED[1:])}|(?<=[Bb]earer )[^\s\"']{{6,}}|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"
)


def scrub_keys(text: str, shown: str) -> str:
    """The text with `shown` for whatever looks like a credential, or like half of one."""
    return _LOOSE.sub(shown, text)
