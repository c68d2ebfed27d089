"""Search of long texts in windows. Python's `re` holds the interpreter lock during a call, and a thread does not change that:
one call over megabytes stops every other thread, the event loop included, for seconds."""

from __future__ import annotations

import re
from collections.abc import Iterator

WINDOW = 4096
"""Characters in which the matches that one call finds may begin: a few milliseconds for the slowest pattern and text."""
REACH = 1024
"""Characters by which a window is longer, so that a match that begins in it is found whole."""


def matches(pattern: re.Pattern[str], text: str, longer: re.Pattern[str] | None = None) -> Iterator[re.Match[str]]:
    """The matches of a pattern, as `pattern.finditer` gives them.

    Args:
        longer: None if no match is longer than `REACH`; else a pattern of the characters that may continue a match. A match
            that reaches the end of its window is searched again with the text that continues it.
    """
    position, length = 0, len(text)
    while position < length:
        until = position + WINDOW
        end = min(length, until + REACH)
        for match in pattern.finditer(text, position, end):
            if match.start() >= until:
                break  # it may be cut; the next window begins before it
            found: re.Match[str] | None = match
            if longer is not None and match.end() + 1 >= end < length:
                found = pattern.match(text, match.start(), _run(longer, text, match.end()))
            if found is None:
                continue
            yield found
            until = max(until, found.end())
            if found.end() > end:
                break
        position = until


def found_in(pattern: re.Pattern[str], text: str) -> bool:
    """True if a pattern whose matches are no longer than `REACH` matches anywhere."""
    return next(matches(pattern, text), None) is not None


def _run(longer: re.Pattern[str], text: str, position: int) -> int:
    """The position up to which a run of characters continues, and one more, which a pattern may look at."""
    while (match := longer.match(text, position, position + WINDOW)) is not None and match.end() > position:
        position = match.end()
    return min(len(text), position + 2)
