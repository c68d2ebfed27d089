"""policies list, show, activate; and what check says about a policy file."""

from __future__ import annotations

from .conftest import Cli


def test_policies_are_listed_shown_and_activated(cli: Cli) -> None:
    cli.ok("deploy")
    first = cli.ok("policies", "list").out.splitlines()
    assert first[0].split() == ["policy", "set", "status", "stored", "by"]
    assert first[1].split()[1::3] == ["active", "local-admin"]
    assert first[2].split() == ["built-in"]
    version = first[1].split()[0]
    assert cli.ok("policies", "show", version[:8]).out.startswith("// Permissions of this project's workflows.")
    assert "// A tool with an external effect" in cli.ok("policies", "show", "built-in").out
    assert cli.ok("policies", "activate", "built-in").out == "the built-in policy set is active\n"
    assert cli.ok("policies", "list").out.splitlines()[2].split() == ["built-in", "active"]
    again = "nothing to do: the built-in policy set is active already\n"
    assert cli.ok("policies", "activate", "built-in").out == again
    assert cli.ok("policies", "activate", version[:8]).out == f"policy set {version} is active\n"
    for command in ("show", "activate"):
        assert 'there is no policy set "nosuch"' in cli.fails(3, "policies", command, "nosuch")
    entries = [one["entry"] for one in cli.ok("audit", "list", "--json").json]
    changes = [one["resource"] for one in entries if one["event_type"] == "policy.activated"]
    assert changes == [f"policy:{version}", "policy:built-in", f"policy:{version}"]


def test_check_names_the_line_of_a_policys_fault(cli: Cli) -> None:
    cli.write(
        "policies/more.cedar", 'forbid(principal, action, resource)\n  when { resource == Tool::"search_fag" };\n'
    )
    said = cli.fails(2, "check")
    assert said.strip() == 'policies/more.cedar:2: "search_fag" is no known tool; write "search_faq"'
    assert said in cli.fails(2, "deploy")
