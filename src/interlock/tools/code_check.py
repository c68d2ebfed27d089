"""Static checks of a tool's main.py: the signature of `run` against the contract's input, and imports that cannot succeed.

The code is parsed and never executed. Code whose behaviour the text does not show, such as a decorated function, is not checked.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from interlock.base.files import read_bytes
from interlock.workflows.contracts import ToolContract

_OFFERED = frozenset({"interlock_tool", "main"})  # modules that the sandbox itself provides


def signature_faults(main: Path, contract: ToolContract) -> list[str]:
    """Differences between the parameters of `run` and the declared arguments, which are passed by name.

    Args:
        main: a file that is Python, as `bundles.missing_functions` has checked.
    """
    tree = _parsed(main)
    defined = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    run = next((node for node in reversed(defined) if node.name == "run"), None)
    if run is None or run.decorator_list:
        return []
    declared = contract.input.get("properties", {})
    if not isinstance(declared, dict) or (not declared and contract.input.get("additionalProperties") is not False):
        return []  # it takes any arguments
    return list(_faults(run, declared))


def _faults(run: ast.FunctionDef | ast.AsyncFunctionDef, declared: Iterable[str]) -> Iterator[str]:
    given = run.args
    names = [one.arg for one in given.args]
    required = set(names[: len(names) - len(given.defaults)])
    required |= {one.arg for one, default in zip(given.kwonlyargs, given.kw_defaults, strict=True) if default is None}
    accepted = {*names, *(one.arg for one in given.kwonlyargs)}
    known = f"input declares {', '.join(sorted(declared))}" if declared else "input declares no arguments"
    place = f"main.py:{run.lineno}: run()"
    for one in given.posonlyargs:
        yield f"{place} takes {one.arg} by position, and arguments are passed by name; remove the /"
    for name in sorted(required - set(declared) - {"context"}):
        yield f'{place} needs "{name}", which is no declared argument; {known}'
    if given.kwarg is None:
        for name in sorted(set(declared) - accepted - {one.arg for one in given.posonlyargs}):
            yield f'{place} takes no "{name}", which input declares; add the parameter'


def missing_imports(main: Path) -> list[tuple[int, str]]:
    """Line and name of modules that main.py imports unconditionally and that are neither in the tool nor installed here."""
    found = []
    for node in _parsed(main).body:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [one.name for one in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
        found += [(node.lineno, name) for name in names if not _importable(name.split(".")[0], main.parent)]
    return found


def _importable(root: str, directory: Path) -> bool:
    if root in sys.stdlib_module_names or root in _OFFERED:
        return True
    if (directory / f"{root}.py").is_file() or (directory / root).is_dir():
        return True
    try:
        return importlib.util.find_spec(root) is not None
    except (ImportError, ValueError):
        return False


def _parsed(main: Path) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about the tool's code are not ours to report
        return ast.parse(read_bytes(main))
