"""Workflow language: a workflow is data. `interlock schema` prints this module as JSON Schema."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from interlock.base.json import JsonField
from interlock.base.money import UsdLimit

MAX_STEPS = 500


def _identifier(value: str) -> str:
    if value in {"input", "steps", "run"}:
        raise ValueError(f'"{value}" is reserved; choose another name')
    return value


Identifier = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$"), AfterValidator(_identifier)]
Seconds = Annotated[float, Field(gt=0, le=366 * 86400)]
JsonSchema = dict[str, Any]
"""A JSON Schema (2020-12), inline or as `{"$file": "schemas/name.json"}`, which the project reader replaces."""


class Part(BaseModel):
    """Base of all parts of a definition: unknown fields are refused, instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RetryPolicy(Part):
    """Retries of a step: exponential backoff with full jitter, within the run's retry budget."""

    max_attempts: int = Field(default=3, ge=1, le=20, description="maximum number of attempts, the first included")
    backoff: Seconds = Field(default=1.0, description="maximum seconds before the second attempt")
    max_backoff: Seconds = Field(default=60.0, description="maximum seconds of one wait")


class Budget(Part):
    """Hard limits of one run; at 100 % the run ends with a partial result."""

    tokens: int | None = Field(default=None, ge=1, description="input and output tokens of all model calls")
    usd: UsdLimit | None = Field(
        default=None,
        description="money for all model calls, USD, at most 9 decimals; only models with a known price are called",
    )
    retries: int = Field(default=10, ge=0, le=1000, description="retries of all steps together")


class _StepBase(Part):
    id: Identifier
    description: str = ""
    on_failure: Literal["fail", "continue"] = Field(
        default="fail",
        description='"continue": the run continues without this step and ends as partial, with the reason',
    )


