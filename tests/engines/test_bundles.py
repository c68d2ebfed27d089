"""Tool code that was altered on a worker's disk is not executed."""

from __future__ import annotations

from pathlib import Path

from engines.conftest import Desk, OpenApp
from engines.harness import Bank, Observer


async def test_altered_tool_code_is_unpacked_anew(
    desk: Desk, open_app: OpenApp, seen: Observer, bank: Bank, data_dir: Path
) -> None:
    first = await open_app(start_worker=True)
    run = await desk.start("pay_keyed", ticket="a")
    assert await seen.finished(run) == ["succeeded"]
    await first.__aexit__(None, None, None)

    unpacked = list((data_dir / "bundles").glob("*/main.py"))
    assert len(unpacked) >= 2
    for main in unpacked:
        main.write_text("def run(**given):\n    raise RuntimeError('other code')\n")
    await open_app(start_worker=True)
    run = await desk.start("pay_keyed", ticket="b")
    assert await seen.finished(run) == ["succeeded"]
    assert bank.refunds == {"a": 1, "b": 1}
    aside = [path for path in (data_dir / "bundles").iterdir() if ".altered-" in path.name]
    assert len(aside) == len(unpacked)
