"""What is written down: an audit entry and a span for every passage, labels on every value, and no value anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from engines.harness import ASK, Bank, Model, Observer, pay, think, until, workflow
from execution.conftest import Deploy
from interlock.base.errors import Erased
from interlock.base.refs import Ref
from interlock.telemetry import logs
from interlock.testing import answer, rate_limited, server_error, status

PAY = pay("pay", "refund", "bank")
NOTE = "- {id: note, kind: tool, tool: note, input: {text: $steps.think.words}}\n"


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "log.jsonl"
    logs.configure(level="debug", file=file)
    yield file
    structlog.reset_defaults()


async def test_every_passage_is_on_record(deploy: Deploy, seen: Observer, model: Model, bank: Bank) -> None:
    model.script(rate_limited())
    boom = "- {id: boom, kind: tool, tool: boom}\n"
    desk = await deploy(workflow("w", think(), ASK, PAY, boom, allow="refund, boom"))
    run = await desk.start("w", customer="cus-001")
    await desk.decide(await seen.review(run), "approve")
    assert await seen.finished(run) == ["failed"]
    entries = seen.audit(run)
    version = seen.rows("select version from runs where run_id = %s", run)[0][0]
    told = [(one["event_type"], one["resource"], one["decision"], one["detail"].get("success")) for one in entries]
    review = seen.rows("select review_id from reviews")[0][0]
    assert told == [
        ("run.created", f"workflow:w@{version}", "allow", None),
        ("model.call", f"model:{model.pin}", "allow", False),
        ("model.call", f"model:{model.pin}", "allow", True),
        ("review.opened", f"review:{review}", "none", None),
        ("review.decided", f"review:{review}", "allow", None),
        ("tool.call", "tool:refund", "allow", True),
        ("tool.call", "tool:boom", "allow", False),
        ("tool.compensation", "tool:refund", "none", True),
        ("run.finished", f"run:{run}", "none", None),
    ]
    assert {one["actor"] for one in entries} == {"user:ada", "system"}
    assert len({one["trace_id"] for one in entries}) == 1
    deciding = {one["event_type"]: one["policy_version"] for one in entries if one["policy_version"] is not None}
    assert deciding == dict.fromkeys(("model.call", "tool.call"), desk.app.policies.of(desk.admin.org_id).version)
    made = [event for event in seen.journal(run) if event["type"] == "step_succeeded"]
    recorded = [one["detail"] for one in entries if "output" in one["detail"] and "step" in one["detail"]]
    assert [(one["step"], one["output"]) for one in recorded] == [
        (one["step"], one["output"]["digest"]) for one in made
    ]

    await desk.flush()
    spans = await desk.app.runs.trace(desk.admin, run)
    failed = sorted(span.name for span in spans if not span.ok and span.name.startswith("step"))
    assert failed == ["step boom", "step think"]
    assert {span.attributes["run.id"] for span in spans} == {run}
    roots = [span for span in spans if span.parent_id is None]
    assert [span.name for span in roots] == ["run w"]


async def test_the_journal_says_when_what_and_for_how_much(
    deploy: Deploy, seen: Observer, model: Model, bank: Bank
) -> None:
    """Of every outcome when its attempt began, and of every model call the request, the tokens and what it cost, if known."""
    model.script(rate_limited(), answer({"verdict": "good", "words": "well"}))
    boom = "- {id: boom, kind: tool, tool: boom}\n"
    desk = await deploy(workflow("w", think(), ASK, PAY, boom, allow="refund, boom"))
    run = await desk.start("w", customer="cus-001")
    await desk.decide(await seen.review(run), "approve")
    assert await seen.finished(run) == ["failed"]
    outcomes = [event for event in seen.journal(run) if "attempt" in event]
    assert {event["type"] for event in outcomes} == {"step_failed", "step_succeeded", "compensation_succeeded"}
    (created,) = seen.rows("select extract(epoch from created_at)::float from runs where run_id = %s", run)[0]
    assert all(event["began"] <= event["at"] for event in outcomes)
    assert all(created - 1 < event["began"] < created + 600 for event in outcomes), "by the database's clock"

    failed, good = [event for event in outcomes if event["step"] == "think"]
    assert (failed["usage"]["attempts"], failed["usage"]["input_tokens"], failed["usage"]["unpriced"]) == (1, 0, 0)
    assert (good["usage"]["model"], good["usage"]["attempts"], good["usage"]["unpriced"]) == ("fake", 1, 1)
    assert all(event.get("usage") is None for event in outcomes if event["step"] != "think")
    assert all(event.get("request") is None for event in outcomes if event["step"] != "think")
    assert failed["request"]["digest"] == good["request"]["digest"]
    request, org = Ref.from_json(good["request"]), desk.admin.org_id
    kept, asked = await desk.app.artifacts.open(org, request), model.requests[-1].body
    assert [turn[1] for turn in kept["messages"]] == [turn["content"] for turn in asked["messages"]]
    assert (kept["model"], kept["max_tokens"]) == (asked["model"], asked["max_tokens"])
    assert request.labels.subjects == frozenset({desk.app.keys.pseudonym(org, "cus-001")})

    entries = [one["detail"] for one in seen.audit(run) if one["event_type"] in {"model.call", "run.finished"}]
    unknown = {"usd": None, "usd_priced": "0", "unpriced_calls": 1}
    assert [{name: one[name] for name in unknown} for one in entries] == [
        {"usd": "0", "usd_priced": "0", "unpriced_calls": 0},  # the call that was refused is not charged for
        unknown,
        unknown,
    ]
    assert (entries[1]["provider"], entries[1]["model"], entries[1]["calls"]) == ("openai", "fake", 1)
    view = await desk.app.runs.get(desk.admin, run)
    assert {name: getattr(view, name) for name in unknown} == unknown
    step = next(one for one in view.steps if one.id == "think")
    assert step.seconds == pytest.approx(good["at"] - good["began"], abs=1e-5)
    assert (step.usage.attempts, step.usage.usd, step.usage.model) == (2, None, "fake")

    await desk.app.keys.destroy(org, desk.app.keys.pseudonym(org, "cus-001"))
    with pytest.raises(Erased):
        await desk.app.artifacts.open(org, request)


async def test_a_trace_has_the_times_of_the_journal(deploy: Deploy, seen: Observer, bank: Bank) -> None:
    """Also of attempts whose spans were lost, and whatever the clock of the host that kept the others said."""
    boom = "- {id: boom, kind: tool, tool: boom}\n"
    desk = await deploy(workflow("w", think(), ASK, PAY, boom, allow="refund, boom"))
    run = await desk.start("w")
    await desk.decide(await seen.review(run), "approve")
    assert await seen.finished(run) == ["failed"]
    await desk.flush()
    whole = await desk.app.runs.trace(desk.admin, run)
    seen.connection.execute("update spans set start_ns = start_ns + 3600000000000, end_ns = end_ns + 3700000000000")
    seen.connection.execute("delete from spans where name in ('step pay', 'compensate pay')")
    trace = await desk.app.runs.trace(desk.admin, run)
    times = {}
    for event in seen.journal(run):
        if "attempt" in event:
            kind = "compensate" if event["type"].startswith("compensation") else "step"
            times[f"{kind} {event['step']}"] = (round(event["began"] * 1e9), round(event["at"] * 1e9))
    assert {"step think", "step pay", "step boom", "compensate pay"} <= times.keys()
    for spans in (whole, trace):
        found = {one.name: (one.start_ns, one.end_ns) for one in spans if one.name in times}
        assert found == times
    parent = next(one for one in trace if one.name == "step think")
    inside = [one for one in trace if one.parent_id == parent.span_id]
    assert len(inside) == 1
    assert abs(inside[0].start_ns - parent.start_ns) < 60e9, "what lies within moved along"
    root = next(one for one in trace if one.parent_id is None)
    assert {one.parent_id for one in trace if one.name in times} == {root.span_id}


async def test_labels_join_on_the_way(deploy: Deploy, seen: Observer, bank: Bank) -> None:
    """Trust goes down and never up; subjects stay with everything that came of them."""
    tainted = think("again").replace("$input.text", "$steps.note.text")
    constant = "- {id: plain, kind: tool, tool: note, input: {text: nothing of anybody}}\n"
    desk = await deploy(workflow("w", think(), NOTE, tainted, constant, PAY, allow="note, refund"))
    run = await desk.start("w", customer="cus-001")
    assert await seen.finished(run) == ["succeeded"]
    labels = {e["step"]: e["output"]["labels"] for e in seen.journal(run) if e["type"] == "step_succeeded"}
    labels["input"] = seen.rows("select input from runs")[0][0]["labels"]
    subject = desk.app.keys.pseudonym(desk.admin.org_id, "cus-001")
    everything = {name: (one["trust"], one["sensitivity"], one["subjects"]) for name, one in labels.items()}
    assert everything == {
        "input": ("user", "pii", [subject]),
        "think": ("user", "pii", [subject]),
        "note": ("tool", "pii", [subject]),
        "again": ("tool", "pii", [subject]),
        "plain": ("tool", "public", []),
        "pay": ("tool", "pii", [subject]),
    }
    assert labels["again"]["origins"] == ["input", "model:fake", "tool:note"]
    assert labels["again"]["as_of"] == labels["note"]["as_of"] is not None
    assert labels["think"]["as_of"] is None
    # The ledger's arguments are a value too.
    assert seen.rows("select input -> 'labels' -> 'subjects' from effects") == [([subject],)]


def marked(word: str) -> str:
    """A marker nobody writes by chance."""
    return f"zq-{word}-7731"


async def test_no_value_is_anywhere_in_the_clear(
    deploy: Deploy, project: Path, seen: Observer, model: Model, log_file: Path
) -> None:
    """Input, model output, tool output, tool noise, and what tools raise: only ever encrypted."""
    model.answers["think"] = {"verdict": "good", "words": f"the model says {marked('model')}"}
    (project / "tools/note/main.py").write_text(
        "def run(text):\n"
        f"    print('noise {marked('noise')}', text)\n"
        f"    return {{'text': text + ' {marked('output')}', 'done': True}}\n"
    )
    (project / "tools/boom/main.py").write_text(
        f"def run(**given):\n    raise LookupError('there is no ' + given['text'] + ' {marked('raised')}')\n"
    )
    boom = "- {id: boom, kind: tool, tool: boom, input: {text: $input.text}}\n"
    show = ASK.replace("{ticket: $input.ticket}", "{text: $steps.note.text}")
    desk = await deploy(workflow("w", think(), NOTE, show, boom, allow="note, boom", output="{text: $steps.note.text}"))
    run = await desk.start("w", text=f"I am {marked('input')}", customer=marked("customer"))
    await desk.app.reviews.decide(desk.admin, await seen.review(run), "approve", "")
    assert await seen.finished(run) == ["failed"]
    await desk.flush()

    words = ("input", "model", "output", "noise", "raised", "customer")
    everything = seen.everywhere() + log_file.read_text()
    assert [word for word in words if marked(word) in everything] == []
    # The search would have found it: the key and the run are there, and so is what was asked of whom.
    assert run in everything
    assert "step.failed" in log_file.read_text()
    assert marked("output") in str(await desk.app.runs.result(desk.admin, run))
    # Who may see values still learns what the tool said.
    (failed,) = [step for step in (await desk.app.runs.get(desk.admin, run)).steps if step.id == "boom"]
    said = f"LookupError: there is no I am {marked('input')} {marked('raised')}"
    assert failed.error == f'tool "boom" failed (LookupError): {said}'


async def test_no_credential_is_anywhere_in_the_clear(
    deploy: Deploy, project: Path, seen: Observer, model: Model, log_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider's key, an API key, and what the provider says when it repeats one."""
    secret = "sk-" + "s3cr3tv4lue" * 3
    monkeypatch.setenv("OPENAI_API_KEY", secret)
    model.script(status(401, f"Incorrect API key provided: {secret}"))
    desk = await deploy(workflow("w", think()))
    key = await desk.app.admin.issue_key(desk.admin, "rita", frozenset({"viewer"}))
    run = await desk.start("w")
    assert await seen.finished(run) == ["failed"]
    assert model.requests[0].headers["authorization"] == f"Bearer {secret}"
    await desk.flush()
    everything = seen.everywhere() + log_file.read_text()
    assert "s3cr3tv4lue" not in everything
    assert key.split("_")[2] not in everything
    assert key.split("_")[1] in everything  # its public half is how people speak of it


