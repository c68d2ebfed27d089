"""Tokens and policies of a Cedar text, with their lines, and the bounds that a text must keep before Cedar parses it.

Cedar's parser reports neither line nor column, and recurses in native code, where a deep expression ends the process.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from interlock.workflows.facts import MAX_NESTING, nesting

MAX_TEXT = 200_000
"""Maximum characters of a policy set."""
MAX_OPERATORS = 500
"""Maximum operators of one policy. Cedar's recursion ends the process at about 20,000 of them in a chain."""
MAX_CHAIN = 20
"""Maximum accesses in one chain `a.b.c`: the cost of `has a.b.c` grows with the square of its length."""

Kind = Literal["string", "name", "operator"]

_TOKEN = re.compile(
    r"""
      (?P<space>\s+|//[^\n\r]*)
    | (?P<string>"(?:\\.|[^"\\])*")
    | (?P<name>[A-Za-z0-9_]+)
    | (?P<operator>::|==|!=|<=|>=|&&|\|\||.)
    """,
    re.VERBOSE | re.DOTALL,
)
_OPERATORS = frozenset({"&&", "||", "+", "-", "*", ".", "!", "[", "if", "has", "like", "in", "is", "?"})


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a Cedar text; `text` of a string includes its quotes, a number is a name, and `line` counts from 1."""

    kind: Kind
    text: str
    line: int

    @property
    def value(self) -> str:
        """Content of a string, with its escapes as they are; the text of another token."""
        return self.text[1:-1] if self.kind == "string" else self.text


Statement = list[Token]
"""The tokens of one policy, with its semicolon if it has one."""


def tokens(text: str) -> Iterator[Token]:
    """The tokens of a text, without comments and white space. Every character that begins no other token is an operator."""
    line = 1
    for match in _TOKEN.finditer(text):
        kind, found = match.lastgroup, match.group()
        if kind in ("string", "name", "operator"):
            yield Token(kind, found, line)  # type: ignore[arg-type]  # mypy does not narrow a str to a Literal
        line += found.count("\n")


def statements(text: str) -> list[Statement]:
    """The policies of a text in their order, which is that of Cedar's own numbers for them: `policy0`, `policy1`, …"""
    found: list[Statement] = [[]]
    for token in tokens(text):
        found[-1].append(token)
        if token.text == ";":
            found.append([])
    return [one for one in found if one]


def excess(text: str) -> str | None:
    """The bound that a text exceeds, as the end of a sentence about the text; None if Cedar may parse it."""
    if len(text) > MAX_TEXT:
        return f"has more than {MAX_TEXT:,} characters; shorten it"
    if nesting(text) > MAX_NESTING:
        return f"is nested more than {MAX_NESTING} levels deep; split it up into several policies"
    for statement in statements(text):
        operators = chain = 0
        for token in statement:
            if token.kind == "string":
                continue
            operators += token.text in _OPERATORS
            chain = chain + 1 if token.text in ".[" else chain if token.kind == "name" or token.text == "]" else 0
            if operators > MAX_OPERATORS or chain > MAX_CHAIN:
                which = f"line {statement[0].line}"
                return (
                    f"has a policy ({which}) with more than {MAX_OPERATORS:,} operators or {MAX_CHAIN} accesses in a row; "
                    "a condition has too many terms: split it up into several policies"
                )
    return None
