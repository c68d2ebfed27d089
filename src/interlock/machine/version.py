"""Version of the machine's behaviour: which runs this release can drive, and how later releases keep the older behaviour.

A run's state is its journal folded by the machine, so a machine that behaves otherwise folds an old journal to another state.
Therefore every run has the machine version it was submitted under: in its `runs` and `queue` rows, in its first event, in the
state. `advance` behaves as that version did for as long as the run lives, and workers claim only runs they can drive.

A change that makes an old journal fold to another state, or that adds a kind of event or a field that decides something:

1. raise MACHINE_VERSION by one;
2. branch where the behaviour differs: `if transition.machine < 2`, with a name for the number; nothing else may ask for it;
3. add the journals of the new version below `tests/machine/journals/`; those of released versions are never written again.

Upgrade workers before the processes that accept runs: until then new runs wait for a worker that understands them.
"""

from __future__ import annotations

from interlock.base.errors import Unavailable

MACHINE_VERSION = 2
"""The version that new runs get."""
OLDEST_MACHINE = 1
"""The oldest version whose behaviour this release keeps.

Version 2: an agent step has facts about its calls (`machine/agents.py`).
"""


class NeedsNewerRelease(Unavailable):
    """The run was begun, or continued, by a release that this one does not understand."""

    code = "needs_newer_release"


def require_known(machine: int) -> None:
    """Raises NeedsNewerRelease unless this release can drive runs of that machine version."""
    if not OLDEST_MACHINE <= machine <= MACHINE_VERSION:
        raise NeedsNewerRelease(
            f"this run needs {'a newer' if machine > MACHINE_VERSION else 'another'} release: its machine version is {machine}, "
            f"and this release knows {OLDEST_MACHINE} to {MACHINE_VERSION}; upgrade this process"
        )
