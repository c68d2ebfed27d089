"""A workflow flattened for the machine: every step by id, with its place among its siblings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from interlock.workflows.contracts import ToolContract
from interlock.workflows.facts import compile_condition
from interlock.workflows.spec import BranchStep, ParallelStep, Step, ToolStep, Workflow


@dataclass(frozen=True, slots=True)
class Scope:
    """A sequence of steps: the workflow's own, or one branch of a parallel or branch step."""

    owner: str | None
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """A step and where it stands: its scope and its index in it."""

    step: Step
    scope: Scope
    index: int

    @property
    def next(self) -> str | None:
        """The id of the step after this one in its scope."""
        return self.scope.steps[self.index + 1] if self.index + 1 < len(self.scope.steps) else None


@dataclass(frozen=True, slots=True)
class Program:
    """What the machine needs of a workflow version; built by `compile_program`.

    Attributes:
        scopes: child scopes of a parallel or branch step, in the order of its branches or cases (`otherwise` last).
        conditions: compiled CEL of a branch step's cases, same order.
        mutating: ids of steps that call a mutating tool.
        undoable: those of them whose tool has a compensation.
    """

    workflow: Workflow
    root: Scope
    nodes: Mapping[str, Node]
    scopes: Mapping[str, tuple[Scope, ...]]
    conditions: Mapping[str, tuple[Any, ...]]
    mutating: frozenset[str]
    undoable: frozenset[str]


def compile_program(workflow: Workflow, contracts: Mapping[str, ToolContract]) -> Program:
    """Flattens a workflow. Assumes that `check.check_workflow` found nothing wrong with it."""
    nodes: dict[str, Node] = {}
    scopes: dict[str, tuple[Scope, ...]] = {}
    conditions: dict[str, tuple[Any, ...]] = {}

    def add(steps: list[Step], owner: str | None) -> Scope:
        scope = Scope(owner, tuple(step.id for step in steps))
        for index, step in enumerate(steps):
            nodes[step.id] = Node(step, scope, index)
            if isinstance(step, ParallelStep):
                scopes[step.id] = tuple(add(branch, step.id) for branch in step.branches.values())
            elif isinstance(step, BranchStep):
                parts = [case.steps for case in step.cases] + [step.otherwise]
                scopes[step.id] = tuple(add(part, step.id) for part in parts)
                conditions[step.id] = tuple(compile_condition(case.when) for case in step.cases)
        return scope

    root = add(workflow.steps, None)
    tools = {name: contracts[node.step.tool] for name, node in nodes.items() if isinstance(node.step, ToolStep)}
    mutating = frozenset(name for name, contract in tools.items() if contract.mutating)
    undoable = frozenset(name for name in mutating if tools[name].compensate)
    return Program(workflow, root, nodes, scopes, conditions, mutating, undoable)
