from __future__ import annotations

from collections.abc import Callable

import pytest

from interlock.admission.breakers import Breakers
from interlock.base.clock import SystemClock
from interlock.base.settings import BreakerSettings
from interlock.store.database import Database

Process = Callable[..., Breakers]


@pytest.fixture
def process(database: Database, tenants: object) -> Process:
    """The breakers as one process has them: every call gives another process's memory over the same database."""

    def make(**settings: float) -> Breakers:
        return Breakers(database, BreakerSettings.model_validate(settings), SystemClock())

    return make
