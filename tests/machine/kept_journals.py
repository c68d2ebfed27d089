"""Journals of a machine version, kept with the digest of the state they fold to: the file format, and the digest."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from interlock.base.labels import Labels, Sensitivity, Trust
from interlock.machine import events as ev
from interlock.machine.machine import fold
from interlock.machine.program import Program, compile_program
from interlock.machine.state import Failing, RunState
from interlock.workflows.contracts import ToolContract
from interlock.workflows.spec import Workflow

PLACE = Path(__file__).parent / "journals"
_LEFT_OUT = {(RunState, "live"), (Failing, "unfinished"), (Failing, "remaining"), (Failing, "left")}
"""What follows from the rest of the state; `rules.counted` recounts it."""
_ONCE_DEFAULT = {("trust", Trust.SYSTEM.value), ("sensitivity", Sensitivity.PUBLIC.value)}


@dataclass(frozen=True)
class Kept:
    """A journal, the program it was made with, and the digest of the state after it."""

    name: str
    program: Program
    events: list[dict[str, Any]]
    digest: str


def digest(state: RunState) -> str:
    """SHA-256 of the state as canonical JSON. A field at its default is left out: one that is added later changes no digest."""
    return hashlib.sha256(json.dumps(plain(state), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def plain(value: Any) -> Any:
    if isinstance(value, Labels):  # system and public were their defaults once
        return {name: one for name, one in _fields(value).items() if (name, one) not in _ONCE_DEFAULT}
    if isinstance(value, RunState):
        fields = _fields(value)
        # Its order is that in which things are taken back.
        return {**fields, "completed": list(value.completed)} if value.completed else fields
    if dataclasses.is_dataclass(value):
        return _fields(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, frozenset | set):
        return sorted(plain(one) for one in value)
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    assert value is None or isinstance(value, str | int | float | bool), f"{value!r} has no digest"
    return value


def _fields(value: Any) -> dict[str, Any]:
    found = {}
    for one in dataclasses.fields(value):
        here = getattr(value, one.name)
        default = one.default_factory() if one.default_factory is not MISSING else one.default
        if (type(value), one.name) not in _LEFT_OUT and here != default:
            found[one.name] = plain(here)
    return found


def write(version: int, entries: Iterable[tuple[str, Program, list[Any], RunState]]) -> Path:
    """Writes the journals of a machine version: (name, program, events, state after them)."""
    lines = []
    for name, program, events, state in entries:
        journal = json.loads(json.dumps([ev.event_to_json(event) for event in events]))
        folded = fold(program, map(ev.event_from_json, journal))
        assert folded == state, f"{name}: the journal, folded, is another state than its driver came to"
        entry = {
            "name": name,
            "workflow": program.workflow.model_dump(mode="json"),
            "contracts": {one: contract.model_dump(mode="json") for one, contract in program.contracts.items()},
            "subworkflows": {one.name: one.model_dump(mode="json") for one in program.subworkflows.values()},
            "events": journal,
            "digest": digest(folded),
        }
        lines.append(json.dumps(entry, sort_keys=True, separators=(",", ":")))
    file = PLACE / f"v{version}.jsonl.gz"
    file.write_bytes(gzip.compress("\n".join(lines).encode(), 9, mtime=0))
    return file


def read(file: Path) -> Iterator[Kept]:
    for line in gzip.decompress(file.read_bytes()).decode().splitlines():
        entry = json.loads(line)
        program = compile_program(
            Workflow.model_validate(entry["workflow"]),
            {name: ToolContract.model_validate(one) for name, one in entry["contracts"].items()},
            {name: Workflow.model_validate(one) for name, one in entry["subworkflows"].items()},
        )
        yield Kept(entry["name"], program, entry["events"], entry["digest"])
