"""The table of a report as plain cells: what the terminal, the coloured table and the page all show."""

from __future__ import annotations

from math import prod

from nettrim.report import format as fmt
from nettrim.results import LayerResult

# (title, whether it is aligned to the right)
COLUMNS: tuple[tuple[str, bool], ...] = (
    ("layer", False),
    ("kind", False),
    ("shape", True),
    ("activation", False),
    ("before", True),
    ("after", True),
    ("sparsity", True),
    ("epsilon", True),
    ("discrepancy", True),
    ("gap", True),
    ("certified", False),
)

# the measurements are in float64: this is far above their rounding and far below what a user would call a breach
FEASIBILITY = 1e-6


def sparsity(layer: LayerResult) -> float:
    """Fraction of zeros among a layer's weights; its bias is not counted."""
    total = prod(layer.shape)
    return 1.0 - layer.nonzeros_after / total if total else 0.0


def exceeds(layer: LayerResult) -> bool:
    """Whether a layer was measured above the tolerance it was asked to keep."""
    if layer.epsilon is None or layer.discrepancy is None:
        return False
    return not layer.discrepancy <= layer.epsilon * (1 + FEASIBILITY)


def cells(layer: LayerResult) -> tuple[str, ...]:
    """One layer's cells, in the order of COLUMNS."""
    certified = fmt.MISSING if layer.skipped is not None else ("yes" if layer.certified else "no")
    return (
        fmt.clean(layer.name),
        fmt.clean(layer.kind),
        fmt.shape(layer.shape),
        fmt.clean(layer.activation) or fmt.MISSING,
        fmt.count(layer.nonzeros_before),
        fmt.count(layer.nonzeros_after),
        fmt.percent(sparsity(layer)),
        fmt.setting(layer.epsilon),
        fmt.number(layer.discrepancy),
        fmt.gap(layer.gap),
        certified,
    )
