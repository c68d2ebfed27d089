"""Time of a policy decision whose answer is not cached: policies parsed at every decision, and parsed once.

Both are measured alternately in one process, over the same questions, so their ratio depends little on the machine.

    python benchmarks/policies.py --policies 200 --decisions 300
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time

import cedarpy

from interlock.policy.cedar import DEFAULT_POLICY, CedarPolicy
from interlock.policy.decision import NO_APPROVAL, Question, decide


def policy_text(count: int) -> str:
    """A policy set of a size: the built-in policies, and one `forbid` for each of many tools."""
    more = [
        f'@id("no-{number}")\nforbid(principal, action == Action::"call_tool", resource == Tool::"tool_{number}")\n'
        f'    when {{ context.sensitivity == "pii" && !principal.roles.contains("admin") }};'
        for number in range(count - DEFAULT_POLICY.count("@id"))
    ]
    return "\n".join([DEFAULT_POLICY, *more])


def question(number: int) -> Question:
    """A question that was not asked before: its step has a new name."""
    context = {"workflow": "w", "step": f"s{number}", "trust": "user", "sensitivity": "internal"}
    attributes = {"effect": "pure", "scopes": ["read:users"]}
    roles = frozenset({"operator"})
    return Question("ada", "acme", roles, "call_tool", "tool_7", attributes, context).approved(NO_APPROVAL)


def parsed_each_time(text: str, asked: Question) -> bool:
    """The decision as Cedar's plain interface makes it: the text is parsed again."""
    user, tool = {"type": "User", "id": asked.user_id}, {"type": "Tool", "id": asked.resource}
    request = {
        "principal": user,
        "action": {"type": "Action", "id": asked.action},
        "resource": tool,
        "context": json.loads(json.dumps(asked.context)),
    }
    entities = [
        {"uid": user, "attrs": {"org": asked.org_id, "roles": sorted(asked.roles)}, "parents": []},
        {"uid": tool, "attrs": dict(asked.attributes), "parents": []},
    ]
    return cedarpy.is_authorized(request, text, entities).allowed


async def measure(policies: int, decisions: int) -> None:
    """Prints the medians in ms, their ratio, and the time of a cached decision."""
    text = policy_text(policies)
    began = time.perf_counter()
    policy = CedarPolicy(text)
    loading = time.perf_counter() - began
    each: list[float] = []
    once: list[float] = []
    cached: list[float] = []
    for number in range(decisions):
        asked = question(number)
        began = time.perf_counter()
        before = parsed_each_time(text, asked)
        each.append(time.perf_counter() - began)
        for times in (once, cached):
            began = time.perf_counter()
            answer = await decide(policy, asked)
            times.append(time.perf_counter() - began)
            if answer.allowed != before or not before:
                raise SystemExit(f"the decisions differ: {before} {answer}")
    first, second, third = (1e3 * statistics.median(one) for one in (each, once, cached))
    print(f"{policies} policies, parsed in {1e3 * loading:.2f} ms; median ms of {decisions} decisions")
    print(
        f"parsed at every decision {first:.3f}   parsed once {second:.3f}   ratio {first / second:.1f}   cached {third:.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policies", type=int, default=200)
    parser.add_argument("--decisions", type=int, default=300)
    given = parser.parse_args()
    asyncio.run(measure(given.policies, given.decisions))


if __name__ == "__main__":
    main()
