"""A project directory, read and checked: workflows, prompts, tools, policies → definitions ready to deploy.

workflows/*.yaml   prompts/*.yaml   tools/<name>/{tool.yaml,main.py}   policies/*.cedar   interlock.toml
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interlock.base.errors import InvalidSpec
from interlock.base.settings import Settings
from interlock.gateway.catalog import parse_pin
from interlock.policy.cedar import DEFAULT_POLICY, CedarPolicy
from interlock.runtime.versions import Definition
from interlock.tools.bundles import pack
from interlock.workflows.check import check_workflow
from interlock.workflows.contracts import ToolContract
from interlock.workflows.prompts import Prompt, PromptSpec, compile_prompt
from interlock.workflows.source import Source, parse_yaml, validate
from interlock.workflows.spec import Workflow

_VARIABLE = re.compile(r"\$\{([a-z][a-z0-9_]*)\}")


@dataclass(frozen=True, slots=True)
class Project:
    """What a directory defines.

    Attributes:
        bundles: digest → archive of every tool's code.
    """

    definitions: Mapping[str, Definition]
    bundles: Mapping[str, bytes]


def read_project(directory: Path, settings: Settings) -> Project:
    """Reads and checks everything; nothing is half-accepted.

    Raises:
        InvalidSpec: one line per fault, each `file:line: field: what is wrong; the mend`.
    """
    require_project(directory)
    faults: list[str] = []
    prompts = _prompts(directory, faults)
    contracts, bundles = _tools(directory, settings.variables, faults)
    sources = _workflows(directory, settings.variables, faults)
    policy = _policy(directory)
    for pin in settings.models.values():
        parse_pin(pin)
    if faults:
        raise InvalidSpec("\n".join(faults))  # whether the parts fit each other is no question while one of them is broken
    for source, workflow in sources:
        problems = check_workflow(
            workflow,
            prompts=prompts,
            tools={name: contract for name, (contract, _) in contracts.items()},
            models=settings.models,
        )
        faults += [source.complaint(problem.path, problem.message) for problem in problems]
    if faults:
        raise InvalidSpec("\n".join(faults))
    definitions = {
        workflow.name: Definition.build(
            workflow,
            prompts={name: prompt.spec for name, prompt in prompts.items()},
            tools={name: contracts[name] for name in workflow.allow},
            policy=policy,
            models=settings.models,
        )
        for _, workflow in sources
    }
    used = {digest for definition in definitions.values() for digest in definition.bundles}
    return Project(definitions, {digest: content for digest, content in bundles.items() if digest in used})


def require_project(directory: Path) -> None:
    """Raises:
    InvalidSpec: the directory is no project.
    """
    if not (directory / "workflows").is_dir():
        raise InvalidSpec(f"{directory}: has no workflows directory; run `interlock init` or change to a project")


def _workflows(directory: Path, variables: Mapping[str, str], faults: list[str]) -> list[tuple[Source, Workflow]]:
    found: dict[str, tuple[Source, Workflow]] = {}
    for path in sorted((directory / "workflows").glob("*.y*ml")):
        try:
            source = _with_variables(_with_files(_parse(path, directory), directory), variables)
            workflow = validate(Workflow, source)
        except InvalidSpec as error:
            faults.append(error.message)
            continue
        if workflow.name in found:
            faults.append(
                source.complaint(["name"], f'"{workflow.name}" is also in {found[workflow.name][0].name}; rename one')
            )
        found[workflow.name] = (source, workflow)
    if not found and not faults:
        faults.append(f"{directory / 'workflows'}: holds no workflow; add one as NAME.yaml")
    return list(found.values())


def _prompts(directory: Path, faults: list[str]) -> dict[str, Prompt]:
    prompts = {}
    for path in sorted((directory / "prompts").glob("*.y*ml")):
        try:
            prompts[path.stem] = compile_prompt(path.stem, validate(PromptSpec, _parse(path, directory)))
        except InvalidSpec as error:
            faults.append(
                error.message
                if error.message.startswith(str(_name(path, directory)))
                else f"{_name(path, directory)}: {error.message}"
            )
    return prompts


def _tools(
    directory: Path, variables: Mapping[str, str], faults: list[str]
) -> tuple[dict[str, tuple[ToolContract, str]], dict[str, bytes]]:
    contracts: dict[str, tuple[ToolContract, str]] = {}
    bundles: dict[str, bytes] = {}
    for path in sorted((directory / "tools").glob("*/tool.yaml")):
        try:
            source = _with_variables(_with_files(_parse(path, directory), directory), variables)
            contract = validate(ToolContract, source)
            if contract.name != path.parent.name:
                raise InvalidSpec(
                    source.complaint(
                        ["name"], f'is "{contract.name}" in directory "{path.parent.name}"; make them equal'
                    )
                )
            digest, packed = pack(path.parent)
        except InvalidSpec as error:
            faults.append(error.message)
            continue
        contracts[contract.name] = (contract, digest)
        bundles[digest] = packed
    return contracts, bundles


def _policy(directory: Path) -> str:
    paths = sorted((directory / "policies").glob("*.cedar"))
    if not paths:
        return DEFAULT_POLICY
    text = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    CedarPolicy(text, source=", ".join(_name(path, directory) for path in paths))
    return text


def _parse(path: Path, directory: Path) -> Source:
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), _name(path, directory))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSpec(f"{_name(path, directory)}: cannot be read: {error}") from error


def _with_variables(source: Source, variables: Mapping[str, str]) -> Source:
    """The source with `${name}` in every string replaced by the settings' variable of that name."""

    def replace(node: Any, path: list[str | int]) -> Any:
        if isinstance(node, dict):
            return {key: replace(value, [*path, key]) for key, value in node.items()}
        if isinstance(node, list):
            return [replace(value, [*path, index]) for index, value in enumerate(node)]
        if not isinstance(node, str):
            return node
        for name in _VARIABLE.findall(node):
            if name not in variables:
                raise InvalidSpec(
                    source.complaint(path, f"${{{name}}} is not among the settings' variables; add it to [variables]")
                )
        return _VARIABLE.sub(lambda match: variables[match[1]], node)

    return source.with_data(replace(source.data, []))


def _with_files(source: Source, directory: Path) -> Source:
    """The source with every `{"$file": "schemas/x.json"}` replaced by that file's JSON."""

    def replace(node: Any, path: list[str | int]) -> Any:
        if isinstance(node, dict):
            if set(node) == {"$file"}:
                return _load(node["$file"], path)
            return {key: replace(value, [*path, key]) for key, value in node.items()}
        if isinstance(node, list):
            return [replace(value, [*path, index]) for index, value in enumerate(node)]
        return node

    def _load(name: Any, path: list[str | int]) -> Any:
        target = (directory / str(name)).resolve()
        if not target.is_relative_to(directory.resolve()):
            raise InvalidSpec(source.complaint(path, f'"{name}" is outside the project; copy the file into it'))
        try:
            return json.loads(target.read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidSpec(source.complaint(path, f'"{name}" cannot be read: {error.strerror}')) from error
        except ValueError as error:
            raise InvalidSpec(source.complaint(path, f'"{name}" is not JSON: {error}')) from error

    return source.with_data(replace(source.data, []))


def _name(path: Path, directory: Path) -> str:
    return path.relative_to(directory).as_posix()
