"""The port of an engine: who drives the machine, durably. `engines/` holds the drivers, `simulator.py` one without I/O."""

from __future__ import annotations

from typing import Protocol


class Engine(Protocol):
    """Drives runs. An accepted run is in the store's queue, and what people tell it is in its inbox; the engine finds both.

    `start` begins driving. `drain` finishes the steps under way, hands everything else back and returns; no run is
    lost or has to wait for a lease to expire. Each may be called once.
    """

    async def start(self) -> None: ...

    async def drain(self) -> None: ...