class Fallback(Part):
    """Fallback of a finally failed step; fallbacks are tried in the declared order.

    Exactly one of `tool` (for a tool step), `model` (for a model step), `last_good` and `value`.
    """

    tool: Identifier | None = Field(default=None, description="another tool")
    input: dict[str, JsonField] | None = Field(
        default=None, description="arguments of the tool; absent: those of the step"
    )
    model: Identifier | None = Field(default=None, description="another model alias, same prompt and output")
    last_good: bool = Field(default=False, description="the newest result that the same call gave in an earlier run")
    value: dict[str, JsonField] | None = Field(default=None, description="a fixed answer")
    max_age: Seconds | None = Field(
        default=None, description="freshness: an answer that describes a state older than this, in seconds, is refused"
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [self.tool is not None, self.model is not None, self.last_good, self.value is not None]
        if sum(given) != 1:
            raise ValueError("a fallback is exactly one of tool, model, last_good, value")
        if self.input is not None and self.tool is None:
            raise ValueError("only a fallback to a tool has an input; remove it")
        if self.last_good and self.max_age is None:
            raise ValueError("last_good needs max_age: how old may the result be, in seconds?")
        return self


class _WorkStep(_StepBase):
    retry: RetryPolicy = RetryPolicy()
    deadline: Seconds | None = Field(
        default=None, description="seconds for all attempts together; then the fallbacks, or failure"
    )
    fallback: list[Fallback] = Field(default_factory=list, max_length=5)


class _AskingStep(_WorkStep):
    """Fields common to model and agent steps."""

    model: str = Field(default="default", description="alias from the settings' models")
    prompt: Identifier = Field(description="name of a file in prompts/")
    values: dict[str, JsonField] = Field(default_factory=dict, description="slot → binding")
    output: JsonSchema = Field(description="JSON Schema of the answer; an object")
    max_tokens: int = Field(default=512, ge=1, le=200_000)
    temperature: float = Field(default=0.0, ge=0, le=2)
    timeout: Seconds = 60.0


class ModelStep(_AskingStep):
    """One model call whose answer fits a schema."""

    kind: Literal["model"]
    cache: Seconds | None = Field(
        default=None, description="seconds for which the answer to an identical request is reused"
    )
    batch: bool = Field(
        default=False,
        description="use the provider's batch API: half the price, answer within a day; fallbacks are called directly",
    )


class AgentStep(_AskingStep):
    """A model that may call tools in turns until it answers; every turn and every call is a checkpoint.

    Calls of one turn run concurrently; a mutating one waits for those named before it, and those named after wait for it.
    The model receives the failure of a call and may choose another action.
    """

    kind: Literal["agent"]
    tools: list[Identifier] = Field(min_length=1, description="the only tools the model may call here")
    max_turns: int = Field(default=10, ge=1, le=200, description="maximum number of model calls; then the step fails")
    max_calls: int = Field(default=8, ge=1, le=32, description="maximum number of tool calls in one turn")


class ToolStep(_WorkStep):
    """One tool call in a fresh sandbox."""

    kind: Literal["tool"]
    tool: Identifier
    input: dict[str, JsonField] = Field(default_factory=dict, description="argument → binding")


class ReviewStep(_StepBase):
    """A durable wait for a person's decision."""

    kind: Literal["review"]
    title: str
    show: dict[str, JsonField] = Field(default_factory=dict, description="values shown to the reviewer: name → binding")
    role: str = Field(default="reviewer", description="role a principal needs to decide")
    approves: Identifier | Literal[False] | None = Field(
        default=None,
        description="the later tool step whose call this review approves, all of whose bound arguments it shows; absent: the "
        "next one with a mutating tool; false: none",
    )
    on_reject: Literal["fail", "continue"] = Field(
        default="fail", description='"continue" makes the decision a fact, `<id>.approved`, to branch on'
    )
    deadline: Seconds | None = Field(default=None, description="seconds for the decision; then the step fails")


class WaitStep(_StepBase):
    """A durable wait for a duration, a moment or a signal. Exactly one of `duration`, `until`, `signal`."""

    kind: Literal["wait"]
    duration: Seconds | None = Field(default=None, description="seconds")
    until: str | None = Field(
        default=None, description="a moment: ISO 8601 with an offset, or a reference to a number, seconds since 1970"
    )
    signal: Identifier | None = Field(default=None, description="name of a signal that is sent to the run")
    payload: JsonSchema = Field(default_factory=dict, description="JSON Schema of the signal's payload")
    timeout: Seconds | None = Field(default=None, description="seconds to wait for the signal")
    on_timeout: Literal["fail", "continue"] = Field(
        default="fail", description='"continue" makes it a fact, `<id>.received`, to branch on'
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(one is not None for one in (self.duration, self.until, self.signal)) != 1:
            raise ValueError("a wait has exactly one of duration, until, signal")
        if self.signal is None and (self.timeout is not None or self.payload):
            raise ValueError("only a wait for a signal has a timeout and a payload; remove them")
        return self


class ParallelStep(_StepBase):
    """Branches that run concurrently; complete when all are."""

    kind: Literal["parallel"]
    branches: dict[Identifier, Steps] = Field(min_length=1)


class BranchCase(Part):
    when: str = Field(description="CEL over facts, such as `classify.urgency >= 4`")
    steps: Steps


class BranchStep(_StepBase):
    """Runs the first case whose condition holds, else `otherwise`."""

    kind: Literal["branch"]
    cases: list[BranchCase] = Field(min_length=1)
    otherwise: Steps = Field(default_factory=list)


class MapStep(_StepBase):
    """The same steps for every item of a list; inside, `$item` is the item and `$index` its position, from 0.

    Its facts are `count`, `succeeded` and `failed`; `$steps.<id>` is the list of results, null for an item that failed.
    With `on_item_failure: continue`, the effects of a failed item are compensated, and the other items continue.
    """

    kind: Literal["map"]
    items: str = Field(description="reference to a list")
    max_items: int = Field(default=1000, ge=1, le=10_000, description="a longer list is refused")
    concurrency: int = Field(default=8, ge=1, le=1000, description="maximum number of concurrent items")
    on_item_failure: Literal["fail", "continue"] = "fail"
    steps: Steps = Field(min_length=1)
    result: JsonField = Field(default=None, description="binding of one item's result; absent: the last step's output")


class LoopStep(_StepBase):
    """Steps repeated until a condition holds, at most `max_iterations` times; `$last.<id>` reads the previous iteration.

    Its facts are `iterations` and `met`.
    """

    kind: Literal["loop"]
    until: str = Field(description="CEL over facts, evaluated after each iteration")
    max_iterations: int = Field(ge=1, le=1000, description="hard bound")
    on_limit: Literal["fail", "continue"] = "fail"
    steps: Steps = Field(min_length=1)


class SubworkflowStep(_StepBase):
    """Another workflow of the project inside this run: its own steps with this run's budget, deadline, journal and audit log.

    `$steps.<id>.<name>` reads its output. Its tools must be in this workflow's allow list too.
    """

    kind: Literal["subworkflow"]
    workflow: Identifier
    input: dict[str, JsonField] = Field(default_factory=dict, description="field of its input → binding")


WorkStep = ModelStep | AgentStep | ToolStep
ContainerStep = ParallelStep | BranchStep | MapStep | LoopStep | SubworkflowStep
CONTAINERS = (ParallelStep, BranchStep, MapStep, LoopStep, SubworkflowStep, AgentStep)
"""Steps that contain others; an agent contains its turns and calls."""
Step = Annotated[WorkStep | ReviewStep | WaitStep | ContainerStep, Field(discriminator="kind")]
Steps = list[Step]


class Workflow(Part):
    """A workflow: typed steps in order, permitted tools, and output."""

    name: Identifier
    description: str = ""
    input: JsonSchema = Field(description="JSON Schema of the run's input; an object")
    subject: str | None = Field(
        default=None, description="binding to the person the run is about; their key encrypts its values"
    )
    allow: list[Identifier] = Field(default_factory=list, description="the only tools this workflow may call")
    budget: Budget = Budget()
    deadline: Seconds | None = Field(default=None, description="seconds for the whole run; then a partial result")
    on_failure: Literal["compensate", "hold"] = Field(
        default="compensate",
        description='"hold": a step that finally failed waits in the dead-letter queue for an operator, and nothing is compensated',
    )
    steps: Steps = Field(min_length=1)
    output: dict[str, JsonField] = Field(
        default_factory=dict, description="name → binding; null where the step did not run"
    )


for _model in (ParallelStep, BranchCase, BranchStep, MapStep, LoopStep, Workflow):
    _model.model_rebuild()
