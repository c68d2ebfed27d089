"""The small world of the scenarios: four tools that promise different things, a prompt, a policy; and the project's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engines.harness import PERMIT_ALL, write
from interlock.base.settings import Settings
from interlock.definitions.project import read_project
from interlock.definitions.versions import Definition, Version

from .scenario import Scenario

_RESULT = {"type": "object", "properties": {"ok": {"type": "boolean"}, "n": {"type": "number"}}}
_PROMISES: dict[str, dict[str, Any]] = {
    "look": {"effect": "pure"},
    "notify": {"effect": "mutating"},
    "charge": {"effect": "mutating", "compensate": True, "honours_idempotency": True},
    "book": {"effect": "mutating", "compensate": True, "probe": True},
}
"""look changes nothing; notify cannot be undone, repeated or asked; charge can be undone and repeated, book undone and asked."""

_INPUT = {
    "type": "object",
    "properties": {
        "level": {"type": "integer"},
        "urgent": {"type": "boolean"},
        "moment": {"type": "number"},
        "items": {"type": "array"},
        "text": {"type": "string"},
    },
    "additionalProperties": False,
}
_PROMPT = {"slots": {}, "messages": [{"role": "user", "content": "Say something."}]}
MODELS = {"default": "openai:one", "second": "openai:two"}
"""Nobody calls them: the scripted kernel answers."""


def write_project(directory: Path, scenarios: list[Scenario]) -> Path:
    """A project with a workflow for every scenario, named after it, and the workflows inside them."""
    files: dict[str, Any] = {"prompts/say.yaml": _PROMPT}
    for name, promises in _PROMISES.items():
        contract = {"name": name, "description": name, "input": {"type": "object"}, "output": _RESULT, **promises}
        files[f"tools/{name}/tool.yaml"] = contract
    for scenario in scenarios:
        workflows = {scenario.workflow_name: scenario.workflow, **scenario.workflows}
        for name, workflow in workflows.items():
            files[f"workflows/{name}.yaml"] = _completed(name, workflow)
    texts = {path: json.dumps(content) for path, content in files.items()}  # JSON is YAML
    code = {f"tools/{name}/main.py": _code(promises) for name, promises in _PROMISES.items()}
    write(directory, {**texts, **code, "policies/main.cedar": PERMIT_ALL})
    return directory


def _code(promises: dict[str, Any]) -> str:
    """What keeps the promises in form; nobody runs it."""
    functions = ["run", *(name for name in ("compensate", "probe") if promises.get(name))]
    return "".join(f"def {name}(context): ...\n" for name in functions)


def _completed(name: str, workflow: dict[str, Any]) -> dict[str, Any]:
    """The workflow with what all of them share: input, tools allowed, prompts and schemas of what models answer."""
    steps = _asking(workflow["steps"])
    return {"name": name, "input": _INPUT, "allow": sorted(_PROMISES), **workflow, "steps": steps}


def _asking(tree: Any) -> Any:
    if isinstance(tree, list):
        return [_asking(one) for one in tree]
    if not isinstance(tree, dict):
        return tree
    shared = {"prompt": "say", "output": _RESULT} if tree.get("kind") in {"model", "agent"} else {}
    return {**shared, **{name: _asking(value) for name, value in tree.items()}}


def compile_versions(project: Path) -> dict[str, Version]:
    """Workflow → its version, as a deployment would make it; raises InvalidSpec for one that could not be deployed."""
    definitions: dict[str, Definition] = dict(read_project(project, Settings(models=MODELS)).definitions)
    return {name: Version.compile(definition) for name, definition in definitions.items()}
