"""The type of a value that has passed the guard gate. Only such a value can be stored."""

from __future__ import annotations

from interlock.base.acceptance import MARK
from interlock.base.json import Json


class Accepted:
    """A value that `guard/gate.py` has looked at, or that is put together from such values.

    `Artifacts.seal` takes nothing else, so no text of a person, a model or a tool is stored or sent on unseen. The gate alone
    can make one: the constructor asks for a mark that no other module may import (`.importlinter`).
    """

    __slots__ = ("value",)

    def __init__(self, value: Json, mark: object) -> None:
        if mark is not MARK:
            raise TypeError("only the guard gate accepts values; call interlock.guard.gate.inspect")
        self.value = value
