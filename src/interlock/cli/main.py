"""The `interlock` command. Every failure is one sentence and an exit code; `INTERLOCK_DEBUG=1` shows the stack."""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from interlock.base.errors import InterlockError, Unavailable
from interlock.cli.commands import COMMANDS, LazyGroup
from interlock.cli.location import choose_project

cli = typer.Typer(
    name="interlock",
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"interlock {version('interlock')}")
        raise typer.Exit


@cli.callback()
def options(
    context: typer.Context,
    project: Annotated[
        Path | None,
        typer.Option(
            "--project",
            "-C",
            metavar="DIRECTORY",
            help="Directory of the project. Without it: the nearest one with interlock.toml or workflows/,"
            " from the working directory upwards.",
        ),
    ] = None,
    version: Annotated[  # noqa: ARG001  its callback prints it
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Run AI agents in production: durable workflows with budgets, policies, reviews and an audit log."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit
    if project is not None:
        choose_project(project)


def _not_loaded() -> None:
    raise AssertionError("LazyGroup replaces this by the command itself")


for _name, _entry in COMMANDS.items():
    cli.command(_name, help=_entry.help)(_not_loaded)


def main() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # in a locale such as C, bars and dots are written as escapes
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as it is under nohup
        signal.signal(signal.SIGHUP, _hang_up)
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


def _hang_up(*_: object) -> None:
    """Handles SIGHUP, the end of the terminal, like Ctrl-C."""
    from interlock.cli.console import detach_from_terminal

    detach_from_terminal()
    _terminate()


def _fail(message: str, code: int) -> NoReturn:
    from interlock.cli.console import errors as console

    console.print(message, style="red", soft_wrap=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
