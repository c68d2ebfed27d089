"""run, runs, show, trace, cancel, review, eval: in this process, without any server."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from interlock.testing import answer, server_error

from .conftest import QUESTION, Cli, FakeModel


def over(cli: Cli, run_id: str) -> Any:
    """The run at its end. Each command that starts another has a worker, and stops when that other one is over or waits."""
    for _ in range(20):
        run = next(run for run in cli.ok("runs", "--json").json if run["run_id"] == run_id)
        if run["finished_at"] is not None:
            return run
        assert cli("run", "answer", "-i", QUESTION).code in {0, 10}
    raise AssertionError(f"not over: {run}")


UNSURE = answer({"topic": "other", "answer": "I do not know."})


def run_id_of(text: str) -> str:
    found = re.search(r"run_[0-9a-z]{26}", text)
    assert found, text
    return found[0]


def test_the_project_that_init_writes_runs(cli: Cli, model: FakeModel) -> None:
    """From the question through the tool in its sandbox and the model to the result; then everything that looks at it."""
    model.always(answer({"topic": "refunds", "answer": "Ask within 30 days."}))
    said = cli.ok("run", "answer", "--input", QUESTION).out
    run_id = run_id_of(said)
    for line in ("search", "reply", "succeeded", '"answer": "Ask within 30 days."'):
        assert line in said
    # The model read what the tool found: the FAQ entry that fits the question, and not the others.
    asked = json.dumps(model.last["messages"])
    assert "the refund arrives in 5 working days" in asked
    assert "change my password" not in asked

    listed = cli.ok("runs").out
    assert run_id in listed
    assert "succeeded" in listed
    [run] = cli.ok("runs", "--json").json
    assert (run["run_id"], run["status"], run["workflow"]) == (run_id, "succeeded", "answer")
    assert cli.ok("runs", "--status", "failed").out == "no runs yet\n"
    assert cli.ok("runs", "--workflow", "other", "--json").json == []

    shown = cli.ok("show", run_id).out
    for line in (run_id, "by local-admin", "How do I get my money back?", '"found": 1', "output: "):
        assert line in shown, line
    assert "USD 1 unpriced call" in shown, "the fake model has no price, which is not the same as costing nothing"
    assert "fake, " in shown
    whole = cli.ok("show", run_id, "--json").json
    assert (whole["usd"], whole["usd_priced"], whole["unpriced_calls"]) == (None, "0", 1)
    reply = next(step for step in whole["steps"] if step["id"] == "reply")
    assert reply["seconds"] > 0
    assert reply["usage"]["attempts"] == 1
    assert whole["values"]["search"]["entries"][0]["topic"] == "refunds"
    assert [step["id"] for step in whole["steps"]] == ["search", "reply", "unsure"]
    assert whole["output"] == {"topic": "refunds", "answer": "Ask within 30 days."}

    waterfall = cli.ok("trace", run_id).out
    for line in ("search", "reply", "█"):
        assert line in waterfall
    spans = cli.ok("trace", run_id, "--json").json
    root = [span for span in spans if span["parent_id"] not in {one["span_id"] for one in spans}]
    assert len(root) == 1
    assert all(span["ok"] for span in spans)


def test_the_tool_that_init_writes_finds_what_fits_and_nothing_else(cli: Cli, model: FakeModel) -> None:
    """Its own logic, in its sandbox, seen from outside; what it finds decides the branch."""
    found = {}
    for question in ("How do I change my password?", "PASSWORD!!", "When will the order arrive?", "xyzzy", "how do I"):
        done = cli("run", "answer", "--json", "-i", json.dumps({"question": question}))
        run = done.json
        assert done.code == {"succeeded": 0, "waiting": 10}[run["status"]]
        values = cli.ok("show", run["run_id"], "--json").json["values"]
        found[question] = [entry["topic"] for entry in values["search"]["entries"]], run["status"]
    assert found == {
        "How do I change my password?": (["account"], "succeeded"),
        "PASSWORD!!": (["account"], "succeeded"),
        "When will the order arrive?": (["shipping"], "succeeded"),
        "xyzzy": ([], "waiting"),
        "how do I": ([], "waiting"),
    }


def test_json_output_is_json_whatever_is_in_it(cli: Cli, model: FakeModel) -> None:
    text = ":warning: [bold]x[/] \x1b[31m \x9b31m \u202e é 😀 line\nbreak"
    model.always(answer({"topic": "refunds", "answer": text}))
    found = cli.ok("run", "answer", "-i", QUESTION, "--json").json
    assert found["status"] == "succeeded"
    assert found["output"]["answer"] == text
    for command in (("run", "answer", "-i", QUESTION), ("show", found["run_id"]), ("show", found["run_id"], "--json")):
        said = cli.ok(*command).out
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", said), "the terminal would obey this"
        assert ":warning: [bold]x[/]" in said


def test_input_comes_from_an_argument_a_file_or_standard_input(cli: Cli) -> None:
    path = cli.write("question.json", QUESTION)
    ways = ((("--input", QUESTION), b""), (("-i", f"@{path}"), b""), (("-i", "-"), QUESTION.encode()))
    runs = [cli.ok("run", "answer", "--json", "--key", "same", *way, stdin=stdin).json for way, stdin in ways]
    assert len({run["run_id"] for run in runs}) == 1
    assert "an existing run" in cli.ok("run", "answer", "--key", "same", "-i", QUESTION).out
    assert "choose a new key" in cli.fails(4, "run", "answer", "--key", "same", "-i", '{"question": "Other?"}')


BAD_INPUT: dict[str, tuple[tuple[str, ...], bytes, str]] = {
    "no JSON": (("-i", "{question"), b"", "--input is not JSON"),
    "NaN": (("-i", '{"question": NaN}'), b"", "NaN"),
    "half a surrogate": (("-i", '{"question": "\\ud800"}'), b"", "surrogate"),
    "argument not UTF-8": (("-i", '{"question": "\udcff"}'), b"", "surrogate"),
    "nested deep": (("-i", "[" * 5000 + "]" * 5000), b"", "nested"),
    "nested less deep": (("-i", "[" * 500 + "]" * 500), b"", "nested"),
    "no such file": (("-i", "@none.json"), b"", "none.json cannot be read"),
    "a directory": (("-i", "@workflows"), b"", "workflows cannot be read"),
    "file not UTF-8": (("-i", "@binary"), b"", "binary cannot be read"),
    "input not UTF-8": (("-i", "-"), b"\xff\xfe", "standard input is not"),
    "empty input": (("-i", "-"), b"", "standard input is not JSON"),
    "against the schema": (("-i", '{"question": ""}'), b"", "input: question"),
    "unknown field": (("-i", '{"question": "x", "more": 1}'), b"", "more"),
    "nothing": ((), b"", "question"),
    "bad key": (("-i", QUESTION, "--key", "é"), b"", "--key"),
}


def test_bad_input_is_refused_in_a_sentence_and_starts_nothing(cli: Cli, subtests: pytest.Subtests) -> None:
    cli.write("binary", b"\xff\xfe\0")
    for name, (arguments, stdin, said) in BAD_INPUT.items():
        with subtests.test(name):
            error = cli.fails(2, "run", "answer", *arguments, stdin=stdin)
            assert said in error
            assert len(error.splitlines()) == 1
    assert "deployed are: answer" in cli.fails(3, "run", "nobody", "-i", QUESTION)
    assert cli.ok("runs", "--json").json == []


def test_a_failed_run_says_why_and_has_its_exit_code(cli: Cli, model: FakeModel) -> None:
    cli.edit("workflows/answer.yaml", "max_tokens: 120", "max_tokens: 120\n    retry: {max_attempts: 1}")
    model.always(server_error())
    done = cli("run", "answer", "-i", QUESTION)
    assert done.code == 7
    assert "failed" in done.out
    assert 'step "reply"' in done.out
    again = cli("run", "answer", "-i", QUESTION, "--json")
    assert again.code == 7
    assert again.json["status"] == "failed"
    assert "failed" in cli.ok("show", again.json["run_id"]).out
    [*_, reason] = cli.ok("runs").out.splitlines()
    assert "failed" in reason


def test_a_broken_tool_is_the_runs_fault_and_not_ours(cli: Cli) -> None:
    cli.write("tools/search_faq/main.py", 'def run(question):\n    raise ValueError("[/bold] \\x1b[2J boom")\n')
    done = cli("run", "answer", "-i", QUESTION)
    assert done.code == 7
    assert 'tool "search_faq" failed (ValueError)' in done.out
    assert "\x1b" not in done.out + cli.ok("show", run_id_of(done.out)).out + cli.ok("runs").out


def test_the_author_of_a_tool_sees_where_it_raised_and_what_it_printed(cli: Cli) -> None:
    """In `show` and in the dead letter; past the guard gate, and without what a terminal would obey."""
    code = """\
