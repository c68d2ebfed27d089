"""Workflows of a chaos run around three tools with different contracts, and their expected results.

The expectations here are a second, simpler model: for each kind of run its final status, and for each of its items
whether the counter must show one effect, or one effect and its reversal.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

from interlock.chaos.hostile import ODD_CODE, TOOL_CODE

TOOL_TIMEOUT = 5.0  # seconds; also the maximum remaining duration of a call whose worker died

_CODE = '''\
"""Performs one effect at the counter. Connection failures are transient, so they raise Retry."""

import http.client
import json
import os
import urllib.error
import urllib.request

from interlock_tool import Retry

PATH = "{path}"


def _call(method, url, body=None, key=None):
    headers = {{"Content-Type": "application/json", "Idempotency-Key": key or ""}}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers=headers, method=method)
    request.set_proxy(os.environ["HTTP_PROXY"].partition("://")[2], "http")
    try:
        with urllib.request.urlopen(request, timeout={timeout}) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise Retry(f"the counter answered {{error.code}}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Retry(f"the counter gave no answer: {{error}}") from None


def run(order, item, counter, context):
    done = _call("POST", f"{{counter}}/{{PATH}}/effects", {{"business": f"{{order}}/{{item}}"}}, context["idempotency_key"])
    return {{"effect": done["effect"], "receipt": "x" * {receipt}}}


def probe(input, context):
    found = _call("GET", f"{{input['counter']}}/effects?key={{context['idempotency_key']}}")["effects"]
    return {{"happened": bool(found), "output": {{"effect": found[0]["effect"]}} if found else None}}


def compensate(input, output, context):
    _call("POST", f"{{input['counter']}}/effects/{{output['effect']}}/reversal", {{}}, context["idempotency_key"])
'''

_CONTRACT = """\
name: {name}
description: Counts one piece of work.
effect: mutating
timeout: {timeout}
egress: ["${{counter}}"]
{promises}input:
  type: object
  properties: {{order: {{type: string}}, item: {{type: string}}, counter: {{type: string}}}}
  required: [order, item, counter]
output: {{type: object, properties: {{effect: {{type: integer}}, receipt: {{type: string}}}}, required: [effect]}}
"""

_PROMPT = """\
slots:
  order: {type: string, maxLength: 200}
messages:
  - {role: user, content: "Is order {{ order }} fit to be worked on?"}
"""

_ODD_CONTRACT = """\
name: odd
description: Gives an answer that must not be kept.
effect: pure
input: {type: object, properties: {order: {type: string}}, required: [order]}
output: {type: object, additionalProperties: {type: integer}}
"""

# Replaces the answer after the effect was performed and counted.
_GARBLED = """

performed = run


def run(order, item, counter, context):
    return {**performed(order, item, counter, context), **hostile(order)}
"""

_WORKFLOW = """\
name: {name}
input:
  type: object
  properties: {{order: {{type: string}}}}
  required: [order]
  additionalProperties: false
