"""quota list, set, remove."""

from __future__ import annotations

from .conftest import Cli


def test_quotas_are_set_listed_replaced_and_removed(cli: Cli) -> None:
    assert 'no deployed tool is called "search_faq"' in cli.fails(
        3, "quota", "set", "tool", "search_faq", "--rate", "5"
    )
    cli.ok("deploy")
    assert cli.ok("quota", "set", "org", "--concurrency", "20").out == "set the quota of org\n"
    assert cli.ok("quota", "set", "tool", "search_faq", "--rate", "5", "--per", "1.5").out == (
        "set the quota of tool search_faq\n"
    )
    assert [line.split() for line in cli.ok("quota", "list").out.splitlines()] == [
        ["scope", "name", "at", "once", "rate"],
        ["org", "20"],
        ["tool", "search_faq", "5", "in", "1.5", "s"],
    ]
    cli.ok("quota", "set", "org", "--rate", "7")
    assert cli.ok("quota", "list").out.splitlines()[1].split() == ["org", "7", "in", "60", "s"]
    assert cli.ok("quota", "remove", "org").out == "removed the quota of org\n"
    assert "there is no quota for org" in cli.fails(3, "quota", "remove", "org")
    entries = [one["entry"] for one in cli.ok("audit", "list", "--json").json]
    changes = [(one["action"], one["resource"]) for one in entries if one["event_type"] == "quota.changed"]
    assert changes == [
        ("set_quota", "quota:org:"),
        ("set_quota", "quota:tool:search_faq"),
        ("set_quota", "quota:org:"),
        ("remove_quota", "quota:org:"),
    ]


def test_what_is_no_quota_is_refused(cli: Cli) -> None:
    for arguments in (
        ("planet", "--rate", "1"),
        ("tool", "--rate", "1"),
        ("org", "name", "--rate", "1"),
        ("org",),
        ("org", "--rate", "-1"),
        ("workflow", "a\nb", "--rate", "1"),
    ):
        cli.fails(2, "quota", "set", *arguments)
    assert cli.ok("quota", "list").out.splitlines()[1:] == []
