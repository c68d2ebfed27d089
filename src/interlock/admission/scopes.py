"""Kinds of objects that a quota limits."""

from __future__ import annotations

from typing import Literal

QuotaScope = Literal["org", "workflow", "tool"]
