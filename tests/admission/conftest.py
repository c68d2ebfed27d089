from __future__ import annotations

from collections.abc import Callable

import pytest

from interlock.admission import breakers, tool_health
from interlock.admission.breakers import Breakers
from interlock.base.clock import SystemClock
from interlock.base.settings import BreakerSettings
from interlock.store.database import Database

Process = Callable[..., Breakers]


@pytest.fixture(autouse=True)
def _slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that is only slow is waited for: what is given up after two seconds would not be counted."""
    for module in (breakers, tool_health):
        monkeypatch.setattr(module, "_PATIENCE", 60.0)


@pytest.fixture
def process(database: Database, tenants: object) -> Process:
    """The breakers as one process has them: every call gives another process's memory over the same database."""

    def make(**settings: float) -> Breakers:
        return Breakers(database, BreakerSettings.model_validate(settings), SystemClock())

    return make
