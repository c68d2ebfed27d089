"""Base of all views."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from interlock.base.json import Json


class View(BaseModel):
    """An immutable answer. Unknown fields are ignored: a client may be older than its server."""

    model_config = ConfigDict(frozen=True, extra="ignore", serialize_by_alias=True, validate_by_name=True)

    def to_json(self) -> dict[str, Json]:
        """The view as the API sends it."""
        return self.model_dump(mode="json")


class Cost(View):
    """Cost as decimal strings of USD.

    Attributes:
        usd: all of it; null as soon as the price of one call is not known.
        usd_priced: the sum over the calls whose price is known; the others are counted by `unpriced_calls`.
    """

    usd: str | None
    usd_priced: str
    unpriced_calls: int
