"""Reading and checking a project directory: workflows, prompts, tools, policies → definitions ready to deploy.

workflows/*.yaml   prompts/*.yaml   tools/<name>/{tool.yaml,main.py}   policies/*.cedar   interlock.toml
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interlock.base.errors import InvalidSpec
from interlock.base.files import read_text, why_unreadable
from interlock.base.settings import SETTINGS_FILE, Settings
from interlock.definitions.approvals import needs_approval
from interlock.definitions.budgets import unpriced_models
from interlock.definitions.policies import read_policies
from interlock.definitions.versions import Definition
from interlock.gateway.catalog import has_batches, parse_pin, provider_of
from interlock.identity.principal import ROLES
from interlock.policy.cedar import DEFAULT_POLICY, CedarPolicy
from interlock.policy.schema import Names
from interlock.sandbox.destinations import parse_authority
from interlock.tools.bundles import missing_functions, pack
from interlock.tools.code_check import missing_imports, signature_faults
from interlock.workflows.check import check_workflow
from interlock.workflows.check_approvals import ApprovalCheck
from interlock.workflows.contracts import ToolContract
from interlock.workflows.prompts import Prompt, PromptSpec, compile_prompt
from interlock.workflows.source import Source, parse_yaml, validate
from interlock.workflows.spec import SubworkflowStep, Workflow
from interlock.workflows.walk import every

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True, slots=True)
class Project:
    """Definitions of a project directory.

    Attributes:
        bundles: digest → archive of every tool's code.
        names: what its policies may name.
        policy: text of its policies; None if it has none.
        notes: what an author may want to know, each with its place; none of it is a fault.
    """

    definitions: Mapping[str, Definition]
    bundles: Mapping[str, bytes]
    names: Names
    policy: str | None = None
    notes: Sequence[str] = ()


def read_project(directory: Path, settings: Settings) -> Project:
    """Reads and checks the whole project; it is accepted or refused as a whole.

    Raises:
        InvalidSpec: one line per fault, each `file:line: field: fault; correction`.
    """
    project, faults = read_sound_parts(directory, settings)
    if faults:
        raise InvalidSpec("\n".join(faults))
    return project


def read_sound_parts(directory: Path, settings: Settings) -> tuple[Project, list[str]]:
    """The workflows of a project that have no fault and use nothing faulty, and all faults.

    With a fault in the policies or the settings there are none: it is unknown what the others would be allowed to do.

    Raises:
        InvalidSpec: the directory is not a project.
    """
    require_project(directory)
    faults: list[str] = []
    prompts = _prompts(directory, faults)
    contracts, bundles = _tools(directory, settings.variables, faults)
    sources = _workflows(directory, settings.variables, faults)
    known_tools = frozenset(path.parent.name for path in _files(directory / "tools", "*/tool.yaml"))  # the faulty too
    names = Names(known_tools, frozenset(settings.models), ROLES)
    parts_are_faulty, blocking = bool(faults), list[str]()
    policy = read_policies(directory, _files(directory / "policies", "*.cedar"), names, blocking)
    for pin in settings.models.values():
        try:
            provider_of(parse_pin(pin), settings.providers)
        except InvalidSpec as error:
            blocking.append(f"{SETTINGS_FILE}: {error.message}")
    if blocking:
        return Project({}, {}, names), faults + blocking
    known = {workflow.name: workflow for _, workflow in sources}
    tools = {name: contract for name, (contract, _) in contracts.items()}
    engine = CedarPolicy(DEFAULT_POLICY if policy is None else policy)
    sound: dict[str, Workflow] = {}
    for source, workflow in sources:
        problems = check_workflow(
            workflow,
            prompts=prompts,
            tools=tools,
            models=settings.models,
            workflows=known,
            roles=ROLES,
            unbatched=[alias for alias, pin in settings.models.items() if not has_batches(pin)],
            needs_approval=needs_approval(engine, workflow, tools),
        )
        found = [source.complaint(problem.path, problem.message) for problem in problems]
        # Without problems no subworkflow leads back to its parent.
        found = found or _unpriced(source, workflow, settings, known)
        if not found:
            sound[workflow.name] = workflow
        elif not parts_are_faulty:  # else it may follow from the faulty part
            faults += found
    whole = [one for one in sources if _is_sound(one[1], sound)]
    definitions = {
        workflow.name: Definition.build(
            workflow,
            prompts={name: prompt.spec for name, prompt in prompts.items()},
            tools={name: contracts[name] for name in workflow.allow},
            models=settings.models,
            workflows=known,
        )
        for _, workflow in whole
    }
    notes = [
        source.complaint(note.path, note.message)
        for source, workflow in whole
        for note in ApprovalCheck(workflow, tools, needs_approval(engine, workflow, tools)).notes()
    ]
    notes += _imports(directory, contracts)
    used = {digest for definition in definitions.values() for digest in definition.bundles}
    shipped = {digest: content for digest, content in bundles.items() if digest in used}
    return Project(definitions, shipped, names, policy, notes), faults


def _is_sound(workflow: Workflow, sound: Mapping[str, Workflow]) -> bool:
    """True if neither the workflow nor a subworkflow in it, at any depth, has a fault."""
    children = (step.workflow for step in every(workflow.steps) if isinstance(step, SubworkflowStep))
    return workflow.name in sound and all(name in sound and _is_sound(sound[name], sound) for name in children)


def _unpriced(source: Source, workflow: Workflow, settings: Settings, known: Mapping[str, Workflow]) -> list[str]:
    return [
        source.complaint(
            ["budget", "usd"],
            f'model "{alias}" = {settings.models[alias]} has no known price, so a budget in USD refuses all its calls; '
            "use budget.tokens, or remove usd",
        )
        for alias in unpriced_models(workflow, settings.models, known)
    ]


def _imports(directory: Path, contracts: Mapping[str, tuple[ToolContract, str]]) -> list[str]:
    return [
        f"tools/{tool}/main.py:{line}: imports {module}, which is neither in the tool's directory nor installed here; "
        "copy it into the directory, or install it where the workers run"
        for tool in contracts
        for line, module in missing_imports(directory / "tools" / tool / "main.py")
    ]


def require_project(directory: Path) -> None:
    """Raises:
    InvalidSpec: the directory is not a project.
    """
    if not (directory / "workflows").is_dir():
        raise InvalidSpec(f"{directory}: has no workflows directory; run `interlock init` or change to a project")


def _workflows(directory: Path, variables: Mapping[str, str], faults: list[str]) -> list[tuple[Source, Workflow]]:
    found: dict[str, tuple[Source, Workflow]] = {}
    for path in _files(directory / "workflows", "*.y*ml"):
        try:
            source = _storable(_with_variables(_with_files(_parse(path, directory), directory), variables))
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
    prompts: dict[str, Prompt] = {}
    for path in _files(directory / "prompts", "*.y*ml"):
        try:
            source = _storable(_parse(path, directory))
            spec = validate(PromptSpec, source)
        except InvalidSpec as error:
            faults.append(error.message)
            continue
        if path.stem in prompts:
            faults.append(source.complaint([], f'there is another prompt "{path.stem}"; rename one of the files'))
        try:
            prompts[path.stem] = compile_prompt(path.stem, spec)
        except InvalidSpec as error:
            # The message has no file name; it names the turn, or else is about the slots.
            turn = re.search(r": messages\.(\d+): ", error.message)
            place: list[str | int] = ["messages", int(turn[1]), "content"] if turn else ["slots"]
            faults.append(f"{source.name}:{source.line(place)}: {error.message}")
    return prompts


def _tools(
    directory: Path, variables: Mapping[str, str], faults: list[str]
) -> tuple[dict[str, tuple[ToolContract, str]], dict[str, bytes]]:
    contracts: dict[str, tuple[ToolContract, str]] = {}
    bundles: dict[str, bytes] = {}
    for path in _files(directory / "tools", "*/tool.yaml"):
        try:
            source = _storable(_with_variables(_with_files(_parse(path, directory), directory), variables))
            contract = validate(ToolContract, source)
            if contract.name != path.parent.name:
                raise InvalidSpec(
                    source.complaint(
                        ["name"], f'is "{contract.name}" in directory "{path.parent.name}"; make them equal'
                    )
                )
            _check_egress(contract, source)
            digest, packed = pack(path.parent)
            _check_functions(contract, source, path.parent / "main.py")
        except OSError as error:
            faults.append(f"{_name(path, directory)}: its directory cannot be read: {error}")
            continue
        except InvalidSpec as error:
            faults.append(error.message)
            continue
        contracts[contract.name] = (contract, digest)
        bundles[digest] = packed
    return contracts, bundles


def _check_egress(contract: ToolContract, source: Source) -> None:
    for index, place in enumerate(contract.egress):
        try:
            parse_authority(place)
        except ValueError as error:
            raise InvalidSpec(source.complaint(["egress", index], str(error))) from error


def _check_functions(contract: ToolContract, source: Source, main: Path) -> None:
    for name in missing_functions(main, contract.functions):
        promise = contract.functions[name]
        mend = "define it" if name == "run" else f"define it or remove {promise}"
        raise InvalidSpec(source.complaint([promise], f"main.py has no function {name}; {mend}"))
    faults = signature_faults(main, contract)
    if faults:
        raise InvalidSpec("\n".join(source.complaint(["input"], fault) for fault in faults))


def _files(directory: Path, pattern: str) -> list[Path]:
    """Sorted files of a kind, without hidden ones, which are locks and drafts of editors."""
    return sorted(path for path in directory.glob(pattern) if not path.name.startswith("."))


def _parse(path: Path, directory: Path) -> Source:
    try:
        return parse_yaml(read_text(path), _name(path, directory))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSpec(f"{_name(path, directory)}: cannot be read: {why_unreadable(error)}") from error


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
                near = next((one for one in variables if one.lower() == name.lower()), None)
                mend = f"write ${{{near}}}" if near else "add it to [variables]"
                raise InvalidSpec(source.complaint(path, f"${{{name}}} is not among the settings' variables; {mend}"))
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
        try:
            target = (directory / str(name)).resolve()
            if not target.is_relative_to(directory.resolve()):
                raise InvalidSpec(source.complaint(path, f'"{name}" is outside the project; copy the file into it'))
            return json.loads(read_text(target), parse_constant=_refuse_constant)
        except OSError as error:
            raise InvalidSpec(source.complaint(path, f'"{name}" cannot be read: {error.strerror}')) from error
        except (ValueError, RecursionError) as error:
            raise InvalidSpec(source.complaint(path, f'"{name}" is not JSON: {error}')) from error

    return source.with_data(replace(source.data, []))


def _storable(source: Source) -> Source:
    """The source, if the database can store every text in it; an escape such as "\\ud800" or "\\0" makes a text invalid."""

    def look(node: Any, path: list[str | int]) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                look(key, path)
                look(value, [*path, key])
        elif isinstance(node, list):
            for index, value in enumerate(node):
                look(value, [*path, index])
        elif isinstance(node, str) and ("\0" in node or any("\ud800" <= character <= "\udfff" for character in node)):
            raise InvalidSpec(source.complaint(path, "holds a NUL or half of a surrogate pair; remove it"))

    look(source.data, [])
    return source


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is Python's, not JSON's")


def _name(path: Path, directory: Path) -> str:
    return path.relative_to(directory).as_posix()