allow: [{tools}]
budget: {{retries: 1000}}
steps:
{steps}
output: {{}}
"""

# Faults last two seconds at most; twenty attempts with these waits outlast several of them.
_RETRY = "retry: {max_attempts: 20, backoff: 0.2, max_backoff: 1.0}"


def _work(item: str, tool: str) -> str:
    return (
        f"- {{id: {item}, kind: tool, tool: {tool}, {_RETRY},\n"
        f"   input: {{order: $input.order, item: {item}, counter: 'http://${{counter}}'}}}}\n"
    )


def _ask(step: str) -> str:
    return f"- {{id: {step}, kind: review, title: Go on?, show: {{order: $input.order}}}}\n"


_THINK = (
    "- {id: think, kind: model, prompt: think, values: {order: $input.order}, max_tokens: 20, timeout: 2,\n"
    f"   output: {{title: think, type: object, required: [fit], properties: {{fit: {{type: boolean}}}}}}, {_RETRY}}}\n"
)


# The provider gives hostile answers to it; then a declared answer takes their place.
_MISLED = (
    "- {id: misled, kind: model, prompt: think, values: {order: $input.order}, max_tokens: 20, timeout: 2,\n"
    "   output: {title: misled, type: object, required: [fit], properties: {fit: {type: boolean}},\n"
    "   additionalProperties: {type: integer}},\n"
    "   retry: {max_attempts: 2, backoff: 0.1}, fallback: [{value: {fit: true}}]}\n"
)

_ODD = (
    "- {id: odd, kind: tool, tool: odd, input: {order: $input.order}, on_failure: continue,\n"
    "   retry: {max_attempts: 1}}\n"
)


def _beside(**branches: str) -> str:
    inner = "".join(f"    {name}:\n{textwrap.indent(steps, ' ' * 6)}" for name, steps in branches.items())
    return f"- id: beside\n  kind: parallel\n  branches:\n{inner}"


@dataclass(frozen=True)
class Kind:
    """A kind of run.

    Attributes:
        items: effects that the counter must show exactly once.
        reject: the review that is rejected, after which all effects must be reversed.
        partial: a step fails and the run goes on without it.
    """

    name: str
    steps: str
    items: tuple[str, ...]
    tools: tuple[str, ...]
    reject: str | None = None
    partial: bool = False

    @property
    def end(self) -> str:
        """The required final status."""
        return "failed" if self.reject else "partial" if self.partial else "succeeded"


KINDS = {
    kind.name: kind
    for kind in (
        Kind("keyed", _work("pay", "honours"), ("pay",), ("honours",)),
        Kind("probed", _work("pay", "probes"), ("pay",), ("probes",)),
        Kind("blind", _work("pay", "promises_nothing"), ("pay",), ("promises_nothing",)),
        Kind("bulky", _work("pay", "prints"), ("pay",), ("prints",)),
        Kind("thought", _THINK + _work("pay", "honours"), ("pay",), ("honours",)),
        Kind("asked", _ask("first") + _ask("second") + _work("pay", "honours"), ("pay",), ("honours",)),
        Kind(
            "beside",
            _beside(left=_work("one", "probes"), right=_ask("ask") + _work("two", "honours"), think=_THINK),
            ("one", "two"),
            ("probes", "honours"),
        ),
        Kind(
            "undone",
            _work("one", "honours") + _work("two", "probes") + _ask("stop"),
            ("one", "two"),
            ("honours", "probes"),
            reject="stop",
        ),
        Kind("misled", _MISLED + _work("pay", "honours"), ("pay",), ("honours",)),
        Kind("garbled", _ODD + _work("pay", "garbles"), ("pay",), ("odd", "garbles"), partial=True),
    )
}

_RECEIPT = 200_000  # characters; a value of more than 128 KiB is an object beside the database

_TOOLS = {
    "garbles": ("honours", "honours_idempotency: true\n"),
    "honours": ("honours", "honours_idempotency: true\ncompensate: true\n"),
    "prints": ("honours", "honours_idempotency: true\n"),
    "probes": ("plain", "probe: true\ncompensate: true\n"),
    "promises_nothing": ("plain", ""),
}


def write_project(directory: Path, *, lying: bool = False) -> None:
    """Writes the project that a chaos run deploys.

    Args:
        lying: the tool `honours` claims to honour keys and does not; the verdict must detect this control.
    """
    files = {"prompts/think.yaml": _PROMPT, "policies/main.cedar": "permit(principal, action, resource);\n"}
    for name, (manner, promises) in _TOOLS.items():
        files[f"tools/{name}/tool.yaml"] = _CONTRACT.format(name=name, promises=promises, timeout=TOOL_TIMEOUT)
        files[f"tools/{name}/main.py"] = _CODE.format(
            path="plain" if lying else manner,
            timeout=TOOL_TIMEOUT * 2,
            receipt=_RECEIPT if name == "prints" else 0,
        )
    files["tools/garbles/main.py"] += "\n\n" + TOOL_CODE.partition('"""\n\n')[2] + _GARBLED
    files["tools/odd/tool.yaml"], files["tools/odd/main.py"] = _ODD_CONTRACT, ODD_CODE
    for kind in KINDS.values():
        steps = textwrap.indent(kind.steps, "  ")
        text = _WORKFLOW.format(name=kind.name, tools=", ".join(kind.tools), steps=steps)
        files[f"workflows/{kind.name}.yaml"] = text
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
