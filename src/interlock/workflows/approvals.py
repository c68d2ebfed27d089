"""Coverage of reviews: the call of a mutating tool that a review step approves, and the arguments that it must show.

A review covers the act that `approves` names or, without it, the next tool step with a mutating tool that it dominates: later
in the same body (branches and cases included, bodies of inner maps and loops not) and not after another review of its own
sequence. `approves: false` covers nothing. Both the check and the run use this module, so they agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from interlock.base.refs import canonical_json
from interlock.workflows.bindings import Reference, references
from interlock.workflows.spec import ReviewStep, Step, ToolStep
from interlock.workflows.walk import branches_of

Mutates = Callable[[str], bool]
"""True if the tool of this name is mutating."""


def covered_acts(steps: list[Step], mutates: Mutates) -> Iterator[tuple[ReviewStep, ToolStep | None]]:
    """Every review of one body with the act it covers, or None.

    Args:
        steps: steps of a workflow, a map or a loop.
    """
    for index, step in enumerate(steps):
        if isinstance(step, ReviewStep):
            yield step, _covered(step, steps[index + 1 :], mutates)
        for part in branches_of(step):
            yield from covered_acts(part, mutates)


def unshown(review: ReviewStep, act: ToolStep) -> list[str]:
    """Arguments of a call that the review does not show: references, and names of arguments with a fixed value.

    A review that names its act in `approves` covers the step as it is written, so it need not show fixed arguments. A review
    that only precedes the act must show all arguments, and cannot cover a call without arguments, because it would not show
    what it approves.
    """
    shown = list(references(review.show))
    hidden = {bound.text for bound in references(act.input) if not any(_holds(one, bound) for one in shown)}
    if review.approves is None:
        values = {_text(one) for one in _subtrees(review.show)}
        fixed = {name for name, value in act.input.items() if not list(references(value))}
        hidden |= {name for name in fixed if _text(act.input[name]) not in values}
        hidden |= set() if act.input else {"(it has none)"}
    return sorted(hidden)


def _covered(review: ReviewStep, later: list[Step], mutates: Mutates) -> ToolStep | None:
    if review.approves is False:
        return None
    acts = _acts(later, mutates, behind_reviews=review.approves is not None)
    return next((act for act in acts if review.approves in {None, act.id}), None)


def _acts(steps: list[Step], mutates: Mutates, *, behind_reviews: bool) -> Iterator[ToolStep]:
    """Tool steps with a mutating tool in the order of the file, in one body; up to the next review in their sequence."""
    for step in steps:
        if isinstance(step, ReviewStep) and not behind_reviews:
            return
        if isinstance(step, ToolStep) and mutates(step.tool):
            yield step
        for part in branches_of(step):
            yield from _acts(part, mutates, behind_reviews=behind_reviews)


def _holds(shown: Reference, bound: Reference) -> bool:
    """True if one value equals or contains the other."""
    same = (shown.root, shown.step) == (bound.root, bound.step)
    return same and bound.path[: len(shown.path)] == shown.path


def _subtrees(tree: object) -> Iterator[object]:
    yield tree
    for one in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _subtrees(one)


def _text(value: object) -> str:
    return canonical_json(value).decode()
