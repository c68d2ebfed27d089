"""Exit codes of commands that have no error; those of errors are in `base/errors.py`. docs/operations.md has the list."""

from interlock.base.errors import StepError

FAILED = StepError.exit_code
WAITING = 10  # the run goes on after a person's decision or a signal
PARTIAL = 11  # the run ended, and a part of its result is missing
