"""Budgets in USD of workflows whose models have no known price: every call of such a model is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from interlock.budget.prices import cost_of
from interlock.gateway.catalog import parse_pin
from interlock.workflows.spec import AgentStep, ModelStep, SubworkflowStep, Workflow
from interlock.workflows.walk import every


def unpriced_models(workflow: Workflow, models: Mapping[str, str], known: Mapping[str, Workflow]) -> list[str]:
    """Aliases of the models of a workflow with a budget in USD, subworkflows included, whose price is not known."""
    if workflow.budget.usd is None:
        return []
    used = sorted(set(_models(workflow, known)) & models.keys())
    return [alias for alias in used if not _has_price(models[alias])]


def _models(workflow: Workflow, known: Mapping[str, Workflow]) -> Iterator[str]:
    for step in every(workflow.steps):
        if isinstance(step, ModelStep | AgentStep):
            yield step.model
        elif isinstance(step, SubworkflowStep) and step.workflow in known:
            yield from _models(known[step.workflow], known)


def _has_price(pin: str) -> bool:
    parsed = parse_pin(pin)
    return cost_of(parsed.provider, parsed.model, input_tokens=1, output_tokens=1) is not None
