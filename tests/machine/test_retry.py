"""How long to wait."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlock.machine.retry import backoff, jitter
from interlock.workflows.spec import RetryPolicy

_POLICIES = st.builds(
    RetryPolicy,
    max_attempts=st.integers(1, 20),
    backoff=st.floats(0.01, 1e6),
    max_backoff=st.floats(0.01, 1e6),
)


@settings(deadline=None)
@given(
    policy=_POLICIES,
    attempt=st.integers(1, 20),
    seed=st.integers(0, 2**48),
    key=st.text(max_size=20),
    retry_after=st.none() | st.floats(0, 1e7),
)
def test_within_its_bounds(policy: RetryPolicy, attempt: int, seed: int, key: str, retry_after: float | None) -> None:
    wait = backoff(policy, attempt=attempt, seed=seed, key=key, retry_after=retry_after)
    bound = min(policy.max_backoff, policy.backoff * 2.0 ** (attempt - 1))
    assert (retry_after or 0) <= wait <= max(bound, retry_after or 0)
    assert wait == backoff(policy, attempt=attempt, seed=seed, key=key, retry_after=retry_after)


@pytest.mark.parametrize(("attempt", "bound"), [(1, 2), (2, 4), (3, 8), (4, 10), (20, 10)])
def test_full_jitter_fills_the_whole_range(attempt: int, bound: float) -> None:
    policy = RetryPolicy(backoff=2, max_backoff=10)
    waits = [backoff(policy, attempt=attempt, seed=seed, key="s", retry_after=None) for seed in range(2000)]
    assert min(waits) < bound * 0.01
    assert bound * 0.99 < max(waits) < bound
    assert abs(statistics.mean(waits) - bound / 2) < bound * 0.03


def test_every_run_step_and_attempt_waits_differently() -> None:
    waits = {
        jitter(seed, key, attempt) for seed in range(5) for key in ("a", "b", "compensate:a") for attempt in range(1, 6)
    }
    assert len(waits) == 5 * 3 * 5


def test_replays_of_old_journals_compute_the_same_timers() -> None:
    """Pinned: a change of the jitter would change the due times of runs under way."""
    assert jitter(7, "pay", 1) == 0.7972310512561208
