"""Large values and tool bundles: one API for a local directory, S3, GCS and Azure."""

from __future__ import annotations

import contextlib
from pathlib import Path

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import LocalStore, ObjectStore

from interlock.base.errors import IntegrityError, Unavailable


class Objects:
    """Immutable blobs by name. Writing the same name twice is fine: names are digests of the content."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    @classmethod
    def local(cls, directory: Path) -> Objects:
        directory.mkdir(parents=True, exist_ok=True)
        return cls(LocalStore(str(directory)))

    async def put(self, name: str, content: bytes) -> None:
        """Stores a blob.

        Raises:
            Unavailable: the store does not take it, such as a full disk.
        """
        try:
            await obstore.put_async(self._store, name, content)
        except (BaseError, OSError) as error:
            raise Unavailable(
                "a large value cannot be stored; check that the disk of the data directory has room", detail=str(error)
            ) from error

    async def delete(self, name: str) -> None:
        """Removes a blob; one that is not there is no error."""
        with contextlib.suppress(NotFoundError, FileNotFoundError):
            await obstore.delete_async(self._store, name)

    async def get(self, name: str) -> bytes:
        """The blob.

        Raises:
            IntegrityError: it is not there, although something refers to it.
        """
        try:
            result = await obstore.get_async(self._store, name)
            return bytes(await result.bytes_async())
        except (NotFoundError, FileNotFoundError) as error:
            raise IntegrityError(
                f'object "{name}" is missing from the object store; restore it from your backup'
            ) from error
