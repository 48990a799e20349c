"""A report as plain text: the table that str() shows, with no dependency."""

from __future__ import annotations

from collections.abc import Sequence

from nettrim.report import format as fmt
from nettrim.report import rows
from nettrim.results import LayerResult, NetworkResult


def text_table(header: Sequence[str], body: Sequence[Sequence[str]], right: Sequence[bool]) -> list[str]:
    """Lines of an aligned table: header, rule, rows; `right` says which columns align to the right."""
    widths = [max(len(row[column]) for row in (header, *body)) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        )
        return "  ".join(padded).rstrip()

    return [line(header), "  ".join("-" * width for width in widths), *(line(row) for row in body)]


def layers_table(layers: Sequence[LayerResult]) -> list[str]:
    """The table of layers, a row each, and why the skipped ones were left as they were."""
    header = [title for title, _ in rows.COLUMNS]
    lines = text_table(header, [rows.cells(layer) for layer in layers], [right for _, right in rows.COLUMNS])
    lines += [f"skipped {fmt.clean(layer.name)}: {fmt.clean(layer.skipped)}" for layer in layers if layer.skipped]
    return lines


def network_lines(network: NetworkResult) -> list[str]:
    """The theorem's bound beside what was measured, a line each."""
    if network.bound is None:
        bound = f"none ({fmt.clean(network.bound_reason) or 'no theorem covers this structure'})"
    else:
        bound = fmt.number(network.bound) + (f"  ({fmt.clean(network.theorem)})" if network.theorem else "")
    if network.discrepancy_holdout is None:
        holdout = "not measured (no held-out data)"
    else:
        holdout = fmt.number(network.discrepancy_holdout) + _samples(network.samples_holdout)
    return [
        f"network bound on calibration data  {bound}",
        f"measured on calibration data       {fmt.number(network.discrepancy)}{_samples(network.samples)}",
        f"measured on held-out data          {holdout}",
    ]


def _samples(number: int) -> str:
    return f"  ({fmt.count(number)} sample{'' if number == 1 else 's'})" if number else ""
