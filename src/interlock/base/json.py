"""JSON from outside: one set of bounds for every value from a client, a model, a tool or a provider.

Python's parser accepts more than RFC 8259 and more than later components can process: NaN and infinity, lone surrogates,
integers of thousands of digits, a thousand levels. PostgreSQL's jsonb refuses NUL, pydantic refuses to serialise more
than 255 levels, and CEL converts integers of 64 bits only. All of them can process a value that passes `accept_json`.

::

    depth      at most 100 levels of lists and objects (RFC 8259 section 9 permits a limit)
    integers   -2^63 to 2^63 - 1, the range of CEL's `int` and of `bigint`
    floats     finite
    texts      Unicode without lone surrogates and without NUL; keys as well as values
    objects    no duplicate name (RFC 8259 section 4: receivers differ in the one they keep)
    size       given by the caller, in bytes
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from interlock.base.errors import InvalidInput

Json: TypeAlias = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None
"""A JSON value to be read; `Mapping` and `Sequence`, so that a `dict[str, int]` is one too."""

JsonObject: TypeAlias = Mapping[str, Json]
"""A JSON object to be read."""

if TYPE_CHECKING:
    JsonField: TypeAlias = Json
else:
    JsonField = object
"""Json as a field of a pydantic model, which takes the value as it is: its bounds are checked elsewhere."""

MAX_DEPTH = 100
MIN_INTEGER, MAX_INTEGER = -(2**63), 2**63 - 1
MAX_PLACE = 60
"""Maximum characters of a place in a message."""

_HALF = "a text holds half of a surrogate pair, which is no Unicode character; remove it"
_NOT_FINITE = "NaN and infinity are not JSON numbers; send null or a text"


class InvalidJson(InvalidInput):
    """A value from outside is not JSON or exceeds a bound. The message contains no part of the value."""

    code = "invalid_json"


def parse_json(text: str | bytes) -> Json:
    """Parses a text from outside and checks its bounds; bytes must be UTF-8, with or without a byte order mark.

    Raises:
        InvalidJson: not JSON, or outside a bound.
    """
    return accept_json(decode_json(text))


def decode_json(text: str | bytes) -> Json:
    """Like `parse_json` without the bounds of depth, integers and NUL: for an envelope whose content is checked separately.

    Raises:
        InvalidJson: not JSON.
    """
    try:
        decoded: Json = _STRICT.decode(text if isinstance(text, str) else text.decode("utf-8-sig"))
    except InvalidJson:
        raise
    except UnicodeDecodeError as error:
        raise InvalidJson(f"byte {error.start} is not UTF-8") from None
    except RecursionError:
        raise InvalidJson(f"nested more than {MAX_DEPTH} levels deep; send a flatter value") from None
    except ValueError as error:
        # The parser's message has line and column, and no part of the document.
        raise InvalidJson(str(error)) from None
    if "\\u" in text if isinstance(text, str) else b"\\u" in text:
        # An escaped lone surrogate passes the decoder, but cannot be encoded again.
        try:
            json.dumps(decoded, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError):
            raise InvalidJson(_HALF) from None
    return decoded


def accept_json(value: object, *, limit_bytes: int | None = None) -> Json:
    """Returns the value if it is within the bounds. Checks it level by level, so a deep value cannot exhaust the stack.

    Args:
        limit_bytes: maximum size as compact JSON; None if the caller has limited the text already.

    Raises:
        InvalidJson: names the bound and the correction.
    """
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        if not level:
            break
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                for name in item:
                    _check_name(name)
                below += item.values()
            elif isinstance(item, list):
                below += item
            else:
                _check_scalar(item)
        level = below
    if level:
        raise InvalidJson(f"nested more than {MAX_DEPTH} levels deep; send a flatter value")
    if limit_bytes is not None and len(json.dumps(value, separators=(",", ":"))) > limit_bytes:
        raise InvalidJson(f"has more than {limit_bytes} bytes; send less")
    return value  # type: ignore[return-value]  # checked above, item by item


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise InvalidJson("an object has a name that is not a text; quote it")
    _check_text(name)


def _check_scalar(value: object) -> None:
    if isinstance(value, str):
        _check_text(value)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidJson(_NOT_FINITE)
    elif isinstance(value, int):
        if not MIN_INTEGER <= value <= MAX_INTEGER:
            raise InvalidJson("an integer is outside -2^63 to 2^63 - 1; send it as a text")
    elif value is not None:
        raise InvalidJson("a value is of no JSON type")


def unique_names(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    """An `object_pairs_hook` that refuses an object with a duplicate name."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InvalidJson("an object names the same key twice; name it once")
    return found


def place(path: Iterable[str | int], declared: Collection[str], value: object = None) -> str:
    """A place inside a value from outside, safe for messages, journals and logs: "" for the value itself, else "/items/3/name".

    A property's name is data of the sender (an object may be keyed by person), so it is shown only if the schema declares it
    and it is printable. Another name is replaced by its number in its object, from 0, or by `*` if that is not known.

    Args:
        path: names and list indices, from the outermost in.
        declared: the names that the schema declares.
        value: the value itself, to number its undeclared names.

    Returns:
        At most `MAX_PLACE` characters; of a longer place the end.
    """
    shown = ""
    for part in path:
        if isinstance(part, int):
            name = str(part)
            value = value[part] if isinstance(value, list) and -len(value) <= part < len(value) else None
        elif isinstance(value, dict) and part in value:
            name = part if part in declared and part.isprintable() else str(list(value).index(part))
            value = value[part]
        else:
            name, value = part if part in declared and part.isprintable() else "*", None
        shown += f"/{name}"
    return shown if len(shown) <= MAX_PLACE else f"…{shown[1 - MAX_PLACE :]}"


def sentence(text: str, limit: int) -> str:
    """A text as one printable line of at most `limit` characters: no control or bidi characters, no lone surrogates."""
    printable = "".join(character if character.isprintable() else " " for character in text[: 4 * limit])
    line = " ".join(printable.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def _check_text(text: str) -> None:
    if text.isascii():
        if "\0" in text:
            raise InvalidJson("a text holds a NUL character; remove it")
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidJson(_HALF) from None
    if "\0" in text:
        raise InvalidJson("a text holds a NUL character; remove it")


def _no_constant(name: str) -> float:
    raise InvalidJson(f"{name} is not a JSON number; send null or a text")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise InvalidJson(_NOT_FINITE)
    return value


_STRICT = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=unique_names)
