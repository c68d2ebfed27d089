"""Cursors of lists."""

from __future__ import annotations

from interlock.base.errors import InvalidInput
from interlock.base.json import sentence

_SHOWN = 40


def unknown_cursor(name: str, cursor: str) -> InvalidInput:
    """The error for a cursor that no earlier page has given."""
    return InvalidInput(f'{name}: "{sentence(cursor, _SHOWN)}" is not in this list; use next of the previous page')
