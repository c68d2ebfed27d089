# ruff: noqa: T201  (a program for the terminal)
"""Builds the API reference as HTML, from the docstrings and types of the modules that users import.

    python tools/reference.py DIRECTORY

A warning of the generator (a name without a source, a module that cannot be imported) is an error.
"""

import sys
import warnings
from pathlib import Path

import pdoc

# Packages bring their submodules along. Add `interlock` itself when it exports names.
MODULES = (
    "interlock.testing",
    "interlock.base",
    "interlock.workflows.spec",
    "interlock.workflows.contracts",
    "interlock.workflows.prompts",
    "interlock.workflows.source",
)


def build(directory: Path) -> None:
    """Writes one page per module, an index and a search index; needs no network."""
    warnings.simplefilter("error")
    pdoc.render.configure(docformat="google", show_source=False)
    pdoc.pdoc(*MODULES, output_directory=directory)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("docs: name one directory to write to.", file=sys.stderr)
        return 1
    build(Path(arguments[0]))
    print(f"docs: the API reference is in {arguments[0]}/index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
