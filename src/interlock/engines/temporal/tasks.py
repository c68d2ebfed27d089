"""Messages between workflow, activity and bridge: small JSON with refs instead of values."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

WORKFLOW_TYPE = "InterlockRun"
ACTIVITY_TYPE = "perform"
SIGNAL_TYPE = "deliver"


class SignalInput(TypedDict):
    """A row of `signals`; one id counts once."""

    id: int
    event: dict[str, Any]


class Recordable(TypedDict):
    """An event and its place in the run's journal, and the signal that it came with, if one did."""

    seq: int
    event: dict[str, Any]
    signal: NotRequired[int]


class WorkerLimits(TypedDict):
    """When a workflow continues as new: events and bytes of its history."""

    events: int
    bytes: int


class Beginning(TypedDict):
    """Fields of RunStarted besides its time."""

    seed: int
    facts: dict[str, Any]
    machine: int


class Start(TypedDict):
    """Input of a workflow: a new run, one that continues as new, or one rebuilt from its journal.

    Attributes:
        program: the part of the definition that the machine needs.
        begin: of a new run; otherwise `state` stands after `seq` events.
        unrecorded: events up to `seq` that may not be in the journal yet.
        rebuilt: another process may have been in the middle of a command that the state does not show.
        heartbeat: seconds after which a silent activity is given to another worker.
    """

    run_id: str
    org_id: str
    program: dict[str, Any]
    begin: Beginning | None
    state: Any
    seq: int
    unrecorded: list[Recordable]
    signals: list[SignalInput]
    seen: list[int]
    rebuilt: bool
    heartbeat: float
    limits: WorkerLimits


class Command(TypedDict):
    """A Perform or Compensate of the machine."""

    kind: Literal["perform", "compensate"]
    step: str
    attempt: int


class Task(TypedDict):
    """Input of an activity: events to put on record first, then at most one command.

    Attributes:
        seq: how many events the workflow knows of; those that are not in `events` are in the journal.
        heard: signals of which nothing came.
    """

    run_id: str
    org_id: str
    seq: int
    events: list[Recordable]
    received: list[int]
    command: Command | None
    rebuilt: bool


class TaskResult(TypedDict):
    """Output of an activity: the event that answers the command; `over` if the run has ended without this workflow."""

    event: NotRequired[dict[str, Any]]
    over: NotRequired[bool]