async def test_what_a_tool_said_is_erased_with_its_people(deploy: Deploy, project: Path, seen: Observer) -> None:
    (project / "tools/boom/main.py").write_text("def run(text):\n    raise LookupError('no ' + text)\n")
    boom = "- {id: boom, kind: tool, tool: boom, input: {text: $input.text}}\n"
    desk = await deploy(workflow("w", boom, allow="boom"))
    run = await desk.start("w", customer="cus-001", text="Ada")
    assert await seen.finished(run) == ["failed"]
    error = 'tool "boom" failed (LookupError)'
    assert (await desk.app.runs.get(desk.admin, run)).steps[0].error == f"{error}: LookupError: no Ada"
    keys = desk.app.keys
    await keys.destroy(desk.admin.org_id, keys.pseudonym(desk.admin.org_id, "cus-001"))
    assert (await desk.app.runs.get(desk.admin, run)).steps[0].error == error


async def test_the_journal_of_a_failure_folds(deploy: Deploy, project: Path, seen: Observer) -> None:
    """A failure that carries what the tool said survives its way through the journal, in another process's hands."""
    code = "from interlock_tool import Retry\ndef run(text):\n    raise Retry('later, ' + text, retry_after=1)\n"
    (project / "tools/note/main.py").write_text(code)
    note = "- {id: note, kind: tool, tool: note, input: {text: $input.ticket}, retry: {max_attempts: 2}}\n"
    desk = await deploy(workflow("w", note, allow="note"))
    run = await desk.start("w")
    await until(lambda: "step_failed note" in seen.kinds(run), lambda: str(seen.kinds(run)))
    await desk.app.engine.drain()  # type: ignore[union-attr]
    await desk.app.start_worker()
    assert await seen.finished(run) == ["failed"]
    assert seen.kinds(run) == ["run_started", "step_failed note", "timer_fired retry:note:1", "step_failed note"]


