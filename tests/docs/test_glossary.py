"""The glossary: its code column exists, and names in code, SQL, commands and paths use its terms."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from interlock.cli.commands import COMMANDS
from interlock.identity.principal import _GRANTS
from interlock.machine import events as ev
from interlock.store.entries import EventType

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "interlock"
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text()

TERMS, REPLACED = (
    [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("| ")][1:]
    for part in GLOSSARY.split("## Replaced words")
)
AVOIDED = {word.strip() for row in REPLACED for word in row[0].split(",")} | {"letters"}
# Two words that make a term although the second one is avoided alone.
TERMS_OF_TWO = {("dead", "letter"), ("dead", "letters")}


def modules() -> list[Path]:
    return [path for path in sorted(SOURCE.rglob("*.py")) if "template" not in path.parts]


def words_of(identifier: str) -> list[str]:
    spaced = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", identifier)
    return [word.lower() for word in re.split(r"[^A-Za-z]+", spaced) if word]


def avoided_in(identifier: str) -> list[str]:
    words = words_of(identifier)
    return [
        word
        for before, word in zip(["", *words], words, strict=False)
        if word in AVOIDED and (before, word) not in TERMS_OF_TWO
    ]


def identifiers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Names that a module defines: classes, functions, their parameters, attributes and variables."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


def test_every_term_names_code_that_exists() -> None:
    assert len(TERMS) > 40
    missing = [(row[0], row[2]) for row in TERMS if not (SOURCE / row[2].strip("`")).exists()]
    assert missing == []
    assert len({row[0] for row in TERMS}) == len(TERMS), "a term is listed twice"


def test_identifiers_use_the_terms() -> None:
    found = [
        f"{path.relative_to(SOURCE)}:{line}: {name}"
        for path in modules()
        for line, name in identifiers(ast.parse(path.read_text()))
        if avoided_in(name)
    ]
    assert found == []


def test_the_check_sees_an_avoided_word() -> None:
    assert avoided_in("LetterRequeued") == ["letter"]
    assert avoided_in("dead_letter_id") == avoided_in("DeadLetterRequeued") == []
    assert avoided_in("_handed_over") == ["handed"]


def test_public_words_use_the_terms() -> None:
    """Permissions, audit events, journal events, commands and API paths."""
    public = [*_GRANTS, *EventType.__args__, *(name for name in vars(ev) if name[0].isupper())]
    public += COMMANDS
    for path in (SOURCE / "api").glob("*.py"):
        public += re.findall(r'"(/[\w/{}.-]+)"', path.read_text())
    assert len(public) > 80
    assert [name for name in public if avoided_in(name)] == []


def test_tables_and_functions_use_the_terms() -> None:
    found = []
    for path in sorted((SOURCE / "store" / "sql").rglob("*.sql")):
        text = re.sub(r"--.*", "", path.read_text())
        text = re.sub(r"'[^']*'", "", text)
        found += [f"{path.name}: {name}" for name in re.findall(r"[a-z_]+", text) if avoided_in(name)]
    assert found == []


def test_one_class_name_names_one_thing() -> None:
    """Views and request bodies of the API have the names of what they show; they are not compared."""
    places = defaultdict(list)
    outside = (SOURCE / "api", SOURCE / "services" / "views")
    for path in [path for path in modules() if not any(path.is_relative_to(one) for one in outside)]:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(SOURCE)))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


_RIDDLES = re.compile(
    r"\b([Nn]obody|[Ss]omebody|[Ww]hoever|[Ww]hatever|broken off|[Hh]ands? (in|on|over)|[Ll]ooks? after)\b"
)
_QUESTIONS = re.compile(r"^(What|Who|Whether|Whoever|Whom|Whose)\b")


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 1), text


def test_docstrings_begin_with_a_noun_or_a_verb() -> None:
    found = [
        f"{path.relative_to(SOURCE)}:{line}: {text.splitlines()[0]}"
        for path in modules()
        for line, text in docstrings(ast.parse(path.read_text()))
        if _QUESTIONS.match(text)
    ]
    assert found == []


@pytest.mark.parametrize("suffix", ["py", "sql"])
def test_source_names_the_actor(suffix: str) -> None:
    """No pronoun in the place of the caller, operator, worker or process that is meant."""
    files = modules() if suffix == "py" else sorted(SOURCE.rglob("*.sql"))
    found = [
        f"{path.relative_to(SOURCE)}:{number}: {line.strip()[:100]}"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if _RIDDLES.search(line)
    ]
    assert found == []
