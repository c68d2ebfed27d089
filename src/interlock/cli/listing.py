"""Lists in the terminal: ids and states are never cut, other columns are left out where the terminal is narrow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.padding import Padding
from rich.text import Text

from interlock.cli.console import out, visible

_GAP = "  "


@dataclass(frozen=True, slots=True)
class ListRow:
    """A row of a list. `note` is a sentence: in a column of its own if the width allows it, else below the row."""

    cells: Sequence[str | Text]
    note: str = ""


def print_rows(
    columns: Sequence[str], rows: Sequence[ListRow], *, note: str = "", leave_out: Sequence[str] = ()
) -> None:
    """Prints a list.

    Args:
        note: name of the column of notes.
        leave_out: columns that a narrow terminal does not get, the first of them first.
    """
    table = [[Text(name, style="bold") for name in columns], *([_text(cell) for cell in row.cells] for row in rows)]
    notes = [note, *(visible(row.note) for row in rows)]
    widths = [max(line[index].cell_len for line in table) for index in range(len(columns))]
    shown = list(range(len(columns)))

    def width() -> int:
        return sum(widths[index] for index in shown) + len(_GAP) * (len(shown) - 1)

    room = out.width
    beside = bool(note) and width() + len(_GAP) + max(Text(one).cell_len for one in notes) <= room
    for name in leave_out:
        if width() <= room:
            break
        shown.remove(columns.index(name))
    for line, text in zip(table, notes, strict=True):
        padded = [line[index] + " " * (widths[index] - line[index].cell_len) for index in shown]
        last = [Text(text)] if beside else []
        joined = Text(_GAP).join([*padded, *last])
        joined.rstrip()
        out.print(joined, soft_wrap=True)
        if text and not beside and line is not table[0]:
            out.print(Padding(Text(text, style="dim"), (0, 0, 0, 4), expand=False))


def _text(cell: str | Text) -> Text:
    return Text(visible(cell)) if isinstance(cell, str) else cell
