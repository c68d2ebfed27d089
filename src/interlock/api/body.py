"""Request bodies and parameters: storable text, finite numbers, no conversion between types."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Annotated

from fastapi import Path, Query, Request, Response
from fastapi.routing import APIRoute
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from interlock.base.json import InvalidJson, Json, accept_json, decode_json

NO_OBJECT = "must be a JSON object; send one, with the header Content-Type: application/json"
_MAX_ID = 200


class Body(BaseModel):
    """Base of every request body. Unknown fields and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _is_sound(cls, value: object) -> Json:
        if isinstance(value, bytes):  # of another content type
            raise ValueError(NO_OBJECT)
        try:
            return accept_json(value)
        except InvalidJson as error:
            raise ValueError(error.message) from None


class StrictRoute(APIRoute):
    """A route whose JSON body may not name a key twice in one object (RFC 7493 §2.3): parsers differ in the one they keep."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[object, None, Response]]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handle(_StrictRequest(request.scope, request.receive))

        return strict


class _StrictRequest(Request):
    async def json(self) -> Json:
        if not hasattr(self, "_strict_json"):
            self._strict_json = _parsed(await self.body())
        return self._strict_json


def _parsed(body: bytes) -> Json:
    try:
        return decode_json(body)
    except InvalidJson as error:
        raise json.JSONDecodeError(error.message, "", 0) from None


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("holds a character that cannot be printed; remove it")
    return text


def _true_or_false(value: object) -> bool:
    if value not in {"true", "false"}:
        raise ValueError("must be true or false")
    return value == "true"


Name = Annotated[str, AfterValidator(_printable)]
"""A short text that names something: no control characters, so it can go into a database, a log and a terminal."""

PathId = Annotated[str, Path(max_length=_MAX_ID)]
"""A path segment with a name or id; limited to the maximum length of Interlock's own ids and names."""

QueryId = Annotated[str | None, Query(max_length=_MAX_ID)]
Limit = Annotated[int, Query(ge=1, le=200)]
Flag = Annotated[bool, BeforeValidator(_true_or_false, json_schema_input_type=bool), Query()]
Note = Annotated[str, Field(max_length=4000)]