SUB = """\
name: inner
input: {type: object, properties: {text: {type: string}}, additionalProperties: false}
allow: [note]
steps:
- {id: copy, kind: tool, tool: note, input: {text: $input.text}}
output: {text: $steps.copy.text}
"""


def reading(step: str, binding: str, extra: str = "") -> str:
    return think(step, attempts=1).replace("$input.text", binding) + extra


async def test_labels_come_along_whichever_way_a_value_takes(deploy: Deploy, seen: Observer, model: Model) -> None:
    """Cache, last good answer, map, subworkflow, agent, signal: none raises trust, and none drops an origin."""
    ways = (
        "- {id: assist, kind: agent, prompt: think, values: {text: hello}, tools: [note],\n"
        "   output: {title: assist, type: object, properties: {said: {type: string}}}}\n",
        "- {id: note, kind: tool, tool: note, input: {text: $input.text}}\n",
        reading("cached", "$steps.note.text", "  cache: 600\n"),
        reading("good", "$steps.note.text", "  fallback: [{last_good: true, max_age: 600}]\n"),
        "- id: each\n  kind: map\n  items: $input.list\n  steps:\n"
        "  - {id: copy, kind: tool, tool: note, input: {text: $item}}\n  result: $steps.copy.text\n",
        reading("of_map", "$steps.each.0"),
        "- {id: sub, kind: subworkflow, workflow: inner, input: {text: $input.text}}\n",
        reading("of_sub", "$steps.sub.text"),
        "- {id: go, kind: wait, signal: go, payload: {type: object, properties: {said: {type: string}}}}\n",
        reading("of_go", "$steps.go.said"),
        reading("constant", "nothing of anyone"),
    )
    files = workflow("w", *ways, allow="note")
    name, text = next(iter(files.items()))
    files[name] = text.replace(
        "    text: {type: string}\n", "    text: {type: string}\n    list: {type: array, items: {type: string}}\n"
    )
    desk = await deploy(files, {"workflows/inner.yaml": SUB})
    call = answer({"calls": [{"tool": "note", "arguments": {"text": "x"}}], "answer": None})
    said = answer({"calls": [], "answer": {"said": "fine"}})
    for number, script in ((1, [call, said]), (2, [call, said, server_error()])):
        model.script(*script)  # the second time `cached` asks no model, and `good` is refused
        run = await desk.start("w", text="a", list=["b"])
        await desk.app.signals.signal(desk.admin, run, "go", {"said": "hi"}, f"s{number}")
        assert await seen.finished(run) == ["succeeded"]
        labels = {e["step"]: e["output"]["labels"] for e in seen.journal(run) if e["type"] == "step_succeeded"}
        tool, person = {"tool:note", "input"}, "user"
        for step in ("cached", "good", "of_map", "of_sub"):
            assert (labels[step]["trust"], tool <= {*labels[step]["origins"]}) == ("tool", True), (number, step)
        assert (labels["assist#2/turn"]["trust"], "tool:note" in labels["assist#2/turn"]["origins"]) == ("tool", True)
        assert labels["of_go"]["trust"] == person
        assert labels["constant"]["trust"] == "developer", "a model is not more trusted than its prompt"
