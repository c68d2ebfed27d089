"""Keys: one master key an installation, one data key a subject, wrapped by it. Destroying a data key erases its values."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from interlock.base.errors import Erased, IntegrityError, InvalidSpec

if TYPE_CHECKING:
    from interlock.store.database import Database

KEY_BYTES = 32
_NONCE_BYTES = 12  # AES-GCM, NIST SP 800-38D


def load_or_create_secret(path: Path) -> bytes:
    """32 random bytes kept in a file only its owner can read; made on first use, safely when two processes race.

    Raises:
        InvalidSpec: the file has another length (it was edited or cut).
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        # Not by process id alone: in a container that is 1 every time, also after a crash that left the file behind.
        temporary = path.with_suffix(f".{os.getpid()}.{secrets.token_hex(4)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(os.urandom(KEY_BYTES))
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # unlike rename, fails if the other process was first
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    secret = path.read_bytes()
    if len(secret) != KEY_BYTES:
        raise InvalidSpec(f"{path}: has {len(secret)} bytes instead of {KEY_BYTES}; restore it from your backup")
    return secret


class KeyStore:
    """Data keys by organisation and subject.

    The unwrapped keys are cached in this process; `forget` drops some, and `destroy` does so after the row is gone.

    Attributes:
        generation: grows when keys are dropped; what was derived from keys of an earlier generation must be dropped too.
    """

    def __init__(self, database: Database, master_key: bytes) -> None:
        self._database = database
        self._master = AESGCM(master_key)
        self._pseudonym_key = hmac.new(master_key, b"subject pseudonyms", hashlib.sha256).digest()
        self._cache: dict[tuple[str, str], bytes] = {}
        self.generation = 0

    def pseudonym(self, org_id: str, subject: str) -> str:
        """A stable name for a person that does not tell who it is; what labels and tables carry."""
        return "sub_" + hmac.new(self._pseudonym_key, f"{org_id}\0{subject}".encode(), hashlib.sha256).hexdigest()[:24]

    async def keys(self, org_id: str, subjects: frozenset[str]) -> list[bytes]:
        """The data keys of an organisation ('' stands for itself) and of the subjects, in a fixed order; made if new.

        Raises:
            Erased: one of them was destroyed.
        """
        wanted = ["", *sorted(subjects)]
        missing = [name for name in wanted if (org_id, name) not in self._cache]
        if missing:
            await self._load(org_id, missing)
        return [self._cache[org_id, name] for name in wanted]

    async def destroy(self, org_id: str, subject: str) -> bool:
        """Destroys a subject's key: every value about the subject turns unreadable. False if there was none."""
        touched = await self._database.execute("destroy_subject_key", org_id, subject, org=org_id)
        self.forget(org_id, frozenset({subject}))
        return touched > 0

    def forget(self, org_id: str, subjects: frozenset[str]) -> None:
        """Drops keys from this process's memory; what is asked next is what the database says."""
        self.generation += 1
        for subject in subjects:
            self._cache.pop((org_id, subject), None)

    async def _load(self, org_id: str, names: list[str]) -> None:
        found = await self._rows(org_id, names)
        for name in names:
            if name not in found:
                nonce = os.urandom(_NONCE_BYTES)
                fresh = nonce + self._master.encrypt(nonce, AESGCM.generate_key(256), _context(org_id, name))
                await self._database.execute("insert_subject_key", org_id, name, fresh, org=org_id)
        if len(found) < len(names):
            found = await self._rows(org_id, names)  # another process may have been first; its key counts
        for name in names:
            wrapped = found[name]
            if wrapped is None:
                raise Erased("this value's subject was erased; it cannot be read again")
            try:
                key = self._master.decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], _context(org_id, name))
            except InvalidTag as error:
                raise IntegrityError(
                    "a data key does not open with this installation's master key; restore that key"
                ) from error
            self._cache[org_id, name] = key

    async def _rows(self, org_id: str, names: list[str]) -> dict[str, bytes | None]:
        rows = await self._database.rows("subject_keys", org_id, names, org=org_id)
        return {row["subject"]: row["wrapped"] for row in rows}


def _context(org_id: str, subject: str) -> bytes:
    return f"interlock data key\0{org_id}\0{subject}".encode()
