"""A workflow flattened for the machine: every step by path, with its place among its siblings.

A step's *path* is its id behind the ids of the steps whose body it stands in: `each/charge`. What the machine moves are
*instances* of it: `each#3/charge` is that step for item 3 (from 1), `again#2/draft` the second round of a loop,
`assist#4/turn` and `assist#4/call#1` the fourth turn of an agent and its first tool call. Branches open no name space:
their steps are named like their siblings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from interlock.machine.names import (
    CALL,
    TURN,
    InstanceName,
    Segment,
    beside,
    body_of,
    enclosing,
    id_of,
    is_numbered,
    path_of,
    unnumbered,
    within,
)
from interlock.machine.state import StepState
from interlock.workflows.contracts import ToolContract
from interlock.workflows.facts import CompiledCondition, compile_condition
from interlock.workflows.spec import (
    AgentStep,
    BranchStep,
    Fallback,
    LoopStep,
    MapStep,
    ModelStep,
    ParallelStep,
    Step,
    SubworkflowStep,
    ToolStep,
    Workflow,
)
from interlock.workflows.walk import branches_of

_NONE: Mapping[str, Workflow] = {}

_SHARED = tuple(name for name in ModelStep.model_fields if name in AgentStep.model_fields)

FRAMED = (MapStep, LoopStep, AgentStep)
"""Steps whose body happens more than once."""


@dataclass(frozen=True, slots=True)
class Block:
    """A sequence of steps: a workflow's own, a branch, or a body.

    Attributes:
        owner: path of the step it belongs to; None for the run's own.
        body: whether it opens a name space.
        steps: ids.
        space: what their paths begin with.
    """

    owner: str | None
    body: bool
    steps: tuple[str, ...]
    space: str


@dataclass(frozen=True, slots=True)
class Node:
    """A step and where it stands.

    Attributes:
        index: its place in its scope.
        home: paths of the workflow it was written in begin with this: empty, or that of a subworkflow step.
        agent: whose turn or call it is.
        variants: what is performed: the step itself, then its fallbacks.
    """

    step: Step
    scope: Block
    index: int
    home: str
    agent: AgentStep | None = None
    variants: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class Condition:
    """Compiled CEL and the steps whose facts it reads: variable → path, `input` → None."""

    program: CompiledCondition
    reads: tuple[tuple[str, str | None], ...]


@dataclass(frozen=True, slots=True)
class Program:
    """A workflow version as the machine needs it; built by `compile_program`.

    Attributes:
        scopes: child scopes of a container, in the order of its branches or cases (`otherwise` last); one for a body.
        conditions: of a branch's cases, same order; of a loop.
        calls: path of an agent's `call` and tool → the step it is.
        subworkflows: path of a subworkflow step → the workflow.
        ids: (home, id) → path.
    """

    workflow: Workflow
    contracts: Mapping[str, ToolContract]
    root: Block
    nodes: Mapping[str, Node]
    scopes: Mapping[str, tuple[Block, ...]]
    conditions: Mapping[str, tuple[Condition, ...]]
    calls: Mapping[tuple[str, str], ToolStep]
    subworkflows: Mapping[str, Workflow]
    ids: Mapping[tuple[str, str], str]

    def node(self, name: str) -> Node:
        """The node of an instance."""
        return self.nodes[path_of(name)]

    def parent(self, name: str) -> str | None:
        """The instance that an instance stands in; None for the run itself. `each#3/charge` → `each#3` → `each`."""
        node = self.node(name)
        if isinstance(node.step, FRAMED) and is_numbered(name):
            return unnumbered(name)
        owner = node.scope.owner
        if owner is None:
            return None
        return enclosing(name) if node.scope.body else beside(name, id_of(owner))

    def work(self, name: str, variant: int, tool: str | None) -> Step:
        """The step performed for an instance: itself, its fallback, or the tool that an agent's model named."""
        path = path_of(name)
        if tool is not None:
            return self.calls[path, tool]
        node = self.nodes[path]
        return node.variants[variant] if variant else node.step

    def fallback(self, name: str, variant: int) -> Fallback | None:
        """The declaration behind a variant; None for the step itself."""
        step = self.node(name).step
        if not variant or not isinstance(step, ModelStep | ToolStep):
            return None
        return step.fallback[variant - 1]

    @property
    def concurrent(self) -> bool:
        """True if two model calls of a run may be under way at once: in a map, or in two branches of a parallel step."""
        for path, blocks in self.scopes.items():
            step, asking = self.nodes[path].step, sum(map(self._asks_model, blocks))
            if (isinstance(step, MapStep) and asking) or (isinstance(step, ParallelStep) and asking > 1):
                return True
        return False

    def _asks_model(self, block: Block) -> bool:
        """True if a step of the block, at any depth, or a fallback of one calls a model."""
        for one in block.steps:
            path = block.space + one
            node = self.nodes[path]
            if any(isinstance(step, ModelStep | AgentStep) for step in (node.step, *node.variants)):
                return True
            if any(map(self._asks_model, self.scopes.get(path, ()))):
                return True
        return False

    def mutates(self, tool: str) -> bool:
        return tool in self.contracts and self.contracts[tool].mutating

    def undoable(self, name: str, variant: int, tool: str | None) -> bool:
        """True if success of this instance can be compensated."""
        step = self.work(name, variant, tool)
        fallback = self.fallback(name, variant)
        if not isinstance(step, ToolStep) or (fallback is not None and fallback.tool is None):
            return False
        contract = self.contracts.get(step.tool)
        return contract is not None and contract.mutating and contract.compensate

    def instance(self, near: str, path: str, step_of: Callable[[str], StepState | None]) -> str:
        """The instance of the step at `path` that the instance `near` means: of its own item or round, else of the last one.

        Args:
            step_of: the state's step of a name; its `iteration` says which round of a loop was the last.
        """
        *bodies, last = InstanceName.parse(path).segments
        if not bodies:
            return path
        ours = InstanceName.parse(near).segments if near else ()
        built: list[Segment] = []
        aligned = True
        for depth, body in enumerate(bodies):
            aligned = aligned and depth < len(ours) and ours[depth].id == body.id
            inside = InstanceName((*built, body))
            if isinstance(self.nodes[inside.path].step, SubworkflowStep):
                built.append(body)
            elif aligned and ours[depth].number is not None:
                built.append(ours[depth])
            else:
                aligned = False
                container = step_of(str(inside))
                built.append(Segment(body.id, container.iteration if container is not None else 1))
        return str(InstanceName((*built, last)))