def ask(question):
    print("asking for anna@example.org \x1b[2J")
    return 1 / 0


def run(question):
    return ask(question)
"""
    cli.write("tools/search_faq/main.py", code)
    run_id = run_id_of(cli("run", "answer", "-i", QUESTION).out)
    shown = cli.ok("show", run_id).out
    for line in (
        'File "/tool/main.py", line 7, in run',
        "return ask(question)",
        'File "/tool/main.py", line 3, in ask',
    ):
        assert line in shown, shown
    assert "ZeroDivisionError: division by zero" in shown
    assert "asking for email_" in shown
    assert "anna@" not in shown
    assert "\x1b" not in shown
    [failure] = cli.ok("show", run_id, "--json").json["failures"]
    assert (failure["step"], failure["code"]) == ("search", "tool_error")
    assert failure["error_detail"] == "ZeroDivisionError: division by zero"
    [letter] = [one for one in cli.ok("dead-letters", "list", "--json").json if one["run_id"] == run_id]
    assert letter["purpose"] == "run"


def test_a_review_waits_for_a_person(cli: Cli, model: FakeModel) -> None:
    model.always(UNSURE)
    said = cli.waits("run", "answer", "-i", QUESTION).out
    first = run_id_of(said)
    assert "waits for a person: The FAQ has no good entry for this question." in said
    [review] = cli.ok("review", "list", "--json").json
    assert f"interlock review approve {review['review_id']}" in said
    assert review["run_id"] == first
    listed = cli.ok("review", "list").out
    assert review["review_id"] in listed
    shown = cli.ok("review", "show", review["review_id"]).json
    assert shown["show"] == {"question": "How do I get my money back?", "answer": "I do not know."}
    assert "no server runs here" in cli.ok("review", "approve", review["review_id"], "--note", "fine [/x]").err
    assert "already approved" in cli.fails(4, "review", "reject", review["review_id"])
    assert cli.ok("review", "list").out == "nothing waits for a decision\n"
    assert [one["note"] for one in cli.ok("review", "list", "--all", "--json").json] == ["fine [/x]"]

    # The next process with a worker takes the approved run to its end; here it is one that starts another run.
    second = cli.waits("run", "answer", "-i", QUESTION, "--json").json
    assert second["status"] == "waiting"
    assert "next" not in second
    assert over(cli, first)["status"] == "succeeded"
    cli.ok("review", "reject", second["reviews"][0]["review_id"])
    third = cli.waits("run", "answer", "-i", QUESTION, "--json").json["run_id"]
    rejected = over(cli, second["run_id"])
    assert rejected["status"] == "failed"
    assert "rejected" in rejected["reason"]

    assert "asked" in cli.ok("cancel", third, "--reason", "[/no] longer needed").out
    model.always(answer({"topic": "refunds", "answer": "x"}))
    cli.ok("run", "answer", "-i", QUESTION)
    cancelled = over(cli, third)
    assert (cancelled["status"], cancelled["reason"]) == ("cancelled", "cancelled: [/no] longer needed")
    assert "[/no]" in cli.ok("runs").out
    assert "is over" in cli.fails(4, "cancel", third)


def test_what_is_not_there_is_not_found(cli: Cli, subtests: pytest.Subtests) -> None:
    cli.ok("migrate")
    names = ["", "../keys", "a/b?c#d", "%00", "\udcff", "[bold]", "x" * 3000]
    tries = [(("show",), name) for name in names]
    tries += [(tuple(command.split()), "nonsense") for command in ("trace", "cancel", "review show", "keys revoke")]
    tries += [(("review", "approve"), "nonsense"), (("review", "reject"), "")]
    for command, name in tries:
        with subtests.test(name=name, command=command):
            said = cli(*command, name)
            assert said.code in {2, 3}, said.err
            assert "internal error" not in said.err
            assert len(said.err.splitlines()) == 1
    for name in ("\udcff", "[/]"):
        assert cli.ok("runs", "--workflow", name).out == "no runs yet\n"
    assert "status" in cli.fails(2, "runs", "--status", "[/nonsense]")
    assert "--output is not JSON" in cli.fails(2, "review", "approve", "x", "--output", "{")
    assert cli.fails(2, "runs", "--limit", "0")
    assert cli.fails(2, "run")


def test_eval_compares_and_counts(cli: Cli, model: FakeModel) -> None:
    done = cli.ok("eval")
    assert "a refund question is found in the FAQ" in done.out
    assert "1 of 1 cases passed" in done.out
    cases = [
        {"name": "right [/x]", "input": json.loads(QUESTION), "expect": {"output": {"topic": "refunds"}}},
        {"name": "wrong fact", "input": json.loads(QUESTION), "expect": {"facts": {"search": {"found": 7}}}},
        {"name": "true is not 1", "input": {"question": "password"}, "expect": {"facts": {"search": {"found": True}}}},
    ]
    cli.write("evals/answer.yaml", json.dumps({"workflow": "answer", "cases": cases}))
    done = cli("eval", COLUMNS="200")
    assert done.code == 7
    assert "right [/x]" in done.out
    assert "search.found is 1, not 7" in done.out
    assert "search.found is 1, not True" in done.out
    assert "1 of 3 cases passed" in done.out
    model.always(UNSURE)
    cli.write("evals/answer.yaml", json.dumps({"workflow": "answer", "cases": cases[:1]}))
    assert "status is waiting, not succeeded" in cli("eval", COLUMNS="200").out


def test_eval_refuses_bad_cases_before_it_runs_anything(cli: Cli, model: FakeModel) -> None:
    before = model.count
    cli.write("evals/answer.yaml", "workflow: answer\ncases:\n  - {name: x, input: {}, expect: {status: fine}}\n")
    cli.write("evals/other.yaml", "workflow: answer\ncases: []\n")
    said = cli.fails(2, "eval").splitlines()
    assert said[0].startswith("evals/answer.yaml:3: ")
    assert "'succeeded'" in said[0]
    assert said[1].startswith("evals/other.yaml:2: ")
    for path in (cli.directory / "evals").iterdir():
        path.unlink()
    assert "holds no eval cases" in cli.fails(2, "eval")
    cli.write("evals/answer.yaml", "workflow: nobody\ncases:\n  - {name: x, input: {}}\n")
    assert 'workflow "nobody" is not deployed' in cli.fails(3, "eval")
    assert model.count == before
