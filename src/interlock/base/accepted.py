"""The type of a value that has passed the guard gate. Only such a value can be stored."""

from __future__ import annotations

from interlock.base.acceptance import MARK
from interlock.base.json import Json


class Accepted:
    """A value that `guard/gate.py` has inspected, or that consists of such values.

    `Artifacts.seal` accepts no other type, so no text of a person, a model or a tool is stored or forwarded without inspection.
    Only the gate can create one: the constructor requires a mark that no other module may import (`.importlinter`).
    """

    __slots__ = ("value",)

    def __init__(self, value: Json, mark: object) -> None:
        if mark is not MARK:
            raise TypeError("only the guard gate accepts values; call interlock.guard.gate.inspect")
        self.value = value
