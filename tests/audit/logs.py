"""Logs to tamper with."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from interlock.audit.log import AuditLog
from interlock.store.entries import Entry

AUDIT_KEY, NEXT_KEY = bytes(range(32, 64)), bytes(range(64, 96))


def entry(org_id: str, n: int, **detail: Any) -> Entry:
    return Entry(
        org_id,
        "tool.call",
        "user:ada",
        "call_tool",
        "tool:pay",
        1_000_000.25 + n,
        decision="allow",
        run_id=f"run_{n}",
        trace_id="0" * 32,
        policy_version="p1",
        risk_score=n,
        detail={"n": n, **detail},
    )


def export(org_id: str, count: int, *, keys: tuple[bytes, ...] = (AUDIT_KEY,)) -> list[dict[str, Any]]:
    """An exported log, as it looks after a way through JSON; with several keys, each signs its share in turn."""
    rows: list[dict[str, Any]] = []
    seq, head, share = 0, "", -(-count // len(keys))
    for number, key in enumerate(keys):
        part = range(number * share, min(count, (number + 1) * share))
        more, seq, head = AuditLog(key).seal([entry(org_id, n) for n in part], seq, head)
        rows += map(asdict, more)
    loaded: list[dict[str, Any]] = json.loads(json.dumps(rows))
    return loaded


def trusted(*keys: bytes) -> dict[str, bytes]:
    logs = [AuditLog(key) for key in keys or (AUDIT_KEY,)]
    return {log.key_id: log.public_key for log in logs}
