"""Values that people hand to a run under way: scanned raw, redacted, sealed, like its input.

One value has one token within a run: redaction starts from every vault the run has, and only what is new goes into another.
"""

from __future__ import annotations

from dataclasses import dataclass

from interlock.base.json import Json, accept_json
from interlock.base.labels import Labels, Sensitivity, Trust
from interlock.base.refs import Ref
from interlock.guard.gate import Inspection, Stage, inspect, secret
from interlock.guard.pii import Redactor
from interlock.store.artifacts import Artifacts
from interlock.store.database import Database, Row
from interlock.store.rows import ArtifactRow, NewVault


@dataclass(frozen=True, slots=True)
class Taken:
    """A value ready to be committed.

    Attributes:
        value: redacted.
        artifacts, vaults: rows that must go into the same transaction as the row that carries `ref`.
        flags: what the scanner and the redactor found.
    """

    value: Json
    ref: Ref
    artifacts: list[ArtifactRow]
    vaults: list[NewVault]
    flags: list[str]


class Redaction:
    """Takes values in for runs that exist."""

    def __init__(self, database: Database, artifacts: Artifacts, *, block_injections: bool) -> None:
        self._database = database
        self._artifacts = artifacts
        self._block = block_injections

    async def take(self, run: Row, value: object, *, origin: str) -> Taken:
        """A person's value, about the same people as the run's input.

        Args:
            run: its row in `runs`.
            origin: where it came from, for the labels.

        Raises:
            InvalidJson: it is over a bound.
            Denied: it holds an injected order, and the settings say `block`.
            Erased: a person whom the run is about was erased; nothing more may be stored about them.
        """
        value = accept_json(value)
        known = await vault_of(self._database, self._artifacts, run)
        redactor = Redactor(dict(known), {})
        inspection = await inspect(value, Stage.HUMAN_TEXT, run["org_id"], redactor=redactor, block=self._block)
        about = Ref.from_json(run["input"]).labels
        sensitivity = max(about.sensitivity, Sensitivity.PII if redactor.counts else Sensitivity.INTERNAL)
        labels = Labels(Trust.USER, sensitivity, about.subjects, frozenset({origin}))
        sealed = await self._artifacts.seal(run["org_id"], inspection.accepted, labels)
        artifacts, vaults = [sealed.row], list[NewVault]()
        new = {token: original for token, original in redactor.vault.items() if token not in known}
        if new:
            hidden = labels.secret()
            vault = await self._artifacts.seal(run["org_id"], secret(new), hidden)
            artifacts.append(vault.row)
            vaults.append(NewVault(org_id=run["org_id"], run_id=run["run_id"], vault=vault.ref.to_json()))
        return Taken(inspection.value, sealed.ref, artifacts, vaults, inspection.flags)

    async def note(self, org_id: str, text: str) -> str:
        """A person's note or reason as it is kept: readable by all who see the run, so personal data leaves it for good.

        Raises:
            InvalidJson, Denied: as `take`.
        """
        return str((await self.inspect(org_id, text)).value)

    async def inspect(self, org_id: str, value: object) -> Inspection:
        """Redacts a person's text permanently; raises as `note`."""
        return await inspect(accept_json(value), Stage.HUMAN_TEXT, org_id, block=self._block)


async def vault_of(database: Database, artifacts: Artifacts, run: Row) -> dict[str, str]:
    """Token → value, of everything that anybody handed to the run.

    Raises:
        Erased: a person whom the run is about was erased.
    """
    org_id = run["org_id"]
    refs = [run["vault"]["ref"]] if run["vault"] else []
    refs += [row["vault"] for row in await database.rows("list_vaults", run["run_id"], org=org_id)]
    vault: dict[str, str] = {}
    for ref in refs:
        opened = await artifacts.open(org_id, Ref.from_json(ref))
        assert isinstance(opened, dict)  # a redactor's vault
        vault |= opened
    return vault
