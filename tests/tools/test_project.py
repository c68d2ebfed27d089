"""The reader of a project directory: everything is checked, every fault is named, nothing is half-accepted."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from interlock.base.errors import InvalidSpec
from interlock.base.settings import Settings, load_settings
from interlock.definitions.project import Project, read_project
from interlock.workflows.spec import Workflow

EXAMPLE = Path(__file__).parents[2] / "examples" / "support_triage"

FILES = {
    "workflows/triage.yaml": """\
name: triage
description: "Sorts, at ${place}."
input: {$file: schemas/ticket.json}
allow: [look_up]
steps:
  - {id: look, kind: tool, tool: look_up, input: {text: $input.text}}
  - id: sort
    kind: model
    prompt: sort
    values: {text: $input.text}
    output: {type: object, properties: {kind: {enum: [a, b]}}}
""",
    "prompts/sort.yaml": "slots: {text: {type: string}}\nmessages: [{role: user, content: 'Sort {{ text }}'}]\n",
    "schemas/ticket.json": '{"type": "object", "properties": {"text": {"type": "string"}}}',
    "tools/look_up/main.py": "def run(text): return {}\n",
    "tools/look_up/tool.yaml": """\
name: look_up
description: Looks it up.
effect: pure
egress: ["${place}:443"]
input: {type: object, properties: {text: {type: string}}, required: [text], additionalProperties: false}
output: {type: object}
""",
    "tools/unused/main.py": "def run(): return {}\n",
    "tools/unused/tool.yaml": "name: unused\ndescription: x\neffect: pure\ninput: {type: object}\noutput: {type: object}\n",
    "policies/a.cedar": '@id("models") permit(principal, action, resource);',
    "policies/b.cedar": '@id("never") forbid(principal, action, resource) when { context.workflow == "none" };',
}
SETTINGS = Settings(models={"default": "openai:fake"}, variables={"place": "example.com"})


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        write(tmp_path / "project", name, text)
    return tmp_path / "project"


def write(directory: Path, name: str, text: str | bytes) -> Path:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def edit(directory: Path, name: str, old: str, new: str) -> None:
    text = (directory / name).read_text()
    assert old in text
    write(directory, name, text.replace(old, new, 1))


def read(directory: Path, settings: Settings = SETTINGS) -> Project:
    return read_project(directory, settings)


def faults(directory: Path, settings: Settings = SETTINGS) -> list[str]:
    with pytest.raises(InvalidSpec) as refused:
        read_project(directory, settings)
    assert str(refused.value).strip()
    return str(refused.value).splitlines()


def test_a_project_becomes_definitions_that_hold_all_they_need(directory: Path) -> None:
    project = read(directory)
    assert list(project.definitions) == ["triage"]
    data = project.definitions["triage"].data
    assert Workflow.model_validate(data["workflow"]).description == "Sorts, at example.com."
    assert data["workflow"]["input"] == json.loads(FILES["schemas/ticket.json"])
    assert list(data["prompts"]) == ["sort"]
    assert list(data["tools"]) == ["look_up"]
    assert data["tools"]["look_up"]["contract"]["egress"] == ["example.com:443"]
    assert list(project.bundles) == [data["tools"]["look_up"]["bundle"]], "an unused tool is not shipped"
    assert project.policy is not None
    assert project.policy.index("models") < project.policy.index("never")
    assert data["models"] == {"default": "openai:fake"}


def test_the_version_is_a_digest_of_everything_and_of_nothing_else(directory: Path) -> None:
    def version(settings: Settings = SETTINGS) -> str:
        return read(directory, settings).definitions["triage"].version

    first = version()
    write(directory, "README.md", "not a definition")
    edit(directory, "tools/unused/main.py", "{}", "{1: 1}")
    edit(directory, "workflows/triage.yaml", "allow: [look_up]", "allow: [look_up]  # a comment")
    edit(directory, "policies/b.cedar", "none", "nothing")
    os.utime(directory / "tools" / "look_up" / "main.py", (1, 1))
    assert version() == first
    seen = {first}
    for name, old, new in (
        ("prompts/sort.yaml", "Sort", "Please sort"),
        ("schemas/ticket.json", '"string"', '"string", "maxLength": 9'),
        ("tools/look_up/main.py", "{}", "{1: 1}"),
        ("tools/look_up/tool.yaml", "Looks", "Looked"),
        ("workflows/triage.yaml", "[a, b]", "[b, a]"),
    ):
        edit(directory, name, old, new)
        assert version() not in seen, name
        seen.add(version())
    assert version(SETTINGS.model_copy(update={"variables": {"place": "example.org"}})) not in seen
    assert version(SETTINGS.model_copy(update={"models": {"default": "openai:other"}})) not in seen


def test_a_directory_without_workflows_is_no_project(tmp_path: Path, directory: Path) -> None:
    assert "has no workflows directory" in faults(tmp_path / "none")[0]
    (directory / "workflows" / "triage.yaml").unlink()
    assert faults(directory) == [f"{directory / 'workflows'}: holds no workflow; add one as NAME.yaml"]
    write(tmp_path, "file/workflows", "a file")
    assert "has no workflows directory" in faults(tmp_path / "file")[0]


def test_faults_of_many_files_are_told_together(directory: Path) -> None:
    for name in ("workflows/two.yaml", "prompts/two.yaml", "tools/two/tool.yaml"):
        write(directory, name, b"\xff")
    write(directory, "policies/c.cedar", "permit(;")
    edit(directory, "prompts/sort.yaml", "{{ text }}", "{{ other }}")
    settings = SETTINGS.model_copy(update={"models": {"default": "x", "other": "openai:gpt-4o"}})
    found = faults(directory, settings)
    begins = ["prompts/sort.yaml:1: ", "prompts/two.yaml: ", "tools/two/tool.yaml: ", "workflows/two.yaml: "]
    begins += ["policies/c.cedar:1: ", "interlock.toml: ", "interlock.toml: "]
    assert sorted(line[: len(begin)] for line, begin in zip(sorted(found), sorted(begins), strict=True)) == sorted(
        begins
    )


def test_two_workflows_of_one_name_are_refused(directory: Path) -> None:
    write(directory, "workflows/again.yaml", (directory / "workflows" / "triage.yaml").read_text())
    [fault] = faults(directory)
    assert fault == 'workflows/triage.yaml:1: name: "triage" is also in workflows/again.yaml; rename one'


def test_a_tool_is_called_as_its_directory(directory: Path) -> None:
    (directory / "tools" / "look_up").rename(directory / "tools" / "lookup")
    assert faults(directory)[0] == 'tools/lookup/tool.yaml:1: name: is "look_up" in directory "lookup"; make them equal'
    (directory / "tools" / "lookup").rename(directory / "tools" / "look_up")
    (directory / "tools" / "look_up" / "main.py").unlink()
    assert "look_up: a tool needs a main.py with a function run; add it" in faults(directory)[0]


def test_links_in_a_tool_are_refused(directory: Path) -> None:
    (directory / "tools" / "look_up" / "data").symlink_to("/etc")
    assert "look_up/data: a tool may hold plain files and directories only" in faults(directory)[0]


@pytest.mark.parametrize(
    "name",
    ["../secret.json", "/etc/passwd", "schemas/../../secret.json", "link.json", "folder/secret.json"],
)
def test_a_file_outside_the_project_is_never_read(directory: Path, name: str) -> None:
    write(directory.parent, "secret.json", '{"const": "the secret"}')
    (directory / "link.json").symlink_to("../secret.json")
    (directory / "folder").symlink_to("..", target_is_directory=True)
    edit(directory, "workflows/triage.yaml", "schemas/ticket.json", name)
    [fault] = faults(directory)
    assert fault == f'workflows/triage.yaml:3: input: "{name}" is outside the project; copy the file into it'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        (b"", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"{} {}", "is not JSON"),
        (b'{"const": NaN}', "NaN"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"const": "\\u0000"}', "NUL"),
        (b'{"const": "\\ud800"}', "surrogate"),
        (b'{"\\u0000": 1}', "NUL"),
        (b'{"type": "nonsense"}', "JSON Schema"),
        (b"[]", "input"),
        (b'{"$ref": "https://example.com/schema.json"}', "JSON Schema"),
        (b'{"$ref": "file:///etc/passwd"}', "JSON Schema"),
    ],
)
def test_a_file_that_is_no_schema_is_named(directory: Path, content: bytes | None, said: str) -> None:
    if content is None:
        (directory / "schemas" / "ticket.json").unlink()
    else:
        write(directory, "schemas/ticket.json", content)
    [fault] = faults(directory)
    assert fault.startswith("workflows/triage.yaml:3: input")
    assert said in fault


def test_files_may_stand_anywhere_in_a_definition(directory: Path) -> None:
    write(directory, "schemas/kind.json", '\t{"enum": ["x", "y"]}\n')
    edit(directory, "workflows/triage.yaml", "{enum: [a, b]}", "{$file: schemas/kind.json}")
    edit(directory, "tools/look_up/tool.yaml", "output: {type: object}", "output: {$file: schemas/ticket.json}")
    data = read(directory).definitions["triage"].data
    assert data["workflow"]["steps"][1]["output"]["properties"]["kind"] == {"enum": ["x", "y"]}
    assert data["tools"]["look_up"]["contract"]["output"] == json.loads(FILES["schemas/ticket.json"])


def test_variables_stand_for_what_the_settings_say(directory: Path) -> None:
    wanted = ["workflows/triage.yaml:2: description: ", "tools/look_up/tool.yaml:4: egress.0: "]
    for variables in (dict[str, str](), {"other": "x"}):
        found = faults(directory, SETTINGS.model_copy(update={"variables": variables}))
        mend = "${place} is not among the settings' variables; add it to [variables]"
        assert sorted(found) == sorted(begin + mend for begin in wanted)
    # What a variable says is text: it makes no structure, and is not looked through for further variables.
    hostile = {"place": "x\nsteps: [] ${place} {$file: /etc/passwd}"}
    found = faults(directory, SETTINGS.model_copy(update={"variables": hostile}))
    assert found[0].startswith("tools/look_up/tool.yaml:4: egress.0: ")
    edit(directory, "tools/look_up/tool.yaml", 'egress: ["${place}:443"]\n', "")
    data = read(directory, SETTINGS.model_copy(update={"variables": hostile})).definitions["triage"].data
    assert data["workflow"]["description"] == f"Sorts, at {hostile['place']}."


@pytest.mark.parametrize(
    "place",
    ["example.com", "example.com:0", "example.com:65536", "http://example.com:80", "*:443", "a b:1", ":80", "u@h:1"],
)
def test_egress_is_host_and_port(directory: Path, place: str) -> None:
    edit(directory, "tools/look_up/tool.yaml", '"${place}:443"', json.dumps(place))
    [fault] = faults(directory)
    assert fault.startswith("tools/look_up/tool.yaml:4: egress.0: ")


PROMISES = {
    "commit": "effect: mutating\ncommit: true\n",
    "compensate": "effect: mutating\ncompensate: true\n",
    "probe": "effect: mutating\nprobe: true\n",
    "health": "effect: pure\nhealth: {every: 30}\n",
    "batch": "effect: pure\nbatch: {max: 20}\n",
}


@pytest.mark.parametrize("field", PROMISES)
def test_a_function_that_the_contract_promises_must_be_there(directory: Path, field: str) -> None:
    name = "run_batch" if field == "batch" else field
    edit(directory, "tools/look_up/tool.yaml", "effect: pure\n", PROMISES[field])
    [fault] = faults(directory)
    assert fault == f"tools/look_up/tool.yaml:4: {field}: main.py has no function {name}; define it or remove {field}"
    run = FILES["tools/look_up/main.py"]
    for code in (
        f"def {name}(x): pass\n",
        f"async def {name}(x): pass\n",
        f"{name} = run\n",
        f"from json import dumps as {name}\n",
        "from helpers import *\n",
        f"try:\n    from fast import {name}\nexcept ImportError:\n    {name} = run\n",
        "def __getattr__(name): return run\n",
    ):
        write(directory, "tools/look_up/main.py", run + code)
        assert read(directory), code
    for code in (f"class Tool:\n    def {name}(self): pass\n", f"# def {name}(x)\n", f'"""\ndef {name}(x): pass"""\n'):
        write(directory, "tools/look_up/main.py", run + code)
        assert faults(directory) == [fault], code


def test_main_must_define_run_and_be_python(directory: Path) -> None:
    write(directory, "tools/look_up/main.py", "def rum(text): return {}\n")
    assert faults(directory) == ["tools/look_up/tool.yaml:1: name: main.py has no function run; define it"]
    for code in (
        b"def run(text):\n  return {\n",
        b"def run(text): pass\n\0",
        b"run = " + b"(" * 9999,
        b"run = '\xff'\n",
    ):
        write(directory, "tools/look_up/main.py", code)
        [fault] = faults(directory)
        assert "tools/look_up/main.py" in fault
        assert "is not Python" in fault
        assert fault.endswith("; correct it")
    write(directory, "tools/look_up/main.py", b"# coding: latin-1\ndef run(text): return '\xff\\d'\n")
    assert read(directory)


def test_policies_are_read_file_by_file(directory: Path) -> None:
    write(
        directory, "policies/a.cedar", "permit(principal, action, resource);\n\n\npermit(principal, action, rsource);\n"
    )
    [fault] = faults(directory)
    assert fault.startswith("policies/a.cedar:4: not valid Cedar: ")
    write(directory, "policies/a.cedar", "permit(principal, action, resource)\nwhen { context.approval.present }\n")
    assert faults(directory)[0].startswith("policies/a.cedar:2: not valid Cedar: ")
    write(directory, "policies/a.cedar", "")
    assert read(directory)
    for path in (directory / "policies").iterdir():
        path.unlink()
    assert read(directory).policy is None


def test_definitions_that_no_database_could_hold_are_refused(directory: Path) -> None:
    for name, old in (
        ("workflows/triage.yaml", "Sorts"),
        ("prompts/sort.yaml", "Sort "),
        ("tools/look_up/tool.yaml", "Looks it up."),
    ):
        whole = (directory / name).read_text()
        for odd in ("\\0", "\\ud800", "\\ud83d\\ude00"):
            write(
                directory,
                name,
                whole.replace("'Sort {{ text }}'", '"Sort {{ text }}"').replace("Looks it up.", '"Looks it up."'),
            )
            edit(directory, name, old, odd)
            [fault] = faults(directory)
            assert fault.startswith(f"{name}:")
            assert "remove it" in fault
        write(directory, name, whole)
    assert read(directory)


def test_the_example_is_a_project() -> None:
    assert list(read_project(EXAMPLE, load_settings(EXAMPLE)).definitions) == ["support_triage"]


ODD: list[bytes] = [
    *(b"", b"\xff\xfe\xfa", b"\0", b"null", b"[]", b"42", b"&a [*a]", b"a: &a [*a]\nb: [*a, *a]", b"- " * 400),
    *(
        b"[" * 300,
        b"{" * 300,
        b'"\\ud800": "\\0"',
        b"x: .nan",
        b"? {a: b}\n: c",
        b"%YAML 9.9\n---\n",
        b"--- 1\n--- 2\n",
    ),
    *(
        b"\xef\xbb\xbfname: x",
        b"!!python/object:os.system x",
        b"<<: {a: 1}",
        b"'" * 999,
        b"\t- x",
        b"name: " + b"9" * 9999,
    ),
]


@pytest.mark.parametrize(
    "name", ["workflows/triage.yaml", "prompts/sort.yaml", "tools/look_up/tool.yaml", "policies/a.cedar"]
)
def test_whatever_is_in_a_file_it_is_refused_by_name(directory: Path, name: str) -> None:
    for content in ODD:
        write(directory, name, content)
        if name.endswith(".cedar") and content == b"":
            continue
        assert all(line.startswith((name, str(directory / "workflows"))) for line in faults(directory)), content
        assert any(line.startswith(name) for line in faults(directory))


def test_a_damaged_file_is_refused_or_accepted_and_never_anything_else(directory: Path) -> None:
    """Bytes are cut out, doubled and swapped at random; the reader may say no, and that is all it may do."""
    names = [name for name in FILES if not name.endswith("main.py")]
    chance = random.Random(2)
    refused = 0
    for _ in range(120):
        name = chance.choice(names)
        whole = FILES[name].encode()
        at, length = chance.randrange(len(whole)), chance.randrange(1, 12)
        insert: Any = chance.choice(
            [b"", whole[at : at + length] * 2, bytes([chance.randrange(256)]), b'"', b"{", b": ", b"\n  "]
        )
        write(directory, name, whole[:at] + insert + whole[at + length :])
        try:
            read(directory)
        except InvalidSpec:
            refused += 1
        write(directory, name, whole)
    assert 30 < refused < 120
    assert read(directory)
