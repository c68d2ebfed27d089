"""Calls that outlive the lease they were made under: at a far side that is slow, and at a worker that was asleep.

Only tools that honour no key can be doubled by them: a probe, or a person, sees nothing as long as nothing has happened yet.
"""

from __future__ import annotations

from chaos.conftest import Run, clean, struck

PROMISELESS = ("probed", "blind")


async def test_the_worker_dies_while_its_call_is_still_on_the_way(drill: Run) -> None:
    """The counter takes longer than the lease; whoever takes the run over must not believe too early that nothing happened."""
    report = await struck(drill, runs=8, seconds=10, faults=("kill",), boundaries=("during call",), kinds=PROMISELESS)
    clean(report)
    assert report.boundaries == {"kill during call": report.strikes["kill"]}


async def test_a_worker_wakes_up_before_its_call(drill: Run) -> None:
    """Stopped between the ledger's `executing` and the call, it must not make the call that another one made meanwhile."""
    report = await struck(
        drill, runs=12, seconds=12, faults=("stop",), boundaries=("after executing",), kinds=PROMISELESS
    )
    clean(report)
    assert report.strikes["stop"] >= 1
