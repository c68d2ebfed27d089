"""Organisations and their API keys. A key is shown once; only its hash is stored."""

from __future__ import annotations

import hashlib
import hmac
import re
import time

from interlock.base.errors import InvalidInput, Unauthenticated
from interlock.base.ids import random_token
from interlock.identity.principal import ROLES, Principal
from interlock.identity.wrong_keys import WrongKeys
from interlock.store.admin_rows import NewKey, NewOrg
from interlock.store.database import Database

_KEY = re.compile(r"il_([0-9a-z]{16})_([0-9a-z]{40})")
_ORG = re.compile(r"[a-z][a-z0-9-]{0,62}")
_NOT_VALID = "this API key is not valid"
_CACHE_SECONDS = 2.0  # a revoked key may still work for so long in a process that has cached it


class Authenticator:
    """Checks API keys: `il_<id>_<secret>`, 200 random bits of secret, SHA-256 stored."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._cache: dict[str, tuple[float, bytes, Principal]] = {}
        self._wrong = WrongKeys()

    def forget(self, key_id: str) -> None:
        """Makes this process look a key up again; others do within two seconds."""
        self._cache.pop(key_id, None)

    async def authenticate(self, presented: str | None, *, source: str = "") -> Principal:
        """The principal behind a key.

        Args:
            source: of the request, for the limit on wrong keys.

        Raises:
            Unauthenticated: no key, or an unknown one. The message never tells which part was wrong.
            TooManyRequests: too many wrong keys from this source.
        """
        match = _KEY.fullmatch(presented or "")
        if match is None:
            raise Unauthenticated("send an API key: `Authorization: Bearer il_…`")
        key_id, secret = match.groups()
        digest = _hash(secret)
        cached = self._cache.get(key_id)
        if cached and time.monotonic() - cached[0] < _CACHE_SECONDS and hmac.compare_digest(cached[1], digest):
            return cached[2]
        if self._wrong.is_known(key_id, digest):
            raise Unauthenticated(_NOT_VALID)
        self._wrong.admit(source, key_id, digest)
        row = await self._database.row("authenticate", key_id)
        if row is None or not hmac.compare_digest(bytes(row["secret_hash"]), digest):
            self._wrong.note_wrong(source, key_id, digest)
            raise Unauthenticated(_NOT_VALID)
        self._wrong.note_right(key_id, digest)
        principal = Principal(row["user_id"], row["org_id"], frozenset(row["roles"]))
        self._cache[key_id] = (time.monotonic(), digest, principal)
        return principal


def new_org(org_id: str, name: str) -> NewOrg:
    """An organisation to be committed; raises InvalidInput for an id that is none."""
    if not _ORG.fullmatch(org_id):
        raise InvalidInput(f'organisation id "{org_id}" must be lower-case letters, digits and hyphens')
    return NewOrg(org_id=org_id, name=name)


def new_key(org_id: str, user_id: str, roles: frozenset[str]) -> tuple[str, NewKey]:
    """A key and its row to be committed. The key can be read only from this return value.

    Raises:
        InvalidInput: an unknown role, or no user.
    """
    unknown = sorted(roles - ROLES)
    if unknown or not roles:
        raise InvalidInput(
            f"role {', '.join(unknown) or '(none)'} is not known; use some of {', '.join(sorted(ROLES))}"
        )
    if not user_id or len(user_id) > 200 or not user_id.isprintable():
        raise InvalidInput("a key needs a user of 1 to 200 printable characters")
    key_id, secret = random_token(16), random_token(40)
    row = NewKey(key_id=key_id, org_id=org_id, secret_hash=_hash(secret).hex(), user_id=user_id, roles=sorted(roles))
    return f"il_{key_id}_{secret}", row


def key_id_of(key: str) -> str:
    """The public part of a key, for lists and audit entries."""
    return key.split("_")[1]


def _hash(secret: str) -> bytes:
    # A secret of 200 random bits needs no slow hash.
    return hashlib.sha256(secret.encode()).digest()
