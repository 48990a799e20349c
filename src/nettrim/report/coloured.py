"""A report as a coloured table for the terminal: needs the package rich, from the `cli` extra."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nettrim.errors import MissingExtraError
from nettrim.report import rows
from nettrim.report.table import network_lines

if TYPE_CHECKING:
    from rich.console import Group

    from nettrim.report.report import Report
    from nettrim.results import LayerResult


def renderable(report: Report) -> Group:
    """What rich's Console.print shows: the layers, the whole net, the bounds and the notes.

    Raises MissingExtraError without rich.
    """
    try:
        from rich import box  # noqa: PLC0415
        from rich.console import Group  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("rich", "cli") from error

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title, right in rows.COLUMNS:
        table.add_column(title, justify="right" if right else "left", no_wrap=title != "layer", overflow="fold")
    for layer in report.layers:
        # Text, never markup: a layer may be called [red]
        table.add_row(*map(Text, rows.cells(layer)), style=_style(layer))
    skipped = [Text(f"skipped {row.name}: {row.skipped}", style="dim") for row in report.layers if row.skipped]
    lines = [Text(line) for line in network_lines(report.network)]
    notes = [Text(f"note: {note}", style="yellow") for note in report.result.notes]
    return Group(table, *skipped, Text(report.headline, style="bold"), *lines, *notes)


def _style(layer: LayerResult) -> str:
    if layer.skipped is not None:
        return "dim"
    if rows.exceeds(layer):
        return "red"
    return "" if layer.certified else "yellow"
