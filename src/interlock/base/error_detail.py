"""Details of a failure from the far side of a call: the message, and for authors of tools the traceback and the last output."""

from __future__ import annotations

from collections.abc import Mapping

from interlock.base.values import value

MAX_TRACEBACK = 4000
"""Characters of a traceback; longer ones keep the innermost calls, which are last."""
MAX_PRINTED = 4096
"""Characters of the last output of a tool."""


@value(frozen=True, slots=True)
class ErrorDetail:
    """Details of a failure in the words of the far side.

    They may contain personal data, so they are stored like a value: redacted, encrypted, and never in a journal, an audit
    entry or a log. Only `message` may reach a model.

    Attributes:
        message: the exception's class and text, or a provider's own message.
        traceback: calls within the tool's own code, outermost first; empty if there are none.
        printed: end of the tool's stdout and stderr.
    """

    message: str | None = None
    traceback: str = ""
    printed: str = ""

    def __bool__(self) -> bool:
        return bool(self.message or self.traceback or self.printed)

    def to_json(self) -> dict[str, str | None]:
        return {"message": self.message, "traceback": self.traceback, "printed": self.printed}

    @classmethod
    def from_json(cls, stored: object) -> ErrorDetail:
        """Reads a stored detail; earlier releases stored the message alone."""
        if not isinstance(stored, Mapping):
            return cls(stored if isinstance(stored, str) else None)
        message, traceback, printed = (stored.get(name) for name in ("message", "traceback", "printed"))
        return cls(message if isinstance(message, str) else None, str(traceback or ""), str(printed or ""))


def last_lines(text: str, limit: int) -> str:
    """The last `limit` characters of a text of several lines, without control characters that a terminal would obey.

    Each such character, and each half of a surrogate pair, is replaced by U+FFFD; line feeds and tabs stay.
    """
    return "".join(one if one in "\n\t" or one.isprintable() else "\ufffd" for one in text[-limit:])
