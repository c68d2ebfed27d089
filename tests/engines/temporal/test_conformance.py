"""The tests of the PostgreSQL engine that speak of no lease, on this engine."""

from engines.test_crashes import *  # noqa: F403
from engines.test_doubt import *  # noqa: F403
from engines.test_endings import *  # noqa: F403
from engines.test_erasure import *  # noqa: F403
from engines.test_reviews import *  # noqa: F403
