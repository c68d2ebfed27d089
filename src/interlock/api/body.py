"""Request bodies and parameters: text that can be stored, numbers that are numbers, no type taken for another."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Path, Query, Request, Response
from fastapi.routing import APIRoute
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

# Validators, encoders and prompts walk values by recursion; RFC 8259 §9 lets a receiver bound the depth.
MAX_DEPTH = 100
_MAX_ID = 200


class Body(BaseModel):
    """Base of every request body. Unknown fields and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _is_sound(cls, value: Any) -> Any:
        check(value)
        return value


def check(value: Any) -> None:
    """Raises ValueError for what is JSON to Python's parser and to nobody else (RFC 7493 §2.1, §2.2), or nested too deep."""
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


class StrictRoute(APIRoute):
    """A route whose JSON body may not name a key twice in one object (RFC 7493 §2.3): parsers differ in which they take."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handle(_StrictRequest(request.scope, request.receive))

        return strict


class _StrictRequest(Request):
    async def json(self) -> Any:
        if not hasattr(self, "_strict_json"):
            self._strict_json = _parsed(await self.body())
        return self._strict_json


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body, object_pairs_hook=_unique)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise json.JSONDecodeError("it is nested too deep", "", 0) from None
    except UnicodeDecodeError:
        raise json.JSONDecodeError("it is not UTF-8", "", 0) from None
    except ValueError:
        raise json.JSONDecodeError("it holds a number with too many digits", "", 0) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise json.JSONDecodeError(f"the key {twice[:100]!r} is there twice in one object", "", 0)
    return found


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("holds a character that cannot be printed; remove it")
    return text


def _true_or_false(value: Any) -> Any:
    if value not in {"true", "false"}:
        raise ValueError("must be true or false")
    return value == "true"


Name = Annotated[str, AfterValidator(_printable)]
"""A short text that names something: no control characters, so it can go into a database, a log and a terminal."""

PathId = Annotated[str, Path(max_length=_MAX_ID)]
"""A segment of the path that names something; of no use to anyone if it is longer than what Interlock makes."""

QueryId = Annotated[str | None, Query(max_length=_MAX_ID)]
Limit = Annotated[int, Query(ge=1, le=200)]
Flag = Annotated[bool, BeforeValidator(_true_or_false, json_schema_input_type=bool), Query()]
Note = Annotated[str, Field(max_length=4000)]
