"""An operator's answer for an interrupted tool call, validated against the tool's output schema like the tool's own answer."""

from __future__ import annotations

from interlock.base.errors import ContractViolation
from interlock.base.json import Json
from interlock.definitions.versions import Versions
from interlock.execution.loading import folded
from interlock.store.database import Database
from interlock.workflows.facts import Facts, facts_of
from interlock.workflows.schemas import check_value
from interlock.workflows.spec import ToolStep


class ToolAnswers:
    """Checks answers to `confirm` reviews."""

    def __init__(self, database: Database, versions: Versions) -> None:
        self._database = database
        self._versions = versions

    async def facts(self, org_id: str, run_id: str, step: str, output: Json) -> Facts:
        """The facts of a tool's output.

        Raises:
            ContractViolation: the tool cannot have given this.
        """
        run = await self._database.row("get_run", run_id, org=org_id)
        assert run is not None, "a review is about a run"
        version, state = await folded(self._database, self._versions, run)
        here = state.steps[step]
        execution = version.program.work(step, here.variant, here.tool)
        if not isinstance(execution, ToolStep):
            raise ContractViolation(f'step "{step}" is no tool step, so nothing can be said about what it gave')
        check_value(version.tool_output_validators[execution.tool], output, what=f'tool "{execution.tool}": output')
        return facts_of(version.tools[execution.tool].contract.output, output)
