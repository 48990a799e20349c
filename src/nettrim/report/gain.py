"""The table of true gains: what the network weighs, takes on disk and costs to run, before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nettrim.report import format as fmt

STAGES = ("dense", "trimmed", "shrunk")
_KNOWN = {
    "accuracy": ("accuracy", fmt.percent),
    "weights": ("weights", fmt.count),
    "bytes": ("bytes on disk", fmt.size),
    "bytes_sparse": ("bytes by save_sparse", fmt.size),
    "latency": ("latency", fmt.duration),
}
_WORDS = {"weights": ("fewer", "more"), "latency": ("faster", "slower")}
_VERDICTS = "verdicts"  # of a quantity by stage, where a factor alone would claim too much


@dataclass(frozen=True)
class GainTable:
    """Cells ready to show: one row a quantity, one column a stage, and the change from first to last."""

    stages: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...], str], ...]
    note: str


def gain_table(gain: Mapping[str, Any] | None) -> GainTable | None:
    """The table for a report's `gain`; None when there is nothing to show."""
    gain = gain or {}
    quantities = {name: row for name, row in gain.items() if isinstance(row, Mapping) and name != _VERDICTS}
    verdicts = gain.get(_VERDICTS)
    stages = tuple(stage for stage in STAGES if any(fmt.known(row.get(stage)) for row in quantities.values()))
    if not stages:
        return None
    order = [name for name in _KNOWN if name in quantities] + [name for name in quantities if name not in _KNOWN]
    rows = []
    for name in order:
        title, write = _KNOWN.get(name, (fmt.clean(name), fmt.number))
        values = {stage: quantities[name].get(stage) for stage in stages}
        said = verdicts.get(name) if isinstance(verdicts, Mapping) else None
        change = _change(name, values, said if isinstance(said, Mapping) else {})
        rows.append((title, tuple(write(value) for value in values.values()), change))
    return GainTable(stages, tuple(rows), str(gain.get("note") or ""))


def _change(name: str, values: Mapping[str, Any], verdicts: Mapping[str, Any]) -> str:
    """In words, from the first stage to the last one known: the verdict on it where there is one, accuracy in points,
    the rest as a factor."""
    present = [stage for stage, value in values.items() if fmt.known(value)]
    if len(present) < 2:
        return fmt.MISSING
    if isinstance(verdicts.get(present[-1]), str):
        return fmt.clean(verdicts[present[-1]])
    first, last = values[present[0]], values[present[-1]]
    if name == "accuracy":
        points = 100 * (last - first)
        return "unchanged" if abs(points) < 0.005 else f"{points:+.2f} points".replace("-", "\u2212")
    if first <= 0 or last <= 0:
        return fmt.MISSING
    fewer, more = _WORDS.get(name, ("smaller", "larger"))
    factor = max(first / last, last / first)
    return "unchanged" if factor < 1.005 else f"{factor:.2f} × {fewer if last < first else more}"