def compile_program(
    workflow: Workflow, contracts: Mapping[str, ToolContract], subworkflows: Mapping[str, Workflow] = _NONE
) -> Program:
    """Flattens a workflow. Assumes that `check.check_workflow` found nothing wrong with it.

    Args:
        subworkflows: by name, those that its steps mention.
    """
    compiler = _Compiler(contracts, subworkflows)
    root = compiler.add(workflow.steps, owner=None, body=False, space="", home="")
    return Program(
        workflow,
        contracts,
        root,
        compiler.nodes,
        compiler.scopes,
        {path: tuple(compiler.condition(*one) for one in found) for path, found in compiler.texts.items()},
        compiler.calls,
        compiler.subworkflows,
        compiler.ids,
    )


@dataclass
class _Compiler:
    contracts: Mapping[str, ToolContract]
    known: Mapping[str, Workflow]
    nodes: dict[str, Node] = field(default_factory=dict)
    scopes: dict[str, tuple[Block, ...]] = field(default_factory=dict)
    texts: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    calls: dict[tuple[str, str], ToolStep] = field(default_factory=dict)
    subworkflows: dict[str, Workflow] = field(default_factory=dict)
    ids: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, steps: list[Step], *, owner: str | None, body: bool, space: str, home: str) -> Block:
        scope = Block(owner, body, tuple(step.id for step in steps), space)
        for index, step in enumerate(steps):
            path = space + step.id
            self.nodes[path] = Node(step, scope, index, home, variants=_variants(step))
            self.ids[home, step.id] = path
            self._inside(step, path, space, home)
        return scope

    def _inside(self, step: Step, path: str, space: str, home: str) -> None:
        match step:
            case ParallelStep() | BranchStep():
                if isinstance(step, BranchStep):
                    self.texts[path] = tuple((case.when, home) for case in step.cases)
                self.scopes[path] = tuple(
                    self.add(part, owner=path, body=False, space=space, home=home) for part in branches_of(step)
                )
            case MapStep() | LoopStep():
                if isinstance(step, LoopStep):
                    self.texts[path] = ((step.until, home),)
                self.scopes[path] = (self.add(step.steps, owner=path, body=True, space=body_of(path), home=home),)
            case SubworkflowStep():
                child = self.subworkflows[path] = self.known[step.workflow]
                self.scopes[path] = (
                    self.add(child.steps, owner=path, body=True, space=body_of(path), home=body_of(path)),
                )
            case AgentStep():
                self._agent(step, path, home)

    def _agent(self, step: AgentStep, path: str, home: str) -> None:
        scope = Block(path, True, (TURN,), body_of(path))
        self.scopes[path] = (scope,)
        shared = {name: getattr(step, name) for name in _SHARED}
        own = {"kind": "model", "id": TURN, "on_failure": "fail", "deadline": None, "cache": None}
        turn = ModelStep.model_construct(**{**shared, **own})
        self.nodes[within(path, TURN)] = Node(turn, scope, 0, home, step, _variants(turn))
        called = within(path, CALL)
        for tool in step.tools:
            self.calls[called, tool] = ToolStep(kind="tool", id=CALL, tool=tool, retry=step.retry)
        self.nodes[called] = Node(self.calls[called, step.tools[0]], scope, 1, home, step)

    def condition(self, text: str, home: str) -> Condition:
        program = compile_condition(text)
        reads = tuple(
            (name, None if name == "input" else self.ids.get((home, name), name)) for name in program.variables()
        )
        return Condition(program, reads)


def _variants(step: Step) -> tuple[Step, ...]:
    if not isinstance(step, ModelStep | ToolStep) or not step.fallback:
        return ()
    variants: list[Step] = [step]
    for fallback in step.fallback:
        if fallback.tool is not None and isinstance(step, ToolStep):
            bound = step.input if fallback.input is None else fallback.input
            variants.append(step.model_copy(update={"tool": fallback.tool, "input": bound}))
        elif fallback.model is not None:
            variants.append(step.model_copy(update={"model": fallback.model}))
        else:
            variants.append(step)
    return tuple(variants)
