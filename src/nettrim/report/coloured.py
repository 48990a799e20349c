"""A report as a coloured table for the terminal: needs the package rich, from the `cli` extra."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nettrim.errors import MissingExtraError
from nettrim.report import rows
from nettrim.report.table import network_lines

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, Group
    from rich.table import Table

    from nettrim.report.report import Report
    from nettrim.results import LayerResult


_SPARE = ("kind", "activation", "shape", "before", "gap", "epsilon")  # left out on a narrow terminal, in this order
_NAME, _GAP = 24, 3  # columns of a layer's name before it folds; between two columns


def renderable(report: Report) -> Group:
    """What rich's Console.print shows: the layers, the whole net, the bounds and the notes.

    Raises MissingExtraError without rich.
    """
    try:
        from rich import box  # noqa: PLC0415
        from rich.console import Group  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise MissingExtraError((error.name or "rich").partition(".")[0], "cli") from error

    class Layers:
        """The table in as many columns as the terminal has room for."""

        def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
            chosen = _fitting(report, options.max_width)
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
            for title, right in (rows.COLUMNS[place] for place in chosen):
                table.add_column(title, justify="right" if right else "left", no_wrap=title != "layer", overflow="fold")
            for layer in report.layers:
                cells = rows.cells(layer)
                # Text, never markup: a layer may be called [red]
                table.add_row(*(Text(cells[place]) for place in chosen), style=_style(layer))
            yield table

    skipped = [Text(f"skipped {row.name}: {row.skipped}", style="dim") for row in report.layers if row.skipped]
    lines = [Text(line) for line in network_lines(report.network)]
    notes = [Text(f"note: {note}", style="yellow") for note in report.result.notes]
    return Group(Layers(), *skipped, Text(report.headline, style="bold"), *lines, *notes)


def _fitting(report: Report, width: int) -> list[int]:
    """The columns that fit side by side; the least telling ones go first, and a long layer name may fold."""
    cells = [tuple(title for title, _ in rows.COLUMNS), *(rows.cells(layer) for layer in report.layers)]
    needed = {
        title: min(max(len(row[place]) for row in cells), _NAME if title == "layer" else width) + _GAP
        for place, (title, _) in enumerate(rows.COLUMNS)
    }
    for title in _SPARE:
        if sum(needed.values()) <= width:
            break
        needed.pop(title, None)
    return [place for place, (title, _) in enumerate(rows.COLUMNS) if title in needed]


def _style(layer: LayerResult) -> str:
    if layer.skipped is not None:
        return "dim"
    if rows.exceeds(layer):
        return "red"
    return "" if layer.certified else "yellow"
