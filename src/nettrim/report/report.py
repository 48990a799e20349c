"""The report of a trim: every layer, the whole network, and what backs the numbers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nettrim.report import coloured, page, serial
from nettrim.report import format as fmt
from nettrim.report.table import layers_table, network_lines
from nettrim.results import LayerResult, NetworkResult, TrimResult

if TYPE_CHECKING:
    from rich.console import Group


@dataclass(frozen=True, eq=False)
class Report:
    """What a trim did; `str(report)` is a table.

    recipe: the settings used, by name.
    tradeoff: points of the trade-off curve, dictionaries with `epsilon`, `sparsity`, `discrepancy`
        and, where known, `accuracy` and `scheme`; fractions, not percentages.
    gain: what was gained in truth: `accuracy` (fractions), `weights`, `bytes` (on disk), `bytes_sparse` (of
        `save_sparse`), `latency` (seconds), each a dictionary with any of `dense`, `trimmed`, `shrunk`; `verdicts`, by
        quantity and stage, are words for a change that may be none; `note` says how it was measured.
    """

    result: TrimResult
    recipe: Mapping[str, Any] | None = None
    tradeoff: Sequence[Mapping[str, Any]] = ()
    gain: Mapping[str, Any] | None = field(default=None)

    @property
    def layers(self) -> tuple[LayerResult, ...]:
        """One record a layer, skipped ones included."""
        return self.result.layers

    @property
    def network(self) -> NetworkResult:
        """The network's bound and its measured discrepancies."""
        return self.result.network

    @property
    def weights(self) -> int:
        """How many weights the layers have, zeros and skipped layers included, biases not."""
        return sum(prod(layer.shape) for layer in self.layers)

    @property
    def nonzeros_before(self) -> int:
        """Weights that were not zero before the trim, over all layers."""
        return sum(layer.nonzeros_before for layer in self.layers)

    @property
    def nonzeros_after(self) -> int:
        """Weights that are not zero after the trim, over all layers."""
        return sum(layer.nonzeros_after for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Fraction of zeros among the weights of all layers, skipped ones included; biases are not counted."""
        return 1.0 - self.nonzeros_after / self.weights if self.weights else 0.0

    @property
    def trimmed(self) -> tuple[LayerResult, ...]:
        """The layers that were not skipped."""
        return tuple(layer for layer in self.layers if layer.skipped is None)

    @property
    def certified(self) -> bool:
        """Whether at least one layer was trimmed and every trimmed one is certified."""
        return bool(self.trimmed) and all(layer.certified for layer in self.trimmed)

    @property
    def headline(self) -> str:
        """The whole net in one line."""
        scheme = f", {fmt.clean(self.result.scheme)}" if self.result.scheme else ""
        certified = sum(layer.certified for layer in self.trimmed)
        return (
            f"whole net: {fmt.count(self.nonzeros_before)} -> {fmt.count(self.nonzeros_after)} weights, "
            f"sparsity {fmt.percent(self.sparsity)}, {certified} of {len(self.trimmed)} trimmed layers certified"
            f"{scheme}, {fmt.duration(self.result.seconds)}"
        )

    def __str__(self) -> str:
        notes = [f"note: {fmt.clean(note)}" for note in self.result.notes]
        return "\n".join([*layers_table(self.layers), "", self.headline, *network_lines(self.network), *notes])

    def rich(self) -> Group:
        """The table in colour, for rich's Console.print; raises MissingExtraError without rich."""
        return coloured.renderable(self)

    def to_dict(self) -> dict[str, Any]:
        """All numbers as JSON's types (no NaN, no infinity: null); the weights themselves are not in it."""
        data: dict[str, Any] = {
            "format": serial.FORMAT,
            "scheme": self.result.scheme,
            "sparsity": self.sparsity,
            "weights": self.weights,
            "nonzeros_before": self.nonzeros_before,
            "nonzeros_after": self.nonzeros_after,
            "certified": self.certified,
            "seconds": self.result.seconds,
            "layers": [serial.layer_to_dict(layer) for layer in self.layers],
            "network": serial.network_to_dict(self.network),
            "notes": list(self.result.notes),
            "recipe": self.recipe,
            "tradeoff": list(self.tradeoff),
            "gain": self.gain,
        }
        return serial.plain(data)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """The report `to_dict` came from, without weights; raises InputError when a key is missing or wrong."""
        result = serial.result_from_dict(data)
        return cls(result, *serial.extras_from_dict(data))

    def to_html(self, path: str | os.PathLike[str], title: str = "Trim report") -> Path:
        """Write one self-contained HTML page (no network, no scripts) and return where it is.

        Raises MissingExtraError without matplotlib or jinja2, InputError when the file cannot be written.
        """
        scheme = self.result.scheme
        return page.render_page(title, [page.Section(f"Scheme: {scheme}" if scheme else "The trim", self)], path)
