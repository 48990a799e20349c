"""What is known of a value while a network is examined for shrinking: its channels and the range of each.

A range is a sound interval: whatever the network's input, every entry of the channel lies in it. A channel whose
range is one point is constant; a unit that a ReLU never lets through is the constant 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor whose axis `axis` holds channels, each with a label and a range; labels may repeat (flattened maps)."""

    axis: int
    labels: Array  # (channels,) int
    low: Array  # (channels,) float64
    high: Array
    entry: bool = False  # whether it is the network's input, at most reshaped

    @property
    def constant(self) -> Array:
        """Which channels are one known number everywhere."""
        return (self.low == self.high) & np.isfinite(self.low)

    def ranged(self, low: Array, high: Array) -> Value:
        """The same channels with other ranges; what is not a number is unknown."""
        low, high = np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high)
        return replace(self, low=low, high=high, entry=False)

    def taken(self, index: Array, axis: int) -> Value:
        """Channels picked, and perhaps repeated, along a new axis."""
        return replace(self, axis=axis, labels=self.labels[index], low=self.low[index], high=self.high[index])


def unknown(labels: Array, axis: int, *, entry: bool = False) -> Value:
    """A value with nothing known of its channels."""
    return Value(axis, labels, np.full(len(labels), -np.inf), np.full(len(labels), np.inf), entry)


def mapped(value: Value, function: Callable[[Array], Array], *, monotone: bool) -> Value:
    """Behind an elementwise function: ranges follow an increasing one, constants any."""
    with np.errstate(all="ignore"):
        if monotone:
            return value.ranged(function(value.low), function(value.high))
        at = function(np.where(value.constant, value.low, 0.0))
        return value.ranged(np.where(value.constant, at, -np.inf), np.where(value.constant, at, np.inf))


def scaled(value: Value, scale: Array, shift: Array) -> Value:
    """Behind a scale and a shift of each channel; a scale of 0 makes the channel constant."""
    with np.errstate(all="ignore"):
        ends = [np.where(scale == 0, 0.0, scale * end) + shift for end in (value.low, value.high)]
    return value.ranged(np.minimum(*ends), np.maximum(*ends))


def summed(one: Value, other: Value, factor: float = 1.0) -> Value:
    """one + factor * other, entry by entry; the channels' labels are those of the first."""
    moved = scaled(other, np.full(len(other.labels), factor), np.zeros(len(other.labels)))
    with np.errstate(all="ignore"):
        return one.ranged(one.low + moved.low, one.high + moved.high)


def multiplied(one: Value, other: Value) -> Value:
    """one * other, entry by entry."""
    with np.errstate(all="ignore"):
        corners = []
        for a in (one.low, one.high):
            for b in (other.low, other.high):
                corners.append(np.where((a == 0) | (b == 0), 0.0, a * b))
    return one.ranged(np.minimum.reduce(corners), np.maximum.reduce(corners))


def joined(parts: Sequence[Value]) -> Value:
    """Values one after the other along their common axis."""
    labels, low, high = (np.concatenate([getattr(p, name) for p in parts]) for name in ("labels", "low", "high"))
    return Value(parts[0].axis, labels, low, high)


def with_zero(value: Value) -> Value:
    """Where zeros may stand among the entries, as in a padded border."""
    return value.ranged(np.minimum(value.low, 0.0), np.maximum(value.high, 0.0))


def widened(value: Value) -> Value:
    """Nothing known, except that a channel of zeros stays one."""
    zero = value.constant & (value.low == 0)
    return value.ranged(np.where(zero, 0.0, -np.inf), np.where(zero, 0.0, np.inf))


def affine_range(weight: Array, bias: Array, source: Value, *, padded: bool) -> tuple[Array, Array]:
    """Ranges of bias + sum of weight * channel over (out, in / groups, taps), the inputs' channels in groups."""
    source = with_zero(source) if padded else source
    groups = len(source.labels) // weight.shape[1]
    blocks = weight.reshape(groups, -1, *weight.shape[1:])
    positive = np.maximum(blocks, 0).sum(-1)  # (groups, out / groups, in / groups)
    negative = np.minimum(blocks, 0).sum(-1)
    low, high = source.low.reshape(groups, 1, -1), source.high.reshape(groups, 1, -1)
    return (_weighted(positive, low) + _weighted(negative, high)).reshape(-1) + bias, (
        _weighted(positive, high) + _weighted(negative, low)
    ).reshape(-1) + bias


def channel_map(ids: Array, count: int) -> tuple[int, Array] | None:
    """The one axis along which an array of channel numbers varies, and the number at each place; None if none."""
    if count < 2:
        return None
    for axis in range(ids.ndim):
        first = ids[tuple(slice(None) if a == axis else slice(0, 1) for a in range(ids.ndim))]
        if np.array_equal(np.broadcast_to(first, ids.shape), ids):
            return axis, first.reshape(-1)
    return None


def channel_ids(shape: Sequence[int], axis: int) -> Array:
    """An array of a shape that holds, at each place, the number of the channel it belongs to."""
    ids = np.arange(shape[axis]).reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return np.ascontiguousarray(np.broadcast_to(ids, tuple(shape)))


def _weighted(weight: Array, ends: Array) -> Array:
    """Sum of weight * end over the inputs, where a weight of 0 silences an infinite end."""
    with np.errstate(invalid="ignore"):
        finite = np.where(np.isfinite(ends), ends, 0.0)
        total = (weight * finite).sum(-1)
        infinite = (weight != 0) & np.isposinf(ends), (weight != 0) & np.isneginf(ends)
        up = (infinite[0] & (weight > 0)).any(-1) | (infinite[1] & (weight < 0)).any(-1)
        down = (infinite[1] & (weight > 0)).any(-1) | (infinite[0] & (weight < 0)).any(-1)
    return total + np.where(up, np.inf, 0.0) - np.where(down, np.inf, 0.0)
