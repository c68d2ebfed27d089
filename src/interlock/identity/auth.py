"""Organisations and their API keys. A key is shown once; only its hash is stored."""

from __future__ import annotations

import hashlib
import hmac
import re
import time

from interlock.base.errors import InvalidInput, NotFound, Unauthenticated
from interlock.base.ids import random_token
from interlock.identity.principal import ROLES, Principal
from interlock.store.database import Database

_KEY = re.compile(r"il_([0-9a-z]{16})_([0-9a-z]{40})")
_ORG = re.compile(r"[a-z][a-z0-9-]{0,62}")
_CACHE_SECONDS = 2.0  # a revoked key may still work for so long in a process that has cached it


class Authenticator:
    """Issues and checks API keys: `il_<id>_<secret>`, 200 random bits of secret, SHA-256 stored."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._cache: dict[str, tuple[float, bytes, Principal]] = {}

    async def ensure_org(self, org_id: str, name: str) -> None:
        """Creates an organisation unless it exists."""
        if not _ORG.fullmatch(org_id):
            raise InvalidInput(f'organisation id "{org_id}" must be lower-case letters, digits and hyphens')
        await self._database.execute("create_org", org_id, name, org=org_id)
        await self._database.execute("create_audit_head", org_id, org=org_id)

    async def issue(self, org_id: str, user_id: str, roles: frozenset[str]) -> str:
        """Issues a key. The key can be read only from this return value.

        Raises:
            InvalidInput: an unknown role, or no user.
        """
        unknown = sorted(roles - ROLES)
        if unknown or not roles:
            raise InvalidInput(
                f"role {', '.join(unknown) or '(none)'} is not known; use some of {', '.join(sorted(ROLES))}"
            )
        if not user_id or len(user_id) > 200:
            raise InvalidInput("a key needs a user of 1 to 200 characters")
        key_id, secret = random_token(16), random_token(40)
        await self._database.execute(
            "insert_api_key", key_id, org_id, _hash(secret), user_id, sorted(roles), org=org_id
        )
        return f"il_{key_id}_{secret}"

    async def revoke(self, org_id: str, key_id: str) -> None:
        """Raises:
        NotFound: no such key in this organisation, or already revoked.
        """
        self._cache.pop(key_id, None)
        if not await self._database.execute("revoke_api_key", key_id, org=org_id):
            raise NotFound(f'no active key "{key_id}" in this organisation')

    async def authenticate(self, presented: str | None) -> Principal:
        """The principal behind a key.

        Raises:
            Unauthenticated: no key, or an unknown one. The message never tells which part was wrong.
        """
        match = _KEY.fullmatch(presented or "")
        if match is None:
            raise Unauthenticated("send an API key: `Authorization: Bearer il_…`")
        key_id, secret = match.groups()
        digest = _hash(secret)
        cached = self._cache.get(key_id)
        if cached and time.monotonic() - cached[0] < _CACHE_SECONDS and hmac.compare_digest(cached[1], digest):
            return cached[2]
        row = await self._database.row("authenticate", key_id)
        if row is None or not hmac.compare_digest(bytes(row["secret_hash"]), digest):
            raise Unauthenticated("this API key is not valid")
        principal = Principal(row["user_id"], row["org_id"], frozenset(row["roles"]))
        self._cache[key_id] = (time.monotonic(), digest, principal)
        return principal


def key_id_of(key: str) -> str:
    """The public part of a key, for lists and audit entries."""
    return key.split("_")[1]


def _hash(secret: str) -> bytes:
    # A secret of 200 random bits needs no slow hash.
    return hashlib.sha256(secret.encode()).digest()
