"""Dead letters in tests: a workflow whose undoings fail at first, and finding the dead letter that is open."""

from __future__ import annotations

from engines.harness import BOOM, Observer, pay, refund_tool, until, workflow

FLAKY = """

undo = compensate


def compensate(input, output, context):
    if context["attempt"] < 2:
        raise RuntimeError("the bank is closed")
    return undo(input, output, context)
"""

FLAKY_TWICE = {
    **refund_tool("refund_flaky", "bank", "honours_idempotency", "compensate", code=FLAKY),
    **workflow(
        "w",
        pay("pay_a", "refund_flaky", "bank", ticket="first"),
        pay("pay_b", "refund_flaky", "bank", ticket="second"),
        BOOM,
        allow="refund_flaky, boom",
    ),
}
"""Pays twice, fails, and can undo neither at the first try."""


async def dead_letter_of(seen: Observer, run: str, purpose: str, step: str | None = None) -> str:
    """Waits for the run's open dead letter of this purpose, about this step if one is named; its id."""
    query = (
        "select dead_letter_id from dead_letters where run_id = %s and purpose = %s and status = 'open' "
        "and step = coalesce(%s, step)"
    )
    await until(
        lambda: bool(seen.rows(query, run, purpose, step)), lambda: f"no letter: {seen.run(run)} {seen.kinds(run)}"
    )
    return str(seen.rows(query, run, purpose, step)[0][0])
