"""Artifacts: values stored once, encrypted under their subjects' keys, named by a keyed digest."""

from __future__ import annotations

import base64
import hmac
import json
from collections import OrderedDict

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from interlock.base.accepted import Accepted
from interlock.base.entropy import random_bytes
from interlock.base.errors import Erased, IntegrityError, NotFound, PayloadTooLarge
from interlock.base.ids import random_token
from interlock.base.json import Json
from interlock.base.labels import Labels
from interlock.base.refs import Ref, canonical_json
from interlock.base.values import value
from interlock.store.database import Database, Row
from interlock.store.keys import KeyStore
from interlock.store.objects import Objects
from interlock.store.rows import ArtifactRow

# Up to here a value rides in the step's own transaction; a larger one goes to the object store first.
INLINE_BYTES = 128 * 1024
_NONCE_BYTES = 12
_CACHED = 512
_NAME_CHARACTERS = 12


@value(frozen=True, slots=True)
class Sealed:
    """A value ready to be committed: its ref, and the row that must go into the same transaction."""

    ref: Ref
    row: ArtifactRow


class Artifacts:
    """Seals and opens values. A value about several subjects needs all their keys: erasing any of them erases it."""

    def __init__(self, database: Database, keys: KeyStore, objects: Objects, *, limit_bytes: int) -> None:
        self._database = database
        self._keys = keys
        self._objects = objects
        self._limit = limit_bytes
        self._derived: OrderedDict[tuple[str, frozenset[str]], tuple[bytes, AESGCM]] = OrderedDict()
        self._generation = keys.generation

    async def digest(self, org_id: str, value: object, labels: Labels) -> str:
        """The digest that `seal` would give; nothing is encrypted or stored, but the keys of subjects not known yet are made.

        Raises as `seal`.
        """
        digest, _, _ = await self._named(org_id, value, labels)
        return digest

    async def seal(self, org_id: str, accepted: Accepted, labels: Labels) -> Sealed:
        """Encrypts a JSON value that has passed the guard gate.

        Raises:
            PayloadTooLarge: over the configured limit; fails once, at once.
            Erased: a subject's key is gone, so nothing about them may be stored any more.
        """
        if not isinstance(accepted, Accepted):  # for callers that no type checker has seen
            raise TypeError("only what the guard gate accepted can be sealed; call interlock.guard.gate.inspect")
        digest, plain, cipher = await self._named(org_id, accepted.value, labels)
        nonce = random_bytes(_NONCE_BYTES)
        sealed = nonce + cipher.encrypt(nonce, plain, _context(org_id, digest))
        ciphertext, name = None, None
        if len(sealed) <= INLINE_BYTES:
            ciphertext = base64.b64encode(sealed).decode()
        else:
            name = await self._put(org_id, digest, sealed)
        row = ArtifactRow(
            org_id=org_id,
            digest=digest,
            size=len(plain),
            subjects=sorted(labels.subjects),
            ciphertext=ciphertext,
            object=name,
        )
        return Sealed(Ref(digest, len(plain), labels), row)

    async def open(self, org_id: str, ref: Ref) -> Json:
        """Decrypts a value.

        Raises:
            NotFound: no such value in this organisation.
            Erased: a subject's key was destroyed.
            IntegrityError: the stored bytes are not what was stored.
        """
        row = await self._database.row("get_artifact", org_id, ref.digest, org=org_id)
        if row is None:
            raise NotFound(f"no stored value {ref.digest[:12]}… in this organisation")
        return await self.opened(org_id, ref, row)

    async def opened(self, org_id: str, ref: Ref, row: Row) -> Json:
        """Decrypts a value that was read already: `row` has `ciphertext`, `object` and `erased`. Raises as `open`."""
        if row["erased"]:  # by whichever process; this one may still have the key
            self._keys.forget(org_id, ref.labels.subjects)
            raise Erased("this value's subject was erased; it cannot be read again")
        sealed = row["ciphertext"] if row["ciphertext"] is not None else await self._objects.get(row["object"])
        digest_key, cipher = await self._cipher(org_id, ref.labels.subjects)
        try:
            plain = cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _context(org_id, ref.digest))
        except (InvalidTag, ValueError) as error:  # ValueError: cut so short that not even the nonce is there
            raise IntegrityError(
                f"stored value {ref.digest[:12]}… does not decrypt; it was altered or its key replaced"
            ) from error
        if not hmac.compare_digest(_digest(digest_key, plain), ref.digest):
            raise IntegrityError(f"stored value {ref.digest[:12]}… is not the one its reference names")
        value: Json = json.loads(plain)
        return value

    async def _named(self, org_id: str, value: object, labels: Labels) -> tuple[str, bytes, AESGCM]:
        plain = canonical_json(value)
        if len(plain) > self._limit:
            raise PayloadTooLarge(
                f"a value of {len(plain)} bytes is over the limit of {self._limit} (limits.payload_bytes)"
            )
        digest_key, cipher = await self._cipher(org_id, labels.subjects)
        return _digest(digest_key, plain), plain, cipher

    async def _put(self, org_id: str, digest: str, sealed: bytes) -> str:
        """Stores a large value as an object of its own, on record as pending before it is there.

        The commit that carries the row takes it off that record; what no commit took, `sweep_objects` deletes. No two commits
        share an object, so deleting one that was never committed takes nothing from another.
        """
        name = f"artifacts/{org_id}/{digest}-{random_token(_NAME_CHARACTERS)}"
        await self._database.execute("add_pending_object", name, org_id, org=org_id)
        await self._objects.put(name, sealed)
        return name

    async def _cipher(self, org_id: str, subjects: frozenset[str]) -> tuple[bytes, AESGCM]:
        if self._generation != self._keys.generation:  # a key was destroyed
            self._generation = self._keys.generation
            self._derived.clear()
        cached = self._derived.get((org_id, subjects))
        if cached is not None:
            return cached
        generation, keys = self._generation, b"".join(await self._keys.keys(org_id, subjects))
        material = HKDF(hashes.SHA256(), 64, salt=None, info=b"interlock artifact").derive(keys)
        derived = (material[:32], AESGCM(material[32:]))
        if generation == self._keys.generation:
            self._derived[org_id, subjects] = derived
        if len(self._derived) > _CACHED:
            self._derived.popitem(last=False)
        return derived


def _digest(key: bytes, plain: bytes) -> str:
    return hmac.digest(key, plain, "sha256").hex()  # in one call into C, unlike `hmac.new`


def _context(org_id: str, digest: str) -> bytes:
    return f"interlock artifact\0{org_id}\0{digest}".encode()
