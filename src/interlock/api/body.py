"""Checks of every request body before its fields are read: storable text and finite numbers."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

# Validators, encoders and prompts process values recursively; RFC 8259 §9 permits a limit of the depth.
MAX_DEPTH = 100


class Body(BaseModel):
    """Base of every request body. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _is_sound(cls, value: Any) -> Any:
        check(value)
        return value


def check(value: Any) -> None:
    """Raises ValueError for values that only Python's parser accepts (RFC 7493 §2.1, §2.2), and for deep nesting."""
    level = [value]
    for _ in range(MAX_DEPTH):
        if not level:
            return
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.keys()
                below += item.values()
            elif isinstance(item, list):
                below += item
            elif isinstance(item, str):
                _check_text(item)
            elif isinstance(item, float) and not math.isfinite(item):
                raise ValueError("NaN and infinity are not JSON numbers; send null or a string")
        level = below
    if level:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep; send a flatter value")


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("a text holds half of a surrogate pair, which is no Unicode character; remove it") from None


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("holds a character that cannot be printed; remove it")
    return text


Name = Annotated[str, AfterValidator(_printable)]
"""A short text that names something: no control characters, so it can go into a database, a log and a terminal."""
