"""The workflow language: a workflow is data. `interlock schema` prints this module as JSON Schema."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

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
    """Base of everything in a definition: unknown fields are refused, instances never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RetryPolicy(Part):
    """How a step is tried again: exponential backoff with full jitter, within the run's retry budget."""

    max_attempts: int = Field(default=3, ge=1, le=20, description="attempts in all, the first included")
    backoff: Seconds = Field(default=1.0, description="seconds before the second attempt, at most")
    max_backoff: Seconds = Field(default=60.0, description="upper bound of one wait, seconds")


class Budget(Part):
    """Hard limits of one run; at 100 % the run ends with a partial result."""

    tokens: int | None = Field(default=None, ge=1, description="input and output tokens of all model calls")
    usd: float | None = Field(default=None, gt=0, description="money for all model calls, USD")
    retries: int = Field(default=10, ge=0, le=1000, description="retries over all steps (default from R4)")


class _StepBase(Part):
    id: Identifier
    description: str = ""


class _WorkStep(_StepBase):
    retry: RetryPolicy = RetryPolicy()


class ModelStep(_WorkStep):
    """One model call whose answer fits a schema."""

    kind: Literal["model"]
    model: str = Field(default="default", description="alias from the settings' models")
    prompt: Identifier = Field(description="name of a file in prompts/")
    values: dict[str, Any] = Field(default_factory=dict, description="slot → binding")
    output: JsonSchema = Field(description="JSON Schema of the answer; an object")
    max_tokens: int = Field(default=512, ge=1, le=200_000)
    temperature: float = Field(default=0.0, ge=0, le=2)
    timeout: Seconds = 60.0


class ToolStep(_WorkStep):
    """One tool call in a fresh sandbox."""

    kind: Literal["tool"]
    tool: Identifier
    input: dict[str, Any] = Field(default_factory=dict, description="argument → binding")


class ReviewStep(_StepBase):
    """Waits, durably, for a person."""

    kind: Literal["review"]
    title: str
    show: dict[str, Any] = Field(default_factory=dict, description="what the reviewer sees: name → binding")
    role: str = Field(default="reviewer", description="role a principal needs to decide")
    on_reject: Literal["fail", "continue"] = Field(
        default="fail", description='"continue" makes the decision a fact, `<id>.approved`, to branch on'
    )


class ParallelStep(_StepBase):
    """Branches that run at once; done when all are."""

    kind: Literal["parallel"]
    branches: dict[Identifier, Steps] = Field(min_length=1)


class Case(Part):
    when: str = Field(description="CEL over facts, such as `classify.urgency >= 4`")
    steps: Steps


class BranchStep(_StepBase):
    """Takes the first case whose condition holds, else `otherwise`."""

    kind: Literal["branch"]
    cases: list[Case] = Field(min_length=1)
    otherwise: Steps = Field(default_factory=list)


Step = Annotated[ModelStep | ToolStep | ReviewStep | ParallelStep | BranchStep, Field(discriminator="kind")]
Steps = list[Step]


class Workflow(Part):
    """A workflow: typed steps in order, what they may touch, and what comes out."""

    name: Identifier
    description: str = ""
    input: JsonSchema = Field(description="JSON Schema of the run's input; an object")
    subject: str | None = Field(
        default=None, description="binding to the person the run is about; their key encrypts its values"
    )
    allow: list[Identifier] = Field(default_factory=list, description="the only tools this workflow may call")
    budget: Budget = Budget()
    deadline: Seconds | None = Field(default=None, description="seconds for the whole run; then a partial result")
    steps: Steps = Field(min_length=1)
    output: dict[str, Any] = Field(default_factory=dict, description="name → binding; null where the step did not run")


for _model in (ParallelStep, Case, BranchStep, Workflow):
    _model.model_rebuild()
