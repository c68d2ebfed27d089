"""Failures of providers: status codes, Retry-After, and messages safe to show.

Pure functions, no I/O. Both HTTP dialects use them through `http.py`; no other code interprets a status.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from interlock.base.credentials import scrub_keys
from interlock.base.errors import FailureKind, ProviderError
from interlock.base.usage import Usage

MESSAGE_LIMIT = 300
"""Maximum characters of a provider's own message in ours: enough for real messages, too few to leak a prompt."""

_LONGEST_PAUSE = 24 * 3600.0  # seconds; a longer Retry-After counts as a mistake

# No call has more tokens; a sum of wrong reports must still fit into the database's integers.
_MOST_TOKENS = 10**9
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


class BilledError(ProviderError):
    """A charged call without a usable answer (refused, or still invalid after all corrections).

    Attributes:
        usage: total usage of all calls, settled as for a success.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: FailureKind,
        usage: Usage,
        retry_after: float | None = None,
        detail: str | None = None,
    ) -> None:
        super().__init__(message, kind=kind, retry_after=retry_after, detail=detail)
        self.usage = usage


def kind_of(status: int) -> FailureKind:
    """Failure kind of an HTTP status other than 2xx."""
    # 529 is Anthropic's "overloaded", documented as a reason to wait, not as a server error.
    if status in {429, 529}:
        return FailureKind.RATE_LIMITED
    # Several gateways answer 409 while they still process the same request.
    if status in {408, 409} or status >= 500:
        return FailureKind.TRANSIENT
    return FailureKind.PERMANENT


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Requested wait in seconds, at most a day: `retry-after-ms`, else `retry-after` (seconds or an HTTP date).

    Source: RFC 9110, 10.2.3; `retry-after-ms` is sent by Azure OpenAI and OpenAI.
    """
    milliseconds = _seconds(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return min(milliseconds / 1000, _LONGEST_PAUSE)
    value = headers.get("retry-after")
    if value is None:
        return None
    seconds = _seconds(value)
    if seconds is not None:
        return min(seconds, _LONGEST_PAUSE)
    until = _date(value)
    if until is None:
        return None
    # The sender's own clock if it is given: ours may differ by more than the wait itself.
    now = _date(headers.get("date", "")) or datetime.now(UTC)
    return min(max(0.0, (until - now).total_seconds()), _LONGEST_PAUSE)


def _seconds(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return max(0.0, number) if math.isfinite(number) else None


def _date(value: str) -> datetime | None:
    try:
        parsed = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError):
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def scrub(text: str, secret: str | None) -> str:
    """The text without the key, in one line, at most `MESSAGE_LIMIT` characters.

    The key is removed before the text is cut, so that a cut cannot leave the first half of a key.
    """
    text = text.encode(errors="replace").decode()  # a lone surrogate, which no database accepts
    if secret:
        text = text.replace(secret, "[key]")
    text = scrub_keys(_CONTROL.sub(" ", text), "[key]")
    text = " ".join(text.split())
    return text if len(text) <= MESSAGE_LIMIT else text[: MESSAGE_LIMIT - 1] + "…"


def provider_words(body: object) -> str:
    """The provider's own message in an error body, or "" if there is none.

    Reads OpenAI's and Anthropic's `{"error": {"message": …}}` and the forms of compatible servers
    (`{"error": "…"}`, `{"message": "…"}`, `{"detail": "…"}`).
    """
    if not isinstance(body, dict):
        return ""
    for key in ("error", "message", "detail"):
        found = body.get(key)
        if isinstance(found, dict):
            found = found.get("message")
        if isinstance(found, str) and found.strip():
            return found
    return ""


def status_error(name: str, status: int, headers: Mapping[str, str], body: object, secret: str | None) -> ProviderError:
    """The error for a status other than 2xx."""
    error_detail = scrub(provider_words(body), secret)
    said = f": {error_detail}" if error_detail else ""
    if 300 <= status < 400:
        # Following a redirect would send the key to an address that is not configured.
        said = "; redirects are not followed, so set base_url to the final address"
    return ProviderError(
        f'provider "{name}" answered {status}{said}',
        kind=kind_of(status),
        retry_after=retry_after(headers) if status in {408, 409, 429} or status >= 500 else None,
    )


class NotTheProtocol(ProviderError):
    """A complete answer outside the protocol; a retry would get the same."""


def not_the_protocol(name: str, what: str) -> NotTheProtocol:
    """The error for such an answer; `what` names the fault."""
    return NotTheProtocol(
        f'provider "{name}" sent an answer that is not its protocol ({what}); check its address and kind in [models]',
        kind=FailureKind.PERMANENT,
    )


def count(value: object) -> int | None:
    """A token count sent by a provider, or None for an invalid one."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_TOKENS else None
