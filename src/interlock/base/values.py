"""Decorator of value classes that are made on the path of every step.

A dataclass that is frozen at run time takes two to five times as long to make, because its constructor sets each field
through `object.__setattr__`. These are frozen for the type checker, which sees every assignment in this code base; at run
time nothing stops one. They compare and hash by their fields, as frozen dataclasses do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass as value
else:
    import dataclasses

    def value(*, frozen, slots, kw_only=False):  # noqa: ARG001  `frozen` is for the type checker
        """A dataclass without run-time checks of assignments."""
        return dataclasses.dataclass(slots=slots, kw_only=kw_only, unsafe_hash=True)


__all__ = ["value"]
