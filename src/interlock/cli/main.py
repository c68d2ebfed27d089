"""The `interlock` command. Every failure is one sentence and an exit code; `INTERLOCK_DEBUG=1` shows the stack."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

import typer

from interlock.base.errors import InterlockError, Unavailable
from interlock.cli import (
    audit,
    chaos,
    dead_letters,
    demo,
    doctor,
    events,
    fleet,
    keys,
    policies,
    projects,
    quotas,
    reviews,
    runs,
    servers,
    simulate,
)
from interlock.cli.console import errors as console

cli = typer.Typer(
    name="interlock",
    help="Run AI agents in production: durable workflows with budgets, policies, reviews and an audit log.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for group in (projects, servers, demo, runs, doctor, fleet, chaos, simulate):
    group.register(cli)
cli.add_typer(reviews.group, name="review")
cli.add_typer(dead_letters.group, name="dead-letters")
cli.add_typer(events.group, name="events")
cli.add_typer(audit.group, name="audit")
cli.add_typer(keys.group, name="keys")
cli.add_typer(policies.group, name="policies")
cli.add_typer(quotas.group, name="quota")


def main() -> None:
    """Entry point of the console script."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        cli()
    except InterlockError as error:
        if os.environ.get("INTERLOCK_DEBUG"):
            raise
        _fail(error.message, error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # `interlock runs | head`: the reader has closed the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if os.environ.get("INTERLOCK_DEBUG"):
            raise
        _fail(f"{error.filename or 'the system'}: {error.strerror or error}", Unavailable.exit_code)
    except Exception as error:
        if os.environ.get("INTERLOCK_DEBUG"):
            raise
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        _fail(f"an internal error ({what}); INTERLOCK_DEBUG=1 shows where, please report it", InterlockError.exit_code)


def _terminate(*_: object) -> None:
    """Handles SIGTERM like Ctrl-C: runs are released, PostgreSQL is stopped."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell script started the command in the background
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)


def _fail(message: str, code: int) -> NoReturn:
    console.print(message, style="red", soft_wrap=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
