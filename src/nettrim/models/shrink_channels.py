"""Which channels a network can do without: channels tied together, the layers that read them, and a fixed point.

Every channel of every value carries a label. Operations that work channel by channel tie labels together (a residual
sum ties a channel of one branch to that of the other); a layer with weights separates its inputs' labels from its
outputs'. A label can go when every layer that reads it, and is itself still there, either gives it weights 0 or sees a
constant that its bias can take over. The largest such set is found by starting from all labels and taking back
until nothing changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nettrim.models.shrink_values import Array, Value, affine_range


@dataclass(frozen=True, eq=False)
class Affine:
    """A layer with weights: result = weight * source + bias."""

    name: str
    weight: Array  # (out, in / groups, taps) float64
    bias: Array  # (out,) float64, zeros where it has none
    groups: int
    padded: bool  # zeros at the border: a constant input is then not constant to the layer
    source: Value
    result: Value

    @property
    def depthwise(self) -> bool:
        """Whether every input channel has outputs of its own."""
        return self.groups > 1 and self.weight.shape[1] == 1

    def foldable(self) -> Array:
        """Input channels whose part in the result is exactly a constant."""
        return self.source.constant & ((self.source.low == 0) | (not self.padded))


@dataclass(frozen=True, eq=False)
class Kept:
    """What is left of one layer."""

    rows: Array  # kept outputs
    columns: Array  # kept inputs
    groups: int
    gather: bool  # whether the kept inputs are picked from a source that stays whole
    shift: Array  # (out,) added to the bias for the constants that went
    held: Array  # kept outputs that only hold a place: weight 0, bias `level`
    level: Array  # (out,)
    lost: dict[str, int]  # outputs that went: dead, constant, unused


class Channels:
    """Labels of channels, their ties, and the layers between them."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._pinned: list[int] = []
        self.affines: list[Affine] = []
        self._values: list[Value] = []

    def fresh(self, count: int, *, pinned: bool = False) -> Array:
        """New labels, one a channel; pinned ones are never removed."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        labels = np.arange(start, start + count)
        if pinned:
            self.pin(labels)
        return labels

    def pin(self, labels: Array) -> None:
        """Keep these channels whatever happens."""
        self._pinned.extend(int(label) for label in labels)

    def tie(self, one: Array, other: Array) -> None:
        """Let channels go only together, pair by pair."""
        for a, b in zip(one.tolist(), other.tolist(), strict=True):
            self._parent[self._root(a)] = self._root(b)

    def watch(self, value: Value) -> Value:
        """Register a value, of which at least one channel will be kept."""
        self._values.append(value)
        return value

    def affine(
        self, name: str, weight: Array, bias: Array, groups: int, source: Value, axis: int, *, padded: bool
    ) -> Value:
        """Register a layer with weights and return its result."""
        low, high = affine_range(weight, bias, source, padded=padded)
        labels = self.fresh(len(bias))
        result = Value(axis, labels, *_ordered(low, high))
        layer = Affine(name, weight, bias, groups, padded, source, result)
        if layer.depthwise:
            self.tie(labels, np.repeat(source.labels, len(labels) // len(source.labels)))
        self.affines.append(layer)
        self.watch(source)
        return self.watch(result)

    def solve(self) -> Solution:
        """The largest set of channels that can go, less what must stay so that shapes remain valid."""
        roots = np.array([self._root(label) for label in range(len(self._parent))], dtype=int)
        removed = np.ones(len(roots), dtype=bool)
        removed[roots[self._pinned]] = False
        while True:
            blocked = np.zeros(len(roots), dtype=bool)
            for layer in self.affines:
                if not layer.depthwise:
                    bad = _read(layer, ~removed[roots[layer.result.labels]]) & ~layer.foldable()
                    blocked[roots[layer.source.labels[bad]]] = True
            if not (removed & blocked).any():
                break
            removed &= ~blocked
        needless = removed.copy()
        self._hold_places(roots, removed)
        return Solution(roots, removed, needless, tuple(self.affines))

    def _hold_places(self, roots: Array, removed: Array) -> None:
        """Take channels back until no value is empty and the groups of a convolution are of equal size."""
        grouped = [layer for layer in self.affines if layer.groups > 1 and not layer.depthwise]
        blocks = [(v.labels, layer.groups) for layer in grouped for v in (layer.source, layer.result)]
        blocks += [(value.labels, 1) for value in self._values]
        before = -1
        while before != (before := int(removed.sum())):
            for labels, groups in blocks:
                gone = removed[roots[labels]].reshape(groups, -1)
                target = max(1, int((~gone).sum(1).max()))
                for group, row in zip(labels.reshape(groups, -1), gone, strict=True):
                    missing = target - int((~row).sum())
                    removed[roots[group[np.flatnonzero(row)[: max(0, missing)]]]] = False

    def _root(self, label: int) -> int:
        parent = self._parent
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label


@dataclass(frozen=True, eq=False)
class Solution:
    """Which channels go."""

    roots: Array
    removed: Array  # by root
    needless: Array  # removed, or only kept to hold a place
    affines: tuple[Affine, ...]

    def kept(self, value: Value) -> Array:
        """Indices of the channels of a value that stay."""
        return np.flatnonzero(~self.removed[self.roots[value.labels]])

    def layers(self, *, picking: bool = True) -> dict[str, Kept]:
        """What is left of every layer, by its name; with `picking` the network's inputs may be picked from."""
        why = self._reasons()
        return {layer.name: self._kept(layer, why, picking) for layer in self.affines}

    def _kept(self, layer: Affine, why: Array, picking: bool) -> Kept:
        rows, columns = self.kept(layer.result), self.kept(layer.source)
        held = rows[self.needless[self.roots[layer.result.labels[rows]]]]
        level = np.where(np.isfinite(layer.result.high), layer.result.high, layer.result.low)
        level = np.where(np.isfinite(level), level, 0.0)
        gone = self.removed[self.roots[layer.source.labels]]
        gather, groups = False, layer.groups
        if layer.depthwise:
            groups = len(columns)
        elif picking and layer.source.entry and layer.groups == 1:
            live = np.zeros(len(layer.bias), dtype=bool)
            live[np.setdiff1d(rows, held)] = True
            used = np.flatnonzero(_read(layer, live))
            columns = used if len(used) else np.arange(1)
            gather = len(columns) < len(layer.source.labels)
        fold = gone & layer.foldable() & (not layer.depthwise)
        taken = np.where(fold, layer.source.low, 0.0).reshape(layer.groups, 1, -1)
        sums = layer.weight.sum(-1).reshape(layer.groups, -1, layer.weight.shape[1])
        shift = (sums * taken).sum(-1).reshape(-1)
        went = why[self.roots[layer.result.labels]][self.removed[self.roots[layer.result.labels]]]
        lost = {name: int((went == code).sum()) for code, name in enumerate(("unused", "dead", "constant"))}
        return Kept(rows, columns, groups, gather, shift, held, level, lost)

    def _reasons(self) -> Array:
        """For each root: 0 nobody needs it, 1 it is the constant 0 to a layer that does, 2 another constant."""
        why = np.zeros(len(self.roots), dtype=int)
        for layer in self.affines:
            needed = _read(layer, ~self.needless[self.roots[layer.result.labels]])
            for code, which in ((1, layer.source.low == 0), (2, layer.source.low != 0)):
                labels = self.roots[layer.source.labels[needed & layer.source.constant & which]]
                why[labels] = np.maximum(why[labels], code)
        return why


def _read(layer: Affine, live: Array) -> Array:
    """Input channels with a weight that is not 0 to an output that stays."""
    nonzero = (layer.weight != 0).any(-1) & live[:, None]
    return nonzero.reshape(layer.groups, -1, layer.weight.shape[1]).any(1).reshape(-1)


def _ordered(low: Array, high: Array) -> tuple[Array, Array]:
    """Rounding may turn a range of one point around."""
    low, high = np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high)
    return np.minimum(low, high), np.maximum(low, high)
