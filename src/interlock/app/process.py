"""The application of one process: its core and, once it is started, its worker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from interlock.app.core import Core
from interlock.app.worker import WorkerRole
from interlock.base.clock import Clock
from interlock.base.settings import Settings
from interlock.execution.engine import Engine
from interlock.execution.inputs.calls import Models
from interlock.fleet.workers import WorkerRegistry
from interlock.policy.decision import Policies
from interlock.tools.output import OnToolOutput


class App(Core):
    """All services of one process and, once it is started, its worker.

    Args:
        models: replaces the providers of the settings; for tests and benchmarks.
        clock: replaces the database's clock; for tests.
        policies: replaces the active Cedar policies, for instance by an engine behind HTTP.
        notice: receives sentences for the operator.
    """

    def __init__(
        self,
        project: Path,
        settings: Settings,
        *,
        models: Models | None = None,
        clock: Clock | None = None,
        policies: Policies | None = None,
        notice: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(project, settings, clock=clock, policies=policies, notice=notice)
        self._role = WorkerRole(self, models=models)

    @property
    def engine(self) -> Engine | None:
        """Engine that drives runs in this process; None before `start_worker` and after `drain_worker`."""
        return self._role.engine

    @property
    def worker_registry(self) -> WorkerRegistry:
        """This worker's entry among all workers, after `start_worker`."""
        return self._role.registry

    async def start_worker(self, on_output: OnToolOutput | None = None) -> None:
        """Starts to drive runs in this process, until the application closes.

        Args:
            on_output: see `WorkerRole.start`.
        """
        await self._role.start(on_output)

    async def drain_worker(self) -> None:
        """Stops driving runs; what else this process does goes on."""
        await self._role.drain()
