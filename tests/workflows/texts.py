"""A workflow that uses the whole language, with the prompt and the tools it needs."""

from __future__ import annotations

from typing import Any

from interlock.workflows.contracts import ToolContract
from interlock.workflows.prompts import Prompt, PromptSpec, compile_prompt

WORKFLOW = """\
name: triage                      # line 1
description: Sorts a message, then acts on it.
input:
  type: object
  properties:
    text: {type: string, maxLength: 4000}
    customer_id: {type: string}
    amount: {type: number}
  required: [text, customer_id]
  additionalProperties: false
subject: $input.customer_id
allow: [lookup, refund]
budget: {tokens: 8000, usd: 0.5, retries: 10}
deadline: 3600
steps:
  - id: gather
    kind: parallel
    branches:
      one:
        - {id: customer, kind: tool, tool: lookup, input: {customer_id: $input.customer_id}}
      two:
        - id: classify
          kind: model
          prompt: sort
          values:
            text: $input.text
          output:
            type: object
            properties:
              urgency: {type: integer}
              wants_refund: {type: boolean}
              summary: {type: string}
          retry: {max_attempts: 4, backoff: 0.5, max_backoff: 10}
  - id: wanted
    kind: branch
    cases:
      - when: classify.wants_refund && input.amount < 100.0
        steps:
          - id: approve
            kind: review
            title: Pay it back?
            show: {message: $input.text, name: $steps.customer.name}
            on_reject: continue
          - id: decided
            kind: branch
            cases:
              - when: approve.approved
                steps:
                  - id: pay
                    kind: tool
                    tool: refund
                    input: {customer_id: $input.customer_id, amount: $input.amount, note: $$ paid}
    otherwise: []
output:
  urgency: $steps.classify.urgency
  paid: $steps.pay.id
  run: $run.id
"""

_OBJECT: dict[str, Any] = {"type": "object", "additionalProperties": False}
TOOLS = {
    "lookup": ToolContract(
        name="lookup",
        description="",
        effect="pure",
        input={**_OBJECT, "properties": {"customer_id": {"type": "string"}}, "required": ["customer_id"]},
        output={**_OBJECT, "properties": {"name": {"type": "string"}, "vip": {"type": "boolean"}}},
    ),
    "refund": ToolContract(
        name="refund",
        description="",
        effect="mutating",
        compensate=True,
        input={
            **_OBJECT,
            "properties": {"customer_id": {"type": "string"}, "amount": {"type": "number"}, "note": {"type": "string"}},
            "required": ["customer_id", "amount"],
        },
        output={**_OBJECT, "properties": {"id": {"type": "string"}}},
    ),
}
MODELS = ["default", "large"]


def prompt(name: str, content: str, **slots: Any) -> Prompt:
    """A prompt of one user message."""
    spec = PromptSpec.model_validate({"slots": slots, "messages": [{"role": "user", "content": content}]})
    return compile_prompt(name, spec)


PROMPTS = {"sort": prompt("sort", "Sort this: {{ text }}", text={"type": "string"})}
