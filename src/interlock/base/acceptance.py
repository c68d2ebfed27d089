"""The mark with which the guard gate, and nothing else, makes an `Accepted`."""

from __future__ import annotations

MARK = object()
