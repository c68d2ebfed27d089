"""Port of the engines, which drive the state machine durably. `engines/` contains them; `engines/simulator` has no I/O."""

from __future__ import annotations

from typing import Protocol

from interlock.base.clock import Clock
from interlock.definitions.versions import Versions
from interlock.execution.steps import Steps
from interlock.policy.decision import Policies
from interlock.store.artifacts import Artifacts
from interlock.store.commit import Committer
from interlock.store.database import Database
from interlock.telemetry.tracing import Tracing

MAX_CRASHES = 5
"""Errors of ours that a run may meet in a row before it is parked for a person to look at."""
HOLD_SECONDS = 5.0
"""A run whose next timer is nearer than this keeps its place among the runs at once; one that waits longer gives it back."""


class Engine(Protocol):
    """Drives runs. An accepted run is in the store's queue, and what people tell it is in its inbox; the engine finds both.

    `start` begins driving. `drain` finishes the steps under way, hands everything else back and returns; no run is
    lost or has to wait for a lease to expire. Each may be called once.

    Attributes:
        worker_id: its name in the queue and the table of workers.
    """

    worker_id: str

    async def start(self) -> None: ...

    async def drain(self) -> None: ...


class EngineServices:
    """Services that a driver needs of its process."""

    def __init__(
        self,
        *,
        database: Database,
        committer: Committer,
        artifacts: Artifacts,
        versions: Versions,
        steps: Steps,
        policies: Policies,
        tracing: Tracing,
        clock: Clock,
    ) -> None:
        self.database = database
        self.committer = committer
        self.artifacts = artifacts
        self.versions = versions
        self.steps = steps
        self.policies = policies
        self.tracing = tracing
        self.clock = clock
