"""When to try again and how long to wait: pure functions of policy, failure and the run's seed."""

from __future__ import annotations

import hashlib

from interlock.base.errors import FailureKind
from interlock.workflows.spec import RetryPolicy

RETRYABLE = frozenset({FailureKind.TRANSIENT, FailureKind.RATE_LIMITED})


def jitter(seed: int, key: str, attempt: int) -> float:
    """A number in [0, 1) that looks random and is the same whenever the run is replayed."""
    digest = hashlib.blake2b(f"{seed}:{key}:{attempt}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def backoff(policy: RetryPolicy, *, attempt: int, seed: int, key: str, retry_after: float | None) -> float:
    """Seconds to wait after failed attempt number `attempt` (from 1): full jitter, never less than `retry_after`.

    Full jitter spreads a crowd of clients best (Brooker, "Exponential Backoff And Jitter", AWS 2015).
    """
    bound = min(policy.max_backoff, policy.backoff * 2.0 ** (attempt - 1))
    return max(bound * jitter(seed, key, attempt), retry_after or 0.0)
