"""JSON given to a command: as text, in a file, or on standard input."""

from __future__ import annotations

import sys
from pathlib import Path

from interlock.base.errors import InvalidInput
from interlock.base.json import InvalidJson, Json, parse_json


def read_json(value: str, *, option: str) -> Json:
    """Reads JSON from the command line: the text itself, @FILE, or - for standard input."""
    if value == "-":
        place = "standard input"
        try:
            text = sys.stdin.read()
        except UnicodeDecodeError as error:
            raise InvalidInput(f"{place} is not UTF-8: {error}") from error
    elif value.startswith("@"):
        place = value[1:]
        try:
            text = Path(place).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"{option}: {place} cannot be read: {error}") from error
    else:
        text, place = value, option
    try:
        return parse_json(text)
    except InvalidJson as error:
        mend = "; for a file write @FILE" if place == option else ""
        raise InvalidInput(f"{place} is not JSON: {error.message}{mend}") from None
