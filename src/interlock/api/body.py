"""Checks of every request body before its fields are read: storable text and finite numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

from interlock.base.json import InvalidJson, accept_json, unique_names


class Body(BaseModel):
    """Base of every request body. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _is_sound(cls, value: Any) -> Any:
        try:
            return accept_json(value)
        except InvalidJson as error:
            raise ValueError(error.message) from None


class _StrictRequest(Request):
    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            try:
                self._json = json.loads(await self.body(), object_pairs_hook=unique_names)
            except InvalidJson as error:
                raise HTTPException(422, error.message) from None
        return self._json


class StrictRoute(APIRoute):
    """A route whose bodies may not name a field twice: Python keeps the last one, other parsers the first."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handle(_StrictRequest(request.scope, request.receive))

        return strict


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("holds a character that cannot be printed; remove it")
    return text


Name = Annotated[str, AfterValidator(_printable)]
"""A short text that names something: no control characters, so it can go into a database, a log and a terminal."""
