"""Payload codec: compresses and encrypts everything sent to the Temporal server, which sees ids, types and sizes only.

The key derives from the installation's master key, so every process of an installation reads what another one wrote, and
no other party does, the server's operators included.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import zlib
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from temporalio.api.common.v1 import Payload
from temporalio.api.failure.v1 import Failure
from temporalio.converter import (
    DataConverter,
    DefaultFailureConverterWithEncodedAttributes,
    PayloadCodec,
    PayloadConverter,
)

from interlock.base.errors import IntegrityError

ENCODING = b"binary/interlock-1"
_NONCE_BYTES = 12  # AES-GCM, NIST SP 800-38D
_LEVEL = 1  # zlib; these are small JSON documents, and a higher level gains nothing on them
# For what fits into a window of 4 KiB: preparing the usual one of 32 KiB takes several times as long as packing it.
_SMALL_WINDOW, _SMALL_MEMORY = 12, 5


class SealingCodec(PayloadCodec):
    """Zlib, then AES-256-GCM. The payload's own metadata (its encoding) is inside, too."""

    def __init__(self, master_key: bytes) -> None:
        self._cipher = AESGCM(hmac.new(master_key, b"temporal payloads", hashlib.sha256).digest())

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return [self._seal(payload) for payload in payloads]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        """Raises IntegrityError for a payload that this installation did not write."""
        return [self._open(payload) for payload in payloads]

    def _seal(self, payload: Payload) -> Payload:
        nonce = os.urandom(_NONCE_BYTES)
        packed = _pack(payload.SerializeToString())
        return Payload(metadata={"encoding": ENCODING}, data=nonce + self._cipher.encrypt(nonce, packed, ENCODING))

    def _open(self, payload: Payload) -> Payload:
        if payload.metadata.get("encoding") != ENCODING:
            raise IntegrityError(
                "Temporal holds a payload that is not sealed; only Interlock's processes may write there"
            )
        nonce, sealed = payload.data[:_NONCE_BYTES], payload.data[_NONCE_BYTES:]
        try:
            packed = self._cipher.decrypt(nonce, sealed, ENCODING)
        except InvalidTag as error:
            raise IntegrityError(
                "Temporal holds a payload that does not open with this installation's master key; restore that key"
            ) from error
        return Payload.FromString(zlib.decompress(packed))


def _pack(data: bytes) -> bytes:
    if len(data) > 1 << _SMALL_WINDOW:
        return zlib.compress(data, _LEVEL)
    packer = zlib.compressobj(_LEVEL, wbits=_SMALL_WINDOW, memLevel=_SMALL_MEMORY)
    return packer.compress(data) + packer.flush()


class SealingFailureConverter(DefaultFailureConverterWithEncodedAttributes):
    """Texts and stacks of failures become payloads, which the codec seals; what kind of error it was goes away."""

    def to_failure(self, exception: BaseException, payload_converter: PayloadConverter, failure: Failure) -> None:
        super().to_failure(exception, payload_converter, failure)
        part = failure
        while True:
            if part.HasField("application_failure_info"):
                part.application_failure_info.type = ""
            if not part.HasField("cause"):
                return
            part = part.cause


def blinded(master_key: bytes, text: str) -> str:
    """The same for the same text, and nothing that tells it: for what the server has to compare."""
    return hmac.new(master_key, b"temporal names:" + text.encode(), hashlib.sha256).hexdigest()[:32]


def sealing_converter(master_key: bytes) -> DataConverter:
    """For the client: arguments, results, signals and the texts of failures all go through the codec."""
    return DataConverter(payload_codec=SealingCodec(master_key), failure_converter_class=SealingFailureConverter)
