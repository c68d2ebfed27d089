"""Table of the commands, and the group that imports a command only when it is used.

Importing everything takes a hundred times longer than `interlock --help` itself, so the help is made of this table.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

import typer
from typer.core import TyperGroup
from typer.main import get_group_from_info
from typer.models import TyperInfo

if TYPE_CHECKING:  # the public names of the library lack these
    from typer._click import Command, Context, HelpFormatter


class CommandEntry(NamedTuple):
    """A command or a group of commands: its module in this package, and the first paragraph of its help."""

    module: str
    help: str


COMMANDS = {
    "init": CommandEntry("projects", "Create a small working project: workflow, prompt, tool, policy, eval case."),
    "check": CommandEntry(
        "projects", "Check the project in this directory: every file, and the references between them."
    ),
    "schema": CommandEntry(
        "projects",
        "Print the JSON Schema of a definition file, or the API's OpenAPI document; for editors and other tools.",
    ),
    "eval": CommandEntry("projects", "Run the cases in evals/ and compare the results; exit code 7 if any fails."),
    "dev": CommandEntry(
        "servers",
        "Run everything in one process: API, worker, database. Definitions are reloaded when their files change.",
    ),
    "serve": CommandEntry("servers", "Run the API only; workers run elsewhere on the same database."),
    "worker": CommandEntry("servers", "Run a worker only. Any number of workers can share one database."),
    "deploy": CommandEntry(
        "servers",
        "Deploy the project in this directory as the version for new runs, and activate its policies for all runs.",
    ),
    "migrate": CommandEntry("servers", "Migrate the database to this version's schema."),
    "demo": CommandEntry("demo", "Run the support-triage example end to end; all processes end afterwards."),
    "run": CommandEntry("runs", "Start a run and follow it until it ends or waits for a person."),
    "runs": CommandEntry("runs", "List runs, newest first."),
    "show": CommandEntry(
        "runs", "Show a run: its steps, values, effects, result, and of failed tools the traceback and the last output."
    ),
    "trace": CommandEntry("runs", "Show a run's trace as a waterfall."),
    "cancel": CommandEntry("runs", "Cancel a run; its effects are compensated if their tools can."),
    "signal": CommandEntry("runs", "Send a signal to a run, whose workflow waits for it now or later."),
    "pause": CommandEntry(
        "runs", "Pause a run: work under way is finished, and no new work starts until `interlock resume`."
    ),
    "resume": CommandEntry("runs", "Resume a paused run."),
    "doctor": CommandEntry("doctor", "Check this host and report what is missing."),
    "versions": CommandEntry(
        "versions",
        "List a workflow's versions, newest first, with their parts; without a name, the head version of every"
        " workflow.",
    ),
    "workers": CommandEntry("fleet", "List the workers of this database."),
    "drain": CommandEntry("fleet", "Ask workers to finish the steps under way, release their runs and exit."),
    "chaos": CommandEntry(
        "chaos", "Inject faults while runs are in progress, and compare the effects with a counter outside."
    ),
    "simulate": CommandEntry(
        "simulate", "Run random workflows with random faults and check the invariants of the state machine."
    ),
    "review": CommandEntry("reviews", "Reviews: questions that wait for a person's decision."),
    "dead-letters": CommandEntry(
        "dead_letters", "The dead-letter queue: finally failed work that waits for an operator."
    ),
    "events": CommandEntry(
        "events",
        "Events for receivers, such as the webhook: those that were not taken, and the key of their signatures.",
    ),
    "audit": CommandEntry("audit", "The audit log: every action, hash-chained and signed."),
    "keys": CommandEntry("keys", "API keys of your organisation."),
    "policies": CommandEntry(
        "policies",
        "Policy sets of your organisation. The active one applies to every call, also of runs in flight.",
    ),
    "quota": CommandEntry("quotas", "Limits of your organisation, its workflows and tools: concurrency and rate."),
}


class CommandGroup(TyperGroup):
    """A group whose help shows the first paragraph of every command in full."""

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:  # noqa: ARG002  the library's signature
        rows = [(name, _first_paragraph(command.help)) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class LazyGroup(CommandGroup):
    """The group of all commands; a command's module is imported when the command is resolved."""

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, Command | None, list[str]]:
        name, _, rest = super().resolve_command(ctx, args)
        return name, None if name is None else load(name), rest


def load(name: str) -> Command:
    """The command or group of that name, with its options."""
    module = import_module(f"interlock.cli.{COMMANDS[name].module}")
    group = getattr(module, "group", None)
    if group is None:
        registered = typer.Typer()
        module.register(registered)
        return _made(registered, None).commands[name]
    return _made(group, name)


def _made(group: typer.Typer, name: str | None) -> TyperGroup:
    info = TyperInfo(group, name=name, cls=CommandGroup)
    return get_group_from_info(info, pretty_exceptions_short=True, suggest_commands=True, rich_markup_mode=None)


def _first_paragraph(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split())
