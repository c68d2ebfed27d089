"""Static checks of a tool's code against its contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from interlock.tools.code_check import missing_imports, signature_faults
from interlock.workflows.contracts import ToolContract

CONTRACT = ToolContract(
    name="t",
    description="",
    effect="pure",
    input={"type": "object", "properties": {"pair": {"type": "string"}, "more": {"type": "string"}}},
    output={},
)


@pytest.mark.parametrize(
    ("signature", "faults"),
    [
        ("def run(pair, more)", []),
        ("def run(pair, more=None, other=5)", []),
        ("async def run(*, pair, more, context)", []),
        ("def run(**arguments)", []),
        ("@wrapped\ndef run(x)", []),
        (
            "def run(par, more)",
            ['needs "par", which is no declared argument; input declares more, pair', 'takes no "pair"'],
        ),
        ("def run(pair)", ['takes no "more", which input declares; add the parameter']),
        ("def run(pair, *, more, x)", ['needs "x"']),
        ("def run(pair, /, more)", ["takes pair by position"]),
    ],
)
def test_the_signature(tmp_path: Path, signature: str, faults: list[str]) -> None:
    main = tmp_path / "main.py"
    main.write_text(f"import os\n{signature}: return {{}}\n")
    found = signature_faults(main, CONTRACT)
    assert len(found) == len(faults)
    for said, wanted in zip(found, faults, strict=True):
        assert said.startswith("main.py:2: run()") or signature.startswith("@")
        assert wanted in said


def test_imports(tmp_path: Path) -> None:
    main = tmp_path / "main.py"
    (tmp_path / "beside.py").touch()
    (tmp_path / "below").mkdir()
    main.write_text(
        "import os.path, nonexistent\nimport beside, pydantic\nfrom below import x\nfrom interlock_tool import Retry\n"
        "from absent.part import y\nfrom . import z\ntry:\n    import optional\nexcept ImportError:\n    pass\n"
        "def run():\n    import later\n"
    )
    assert missing_imports(main) == [(1, "nonexistent"), (5, "absent.part")]
