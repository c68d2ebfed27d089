"""Budget of one rendering: every loop, filter, comparison and slice of a prompt's template is charged before it is executed.

A template of a few lines can otherwise need gigabytes or minutes for some slot values, in the event loop of a worker.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import TypeAlias

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context, Undefined

Filter: TypeAlias = Callable[..., object]

MAX_CHARACTERS = 4_000_000
"""Maximum characters of a message and of every text on the way to it: a million tokens."""
MAX_TURNS = 10_000
"""Maximum turns of all loops of a prompt."""
MAX_WORK = 30_000_000
"""Maximum work of a prompt: a unit is about a character that a filter reads, at most 20 nanoseconds."""
WORK = "\0work"  # a name that a template cannot contain
_ELEMENT = 50  # units of an element of a list or an object, besides those of its text
_GROWTH = 6  # units of a character that a filter may turn into six, as `tojson` and `escape` do
_SORTING = frozenset({"sort", "dictsort", "unique", "min", "max"})
_GROWING = frozenset({"tojson", "escape", "e", "string"})


class Unbounded(jinja2.TemplateRuntimeError):
    """A rendering exceeds a limit; the message is Interlock's own."""


class Work:
    """Work of one rendering so far."""

    def __init__(self) -> None:
        self._left = MAX_WORK
        self._turns = itertools.count()

    def turn(self) -> None:
        if next(self._turns) >= MAX_TURNS:
            raise Unbounded(f"its loops turn more than {MAX_TURNS} times; give it less")

    def charge(self, units: int) -> None:
        self._left -= units
        if self._left < 0:
            raise Unbounded("its filters, comparisons and loops have too much to do for these slots; give it less")

    def weigh(self, value: object) -> int:
        """Charges a value's own weight, which it costs to find it, and returns it."""
        total, below = 0, [value]
        while below:
            one = below.pop()
            if isinstance(one, str):
                total += len(one)
            elif isinstance(one, Mapping):
                total += _ELEMENT * len(one)
                below += one.keys()
                below += one.values()
            elif isinstance(one, list | tuple):
                total += _ELEMENT * len(one)
                below += one
            if total > self._left:
                break
        self.charge(total + 1)
        return total


def charged_filters(filters: Mapping[str, Filter]) -> dict[str, Filter]:
    """The filters, each charged for its input; with those that `charge_tree` inserts."""
    return {name: _charged(name, function) for name, function in filters.items()} | {
        "counted turns": _counted_turns,
        "charged": _charged_value,
        "charged length": _charged_length,
    }


def charge_tree(tree: nodes.Template) -> None:
    """Inserts charges for loops, comparisons, tests and slices into a template."""
    for loop in list(tree.find_all(nodes.For)):
        loop.iter = _through("counted turns", loop.iter)
    for compare in list(tree.find_all(nodes.Compare)):
        compare.expr = _through("charged", compare.expr)
        for operand in compare.ops:
            operand.expr = _through("charged", operand.expr)
    for test in list(tree.find_all(nodes.Test)):
        test.node = _through("charged", test.node)
        test.args = [_through("charged", one) for one in test.args if isinstance(one, nodes.Expr)]
    for item in list(tree.find_all(nodes.Getitem)):
        if isinstance(item.arg, nodes.Slice):
            item.node = _through("charged length", item.node)


def bounded(pieces: Iterable[str]) -> str:
    """The text of a message.

    Raises:
        Unbounded: it is too long.
    """
    shown, characters = [], 0
    for piece in pieces:
        characters += len(piece)
        _limit(characters)
        shown.append(piece)
    return "".join(shown)


def _through(name: str, node: nodes.Node) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _limit(characters: int) -> None:
    if characters > MAX_CHARACTERS:
        raise Unbounded(f"it has more than {MAX_CHARACTERS} characters; give it less")


@jinja2.pass_context
def _counted_turns(context: Context, items: Iterable[object]) -> Iterator[object]:
    work: Work = context[WORK]
    for item in items:
        work.turn()
        yield item


@jinja2.pass_context
def _charged_value(context: Context, value: object) -> object:
    if not isinstance(value, Undefined):
        context[WORK].weigh(value)
    return value


@jinja2.pass_context
def _charged_length(context: Context, value: object) -> object:
    if isinstance(value, Sized) and not isinstance(value, Undefined):
        context[WORK].charge(len(value))
    return value


def _charged(name: str, function: Filter) -> Filter:
    passed = getattr(getattr(function, "jinja_pass_arg", None), "name", "")

    @jinja2.pass_context
    def charged(context: Context, value: object, *arguments: object, **options: object) -> object:
        if not isinstance(value, Undefined):
            _charge(context[WORK], name, value, arguments, options)
        result = function(*_first(context, passed), value, *arguments, **options)
        if isinstance(result, Iterator):
            result = list(result)  # as long as its input; so that the next filter can be charged for it
        if isinstance(result, str):
            _limit(len(result))
        return result

    return charged


def _first(context: Context, passed: str) -> list[object]:
    """The argument that a filter wants before its value; `passed` is Jinja's name for it."""
    if passed == "context":
        return [context]
    if passed == "eval_context":
        return [context.eval_ctx]
    return [context.environment] if passed == "environment" else []


def _charge(work: Work, name: str, value: object, arguments: tuple[object, ...], options: Mapping[str, object]) -> None:
    weight = work.weigh(value)
    if name in _SORTING and isinstance(value, Sized):
        work.charge(weight * len(value).bit_length())
    elif name in _GROWING:
        work.charge(weight * _GROWTH)
    elif name == "join" and isinstance(value, Sized):
        separator = arguments[0] if arguments else options.get("d", "")
        characters = len(value) * len(str(separator))
        _limit(characters)
        work.charge(characters)
