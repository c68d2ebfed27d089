"""Heads of audit logs, kept in a signed file outside the database.

The log itself cannot show that its last entries are gone. A process that appends to logs writes down, every minute and when it
ends, how far each had come; verification compares. The file never goes back to an earlier entry. After the database was restored
from a backup, the operator moves the file away.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from interlock.audit.log import AuditLog
from interlock.base.background import Loop
from interlock.base.errors import IntegrityError
from interlock.base.files import write_private
from interlock.base.json import Json
from interlock.base.refs import canonical_json

FILE = "audit-heads.json"
_EVERY_SECONDS = 60.0

Heads = Mapping[str, tuple[int, str]]
"""Number and hash of the last entry of each organisation's log."""


class KeptHeads:
    """The file of one data directory.

    Args:
        current: gives the heads of the logs that this process appends to.
    """

    def __init__(self, directory: Path, audit: AuditLog, current: Callable[[], Heads]) -> None:
        self._path = directory / FILE
        self._audit = audit
        self._current = current
        self._kept: Heads = {}
        self._loop = Loop("keep audit heads", self.keep, every=_EVERY_SECONDS, at_once=False, longest=_EVERY_SECONDS)

    def start(self) -> None:
        self._loop.start()

    async def close(self) -> None:
        await self._loop.close()
        await self.keep()

    async def keep(self) -> None:
        """Writes the heads that moved on since the last time."""
        current = dict(self._current())
        if any(self._kept.get(org, (0, ""))[0] < seq for org, (seq, _) in current.items()):
            self._kept = await asyncio.to_thread(self._write, current)

    def read(self) -> Heads:
        """The kept heads; none if there is no file.

        Raises:
            IntegrityError: the file was altered, or belongs to an installation with another key.
        """
        try:
            whole = json.loads(self._path.read_text(encoding="utf-8"))
            heads = {str(org): (int(seq), str(digest)) for org, (seq, digest) in whole["heads"].items()}
            good = self._audit.signed(_text(heads), str(whole["signature"]))
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            good = False
        if not good:
            raise IntegrityError(f"{self._path}: was altered, or signed with another key than this installation's")
        return heads

    def _write(self, current: Heads) -> Heads:
        """Writes of each log the further head, that of the file or the current one; gives what is in the file then."""
        try:
            kept = dict(self.read())
        except IntegrityError:
            return self._kept  # verification reports it; it must not be replaced by a good one
        kept |= {org: head for org, head in current.items() if kept.get(org, (0, ""))[0] < head[0]}
        write_private(self._path, json.dumps({"heads": kept, "signature": self._audit.sign(_text(kept))}))
        return kept


def _text(heads: Heads) -> bytes:
    plain: dict[str, Json] = {org: [seq, digest] for org, (seq, digest) in heads.items()}
    return b"interlock audit heads\0" + canonical_json(plain)
