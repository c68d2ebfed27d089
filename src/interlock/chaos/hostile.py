"""Hostile answers of models and tools in a chaos run: valid bytes of HTTP, and nothing that may be stored or shown.

Every one of them names a person, so that a search of the database and the logs finds text that was kept in the clear.
"""

from __future__ import annotations

CANARY = "canary-7731@example.org"
"""Stands in the hostile answers and nowhere else."""

HOSTILE_JSON: dict[str, str] = {
    "NUL in a name": f'{{"fit": true, "a\\u0000 {CANARY}": "x"}}',
    "person in a name": f'{{"fit": true, "{CANARY}, SSN 078-05-1120": "x"}}',
    "escape codes in a name": f'{{"fit": true, "\\u001b[2J\\u202e {CANARY}": "x"}}',
    "300 levels": f'{{"fit": {"[" * 300}"{CANARY}"{"]" * 300}}}',
    "half a surrogate": f'{{"fit": true, "\\ud800 {CANARY}": 1}}',
    "a name of 3 MB": f'{{"fit": true, "{CANARY} {"x" * 3_000_000}": "x"}}',
    "10^400": f'{{"fit": 1{"0" * 400}, "{CANARY}": 1}}',
    "not finite": f'{{"fit": NaN, "{CANARY}": Infinity}}',
    "the same name twice": f'{{"fit": true, "fit": "{CANARY}"}}',
    "no JSON": f"Certainly! {CANARY} is fit \x00",
}
"""Answers of a model, by kind."""

TOOL_CODE = f'''\
"""Answers with what nothing may keep, chosen by the order; `run` of a pure tool raises some of it."""

CANARY = "{CANARY}"


def _deep(levels):
    value = CANARY
    for _ in range(levels):
        value = [value]
    return value


def hostile(order):
    return [
        {{"a\\0 " + CANARY: "x"}},
        {{CANARY + ", SSN 078-05-1120": "x"}},
        {{"\\x1b[2J\\u202e " + CANARY: "x"}},
        {{"deep": _deep(300)}},
        {{"\\ud800 " + CANARY: "x"}},
        {{CANARY + " " + "x" * 3_000_000: "x"}},
        {{"large": 10**400, CANARY: "x"}},
        {{"infinite": float("inf"), CANARY: "x"}},
    ][sum(map(ord, order)) % 8]
'''

ODD_CODE = (
    TOOL_CODE
    + """

def run(order):
    answer = hostile(order)
    if sum(map(ord, order)) % 3 == 0:
        raise ValueError(next(iter(answer)))
    return answer
"""
)
"""A pure tool that gives or raises a hostile answer."""
