"""`examples/support_triage/bank.py`, which leaves POSTs without an answer while the file `hold` lies beside its book.

The file says how many POSTs are answered all the same, counted from the first. As with `--delay`, what was asked for is done
by then; but a test decides how long the caller waits.
"""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "support_triage"))
import bank  # type: ignore[import-not-found]

HOLD = Path(sys.argv[sys.argv.index("--db") + 1]).with_name("hold")
NUMBERS = itertools.count(1)


class Handler(bank.Handler):
    def _answer(self, status: int, body: dict[str, Any]) -> None:
        number = next(NUMBERS) if self.command == "POST" else 0
        while number > _answered():
            time.sleep(0.02)
        super()._answer(status, body)


def _answered() -> float:
    try:
        return int(HOLD.read_text())
    except FileNotFoundError:
        return float("inf")


if __name__ == "__main__":
    bank.Handler = Handler
    bank.main()
