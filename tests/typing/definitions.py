"""A user's program that reads and makes definitions. Checked by mypy, not run."""

from typing import Literal, assert_type

from interlock.workflows.contracts import ToolContract
from interlock.workflows.prompts import Prompt, PromptSpec, Turn, compile_prompt
from interlock.workflows.source import Source, parse_yaml, validate
from interlock.workflows.spec import Budget, ModelStep, RetryPolicy, ReviewStep, ToolStep, Workflow


def read(text: str) -> Workflow:
    source = parse_yaml(text, "workflows/answer.yaml")
    assert_type(source, Source)
    assert_type(source.line(["steps", 0]), int)
    return validate(Workflow, source)


def tools_of(workflow: Workflow) -> list[str]:
    found = []
    for step in workflow.steps:
        assert_type(step.id, str)
        assert_type(step.on_failure, Literal["fail", "continue"])
        if step.kind == "tool":
            assert_type(step, ToolStep)
            found.append(step.tool)
        elif isinstance(step, ModelStep):
            assert_type(step.retry, RetryPolicy)
            assert_type(step.deadline, float | None)
    return found


def make() -> Workflow:
    ask = ReviewStep(id="ask", kind="review", title="Send it?", show={"text": "$input.text"})
    return Workflow(name="ask", input={"type": "object"}, steps=[ask], budget=Budget(tokens=4000), output={})


def prompt() -> Prompt:
    turns = [Turn(role="system", content="Be brief."), Turn(role="user", content="{{ question }}")]
    compiled = compile_prompt("answer", PromptSpec(slots={"question": {"type": "string"}}, messages=turns))
    assert_type(compiled.render({"question": "Why?"}), list[tuple[str, str]])
    return compiled


def contract(text: str) -> bool:
    found = validate(ToolContract, parse_yaml(text, "tools/search/tool.yaml"))
    assert_type(found, ToolContract)
    return found.mutating


def mistakes(workflow: Workflow) -> None:
    RetryPolicy(attempts=3)  # type: ignore[call-arg]
    ReviewStep(id="ask", kind="tool", title="Send it?")  # type: ignore[arg-type]
    Turn(role="human", content="Hello")  # type: ignore[arg-type]
    str(workflow.steps[0].tool)  # type: ignore[union-attr]
