"""Wrong API keys: each is looked up once, and one source cannot have many looked up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from conftest import Tenant
from interlock.base.errors import TooManyRequests, Unauthenticated
from interlock.identity import wrong_keys as module
from interlock.identity.auth import Authenticator
from interlock.identity.wrong_keys import WrongKeys, source_of
from interlock.store.database import Database
from settled import issue_key

VIEWER = frozenset({"viewer"})


class Counting(Database):
    """A database that counts look-ups of keys."""

    looked_up = 0

    async def row(self, query: str, *args: Any, org: str = "") -> Any:
        self.looked_up += query == "authenticate"
        return await super().row(query, *args, org=org)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=1000.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(module, "time", clock)
    return clock


def wrong(number: int) -> str:
    return f"il_{number:016}_{'0' * 40}"


async def test_a_source_that_guesses_is_stopped_and_others_are_not(
    database_url: str, clock: SimpleNamespace, tenants: tuple[Tenant, Tenant]
) -> None:
    database = Counting(database_url, pool_size=2)
    await database.open()
    try:
        first = await issue_key(database, "acme", "eve", VIEWER)
        later = await issue_key(database, "acme", "eve", VIEWER)
        authenticator = Authenticator(database)
        await authenticator.authenticate(first, source="10.0.0.1")
        database.looked_up = 0
        for number in range(30):
            for _ in range(3):
                with pytest.raises(Unauthenticated):
                    await authenticator.authenticate(wrong(number), source="10.0.0.1")
        assert database.looked_up == 30, "a wrong key is looked up once"
        for number in range(30, 1000):
            with pytest.raises(TooManyRequests) as refused:
                await authenticator.authenticate(wrong(number), source="10.0.0.1")
        assert refused.value.retry_after == 1.0
        assert database.looked_up == 30
        with pytest.raises(TooManyRequests):
            await authenticator.authenticate(later, source="10.0.0.1")
        authenticator.forget(first.split("_")[1])
        assert (await authenticator.authenticate(first, source="10.0.0.1")).user_id == "eve", "it was right here before"
        assert (await authenticator.authenticate(later, source="10.0.0.2")).user_id == "eve"
        clock.now += 1
        with pytest.raises(Unauthenticated):
            await authenticator.authenticate(wrong(2000), source="10.0.0.1")
        with pytest.raises(TooManyRequests):
            await authenticator.authenticate(wrong(2001), source="10.0.0.1")
    finally:
        await database.close()


def test_memory_is_bounded() -> None:
    keys = WrongKeys()
    for number in range(20_000):
        keys.note_wrong(str(number), f"{number:016}", b"")
        keys.note_right(f"{number:016}", b"x")
    assert max(len(keys._wrong), len(keys._right), len(keys._sources)) <= 4096
    assert keys.is_known(f"{19_999:016}", b"")


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("", ""),
        ("unix:" + "x" * 100, "unix:" + "x" * 59),
    ],
)
def test_addresses_of_one_client_are_one_source(address: str, source: str) -> None:
    assert source_of(address) == source
