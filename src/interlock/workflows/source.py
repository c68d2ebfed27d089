"""YAML definitions, parsed with line numbers for error messages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError

from interlock.base.errors import InvalidSpec
from interlock.base.json import Json
from interlock.base.wording import in_words

ModelT = TypeVar("ModelT", bound=BaseModel)
Path = Sequence[str | int]

# People write definitions; a larger file is a mistake or an attack on the parser.
MAX_SOURCE_CHARACTERS = 1_000_000
MAX_NUMBER_BITS = 1024  # larger numbers do not fit a float, and Python refuses to print more than 4300 digits


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed definition file: its name for messages, its plain data, and the tree with line numbers."""

    name: str
    data: Json
    _tree: object

    def with_data(self, data: Json) -> Source:
        """The same file with other data at the same places."""
        return Source(self.name, data, self._tree)

    def line(self, path: Path) -> int:
        """The 1-based line of the value at `path`, or of its nearest parent."""
        node, line = self._tree, 1
        for part in path:
            found = _part(node, part)
            if found is not None:  # pydantic adds union tags to its paths; they are not in the file
                line, node = found
        return line

    def complaint(self, path: Path, message: str) -> str:
        """`file:line: field: message`."""
        field = _sentence(".".join(str(part) for part in path))
        return (
            f"{self.name}:{self.line(path)}: {field}: {message}"
            if field
            else f"{self.name}:{self.line(path)}: {message}"
        )


def _part(node: object, part: str | int) -> tuple[int, object] | None:
    """A part of a node, and its line."""
    if isinstance(node, CommentedMap) and part in node and part in (node.lc.data or {}):  # merged keys (<<) are not
        return int(node.lc.key(part)[0]) + 1, node[part]
    if isinstance(node, CommentedSeq) and isinstance(part, int) and 0 <= part < len(node):
        return int(node.lc.item(part)[0]) + 1, node[part]
    return None


def parse_yaml(text: str, name: str) -> Source:
    """Parses one YAML 1.2 document; duplicate keys, anchors, tags and numbers that JSON cannot hold are refused.

    Raises:
        InvalidSpec: with file, line and the parser's reason.
    """
    if len(text) > MAX_SOURCE_CHARACTERS:
        raise InvalidSpec(
            f"{name}: {len(text)} characters are more than the {MAX_SOURCE_CHARACTERS} a definition may have"
        )
    try:
        if "&" in text or "!" in text:
            _refuse_anchors_and_tags(text, name)
        tree = YAML(typ="rt", pure=True).load(text)
        data = _plain(tree)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InvalidSpec(f"{name}:{line}: not valid YAML: {_sentence(error.problem or error.context)}") from error
    except InvalidSpec:
        raise
    except Exception as error:  # the parser does not catch Python's own errors, such as a TypeError for a list in a key
        first_line = str(error).split("\n", maxsplit=1)[0]
        raise InvalidSpec(f"{name}: not valid YAML: {_sentence(first_line)}") from error
    return Source(name, data, tree)


def _sentence(text: str | None) -> str:
    """The text in one line: messages and keys quote the file, line breaks included."""
    return " ".join((text or "").split())


def _refuse_anchors_and_tags(text: str, name: str) -> None:
    # With aliases ten lines can expand to gigabytes, and tags create values that are not JSON; definitions need neither.
    for event in YAML(typ="rt", pure=True).parse(text):
        line = event.start_mark.line + 1
        if getattr(event, "anchor", None) is not None:
            raise InvalidSpec(f"{name}:{line}: YAML anchors and aliases are not accepted here; write the value out")
        if getattr(event, "tag", None) is not None:
            raise InvalidSpec(f"{name}:{line}: YAML tags are not accepted here; leave the tag out, or quote the value")


def _plain(node: object) -> Json:
    if isinstance(node, CommentedMap | dict):
        plain_map = {str(key): _plain(value) for key, value in node.items()}
        if len(plain_map) != len(node):
            raise ValueError("two keys of one map are the same text; remove one")
        return plain_map
    if isinstance(node, CommentedSeq | list):
        return [_plain(value) for value in node]
    if isinstance(node, bool) or node is None:
        return node
    if isinstance(node, float) and not math.isfinite(node):
        raise ValueError(f"{node} is not a JSON number; write a finite one")
    if isinstance(node, int) and node.bit_length() > MAX_NUMBER_BITS:
        raise ValueError(f"a whole number of {node.bit_length()} bits is too large; write a smaller one")
    for plain in (int, float, str):
        if isinstance(node, plain):
            return plain(node)
    return str(node)  # dates and similar values: a definition uses them only as text


def validate(model: type[ModelT], source: Source) -> ModelT:
    """Builds `model` from a parsed file.

    Raises:
        InvalidSpec: one line per fault, each `file:line: field: fault; correction`.
    """
    try:
        return model.model_validate(source.data)
    except ValidationError as error:
        raise InvalidSpec("\n".join(_faults(error, source))) from error


def _faults(error: ValidationError, source: Source) -> Iterable[str]:
    for fault in error.errors():
        path = [part for part in fault["loc"] if not (isinstance(part, str) and part.startswith("function-"))]
        yield source.complaint(_real_path(path, source.data), _mend(fault))


def _real_path(path: Path, data: Json) -> list[str | int]:
    real: list[str | int] = []
    for index, part in enumerate(path):
        if isinstance(data, dict) and part in data:
            data = data[str(part)]
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        elif index < len(path) - 1:
            continue  # a union tag
        real.append(part)
    return real


def _mend(fault: ErrorDetails) -> str:
    kind = fault["type"]
    if kind == "union_tag_not_found":
        return 'has no "kind"; add one of model, tool, review, parallel, branch'
    if kind == "union_tag_invalid":
        return f"kind {fault['ctx']['tag']!r} is not known; use one of {fault['ctx']['expected_tags']}"
    if fault["input"] is None and not fault["loc"]:
        return "the file is empty; `interlock schema` prints what it may contain"
    return in_words(fault)
