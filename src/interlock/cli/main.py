"""The `interlock` command. Every failure is one sentence and an exit code; `INTERLOCK_DEBUG=1` shows the stack."""

from __future__ import annotations

import os
import sys

import typer

from interlock.base.errors import InterlockError
from interlock.cli import audit, demo, doctor, keys, projects, reviews, runs, servers
from interlock.cli.console import errors as console

cli = typer.Typer(
    name="interlock",
    help="Run AI agents in production: observable, bounded, recoverable, provable.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for group in (projects, servers, demo, runs, doctor):
    group.register(cli)
cli.add_typer(reviews.group, name="review")
cli.add_typer(audit.group, name="audit")
cli.add_typer(keys.group, name="keys")


def main() -> None:
    """Entry point of the console script."""
    try:
        cli()
    except InterlockError as error:
        if os.environ.get("INTERLOCK_DEBUG"):
            raise
        console.print(error.message, style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # `interlock runs | head`: the reader has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    main()
