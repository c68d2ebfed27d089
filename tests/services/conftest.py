from __future__ import annotations

# The stage of the step's tests: deploy a small workflow of the test's own, and run it.
from execution.conftest import *  # noqa: F403
