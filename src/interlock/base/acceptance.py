"""Mark required by the constructor of `Accepted`; only the guard gate imports it."""

from __future__ import annotations

MARK = object()
