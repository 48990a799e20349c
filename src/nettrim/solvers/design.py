"""What depends on a program's inputs alone: products with them, in two precisions, within a memory budget.

The samples stay where they are, be it a memory-mapped file, and are scaled by a power of two as they pass, which rounds
nothing. Where the budget has room they are also kept as one float64 array (in, samples), which is faster; without it
every product streams over slices of samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from nettrim.certificates.program import largest_finite

_SLICE = 1 << 25  # bytes of a float64 slice of samples, at most ...
_SLICE_SHARE = 8  # ... and as a share of the budget
_ROOM = 1 << 30  # bytes of working arrays beside the copies of the samples, without a budget
_MATRIX_SHARE, _FACTOR_SHARE = 4, 8  # of the budget's rest, for Gram matrices and for their factors
_BLOCKS, _BLOCKED = 5, 100  # of a symmetric product, from so many columns on
_ROUNDING, _CLEARLY = 1e-12, 100  # of a column's squares: added before pivots are counted that exceed it so many times
_TINY = 2.0**-40  # scalings from here to its inverse leave float32 products within its range
_CACHE_SHARE = 2  # of the budget, for the samples in float64


@dataclass(frozen=True, eq=False)
class Design:
    """The scaled samples X, their Gram matrix, and ADMM's factor of it."""

    source: Tensor  # (rows, in): the program's inputs, times `factor` are X
    factor: float  # a power of two
    picked: Tensor | None  # the rows of `source` that are the samples; None: all
    wide: Tensor | None  # (in, samples) float64: X', where the budget has room
    narrow: Tensor | None  # (samples, in): X in working precision, likewise
    precision: torch.dtype  # of ADMM's large products
    slice_rows: int
    room: int  # bytes of the budget that these arrays leave
    made: Tensor | None  # (in, in) float64: X'X, where it is known
    inverse: Tensor  # (in, in): (X'X + ratio I)^-1, working precision
    ratio: float
    rank: float  # the trace of X'X (X'X + ratio I)^-1 of all samples: directions that are more than noise
    independent: int  # inputs that are no combination of others, to rounding
    # how far inside the constraints answers are aimed, so that they survive the cast to the weights' dtype
    margin: float  # relative to eps
    hard_margin: float  # of bounds that must hold exactly, in units of a row's largest of 1 and |w|_2

    @property
    def dtype(self) -> torch.dtype:
        """Of the program."""
        return self.source.dtype

    @property
    def device(self) -> torch.device:
        return self.source.device

    @property
    def scale(self) -> float:
        """The program's inputs are X times this."""
        return 1 / self.factor

    @cached_property
    def total(self) -> Tensor:
        """X'X, (in, in) float64."""
        return self.gram(torch.arange(self.samples, device=self.device)) if self.made is None else self.made

    @cached_property
    def squares(self) -> Tensor:
        """The squared norms of the inputs, X'X's diagonal, (in,) float64."""
        if self.made is not None:
            return self.made.diagonal()
        squares = torch.zeros(self.width, dtype=torch.float64, device=self.device)
        for _, part in self._slices(torch.float64):
            squares += (part**2).sum(dim=0)
        return squares

    @property
    def matrix_bytes(self) -> int:
        """What the Gram matrices may take that are worked on at a time."""
        return self.room // _MATRIX_SHARE

    @property
    def factor_bytes(self) -> int:
        """What factors of them may take."""
        return self.room // _FACTOR_SHARE

    @property
    def samples(self) -> int:
        return len(self.source) if self.picked is None else len(self.picked)

    @property
    def width(self) -> int:
        return self.source.shape[1]

    def product(self, weight: Tensor) -> Tensor:
        """X w in working precision, (rows, samples)."""
        if self.narrow is not None:
            return weight @ self.narrow.T
        return self._streamed_product(weight)

    def pull(self, values: Tensor) -> Tensor:
        """X'r in working precision, (rows, in)."""
        if self.narrow is not None:
            return values @ self.narrow
        return self._streamed_pull(values)

    def forward(self, weight: Tensor) -> Tensor:
        """X w of float64 weights (rows, in), (rows, samples)."""
        if self.wide is not None:
            return weight @ self.wide
        return self._streamed_product(weight)

    def back(self, dual: Tensor) -> Tensor:
        """X'r of float64 multipliers (rows, samples), (rows, in)."""
        if self.wide is not None:
            return dual @ self.wide.T
        return self._streamed_pull(dual)

    def gram(
        self,
        samples: Tensor,
        features: Tensor | None = None,
        *,
        first: int = 0,
        weights: Tensor | None = None,
        rough: bool = False,
    ) -> Tensor:
        """X_A' diag(weights) X_A over `samples` (index) and `features`, its columns from `first` on; float64.

        `rough` multiplies in working precision.
        """
        width = self.width if features is None else len(features)
        result = torch.zeros(width, width - first, dtype=torch.float64, device=self.device)
        for begin in range(0, len(samples), self.slice_rows):
            chosen = samples[begin : begin + self.slice_rows]
            part = self.take(chosen, features, self.precision if rough else torch.float64)
            right = part[:, first:]
            if weights is not None:
                part = part * weights[begin : begin + self.slice_rows, None].to(part.dtype)
            result += part.T @ right if first else symmetric_product(part, right)
        return result

    def gram_of(self, chosen: Tensor) -> Tensor:
        """X'X over the samples in the mask `chosen`; from the complement where that is less work."""
        if self.made is None or 2 * int(chosen.sum()) <= len(chosen):
            return self.gram(chosen.nonzero()[:, 0])
        return self.made - self.gram((~chosen).nonzero()[:, 0])

    def take(self, samples: Tensor, features: Tensor | None = None, dtype: torch.dtype = torch.float64) -> Tensor:
        """Some samples (index) and features, (count, features)."""
        if self.narrow is not None and (dtype == self.precision or self.dtype == self.precision):
            part = self.narrow.index_select(0, samples)
            return (part if features is None else part.index_select(1, features)).to(dtype)
        rows = samples if self.picked is None else self.picked[samples]
        part = self.source.index_select(0, rows)
        part = part if features is None else part.index_select(1, features)
        return part.to(dtype) * self.factor

    def columns(self, features: Tensor) -> Tensor:
        """All samples of some features (index), (features, samples) float64."""
        if self.wide is not None:
            return self.wide.index_select(0, features)
        parts = [part.index_select(1, features).T for _, part in self._slices(torch.float64)]
        return torch.cat(parts, dim=1)

    def dense(self) -> Tensor:
        """X' as one array (in, samples) float64, for solvers that need it whole."""
        if self.wide is not None:
            return self.wide
        return torch.cat([part for _, part in self._slices(torch.float64)]).T

    def restrict(self, samples: Tensor) -> Design:
        """Some samples (index) only, by reference where they are many; ADMM's factor stays that of all."""
        if self.wide is not None or len(samples) <= self.slice_rows:
            part = self.take(samples)
            return replace(
                self,
                source=self.source.index_select(0, samples if self.picked is None else self.picked[samples]),
                picked=None,
                wide=part.T.contiguous(),
                narrow=part.to(self.precision),
                made=None,
            )
        picked = samples if self.picked is None else self.picked[samples]
        return replace(self, picked=picked, wide=None, narrow=None, made=None)

    def _streamed_product(self, weight: Tensor) -> Tensor:
        """X w in the precision of `weight`, slice by slice unless the source itself will do."""
        if self._as_it_is(weight.dtype):
            return (weight * self.factor) @ self.source.T
        result = weight.new_empty(weight.shape[0], self.samples)
        for place, part in self._slices(weight.dtype):
            result[:, place] = weight @ part.T
        return result

    def _streamed_pull(self, values: Tensor) -> Tensor:
        """X'r in the precision of `values`, slice by slice unless the source itself will do."""
        if self._as_it_is(values.dtype):
            return (values * self.factor) @ self.source
        result = values.new_zeros(values.shape[0], self.width)
        for place, part in self._slices(values.dtype):
            result += values[:, place] @ part
        return result

    def _as_it_is(self, dtype: torch.dtype) -> bool:
        """Whether products in this precision can take the source unscaled: the other factor bears the scaling.

        Of a source with gaps along both axes they would make a copy first, as large as itself.
        """
        usable = dtype == self.dtype and self.picked is None and 1 in self.source.stride()
        return usable and _TINY <= self.factor <= 1 / _TINY

    def _slices(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        for begin in range(0, self.samples, self.slice_rows):
            place = slice(begin, min(begin + self.slice_rows, self.samples))
            rows = self.source[place] if self.picked is None else self.source.index_select(0, self.picked[place])
            yield place, rows.to(dtype) * self.factor


def make_design(inputs: Tensor, precision: torch.dtype, memory: int | None = None) -> Design:
    """Scale the samples and factor X'X + ratio I once; `precision` is that of the large products.

    `memory` bounds the bytes of what is kept and made beside the inputs; None keeps copies of any size. The ratio is
    small against the samples' sizes, so that z = X u rules ADMM's steps.
    """
    count, width = inputs.shape
    most = _SLICE if memory is None else min(_SLICE, memory // _SLICE_SHARE)
    slice_rows = max(64, most // (8 * width))
    scale = power_of_two(max((largest(part) for part in inputs.split(slice_rows)), default=1.0))
    single = inputs.dtype == torch.float32
    design = Design(
        source=inputs,
        factor=1 / scale,
        picked=None,
        wide=None,
        narrow=None,
        precision=precision,
        slice_rows=slice_rows,
        room=0,
        made=None,
        inverse=inputs.new_zeros(0, 0, dtype=precision),
        ratio=1.0,
        rank=width,
        independent=width,
        margin=1e-6 if single else 1e-10,
        hard_margin=2e-7 if single else 1e-13,
    )
    longest, total = 0.0, torch.zeros(width, width, dtype=torch.float64, device=inputs.device)
    for _, part in design._slices(torch.float64):  # of this very class
        longest = max(longest, float((part**2).sum(dim=1).max()))
        total += symmetric_product(part, part)
    ratio = 0.01 * longest or 1.0
    damped = total.clone()
    damped.diagonal().add_(ratio)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    kept = memory is None or 8 * count * width <= memory // _CACHE_SHARE
    copies = (8 + precision.itemsize) * count * width if kept else 0
    return replace(
        design,
        wide=(inputs.T.to(torch.float64) / scale).contiguous() if kept else None,
        narrow=(inputs.to(precision) / scale).contiguous() if kept else None,
        made=total,
        inverse=inverse.to(precision),
        room=_ROOM if memory is None else max(memory - copies, memory // 8),
        ratio=ratio,
        rank=width - ratio * float(inverse.diagonal().sum()),
        independent=_independent(total),
    )


def _independent(gram: Tensor) -> int:
    """How many columns of X are no combination of those before them, to rounding, by the pivots of X'X."""
    size = gram.diagonal().sqrt().clamp(min=1e-300)
    scaled = gram / size / size[:, None]
    scaled.diagonal().add_(_ROUNDING)
    factor, info = torch.linalg.cholesky_ex(scaled)
    if int(info):
        return len(gram)  # rounding leaves it open
    return int((factor.diagonal() ** 2 > _CLEARLY * _ROUNDING).sum())


def symmetric_product(left: Tensor, right: Tensor) -> Tensor:
    """left' right (columns, columns) where that is symmetric: on a CPU in blocks, those below the diagonal alone,
    which takes a fourth less time."""
    width = left.shape[1]
    if left.device.type != "cpu" or width < _BLOCKED:
        return left.T @ right
    step, product = -(-width // _BLOCKS), left.new_empty(width, width)
    for begin in range(0, width, step):
        end = min(begin + step, width)
        block = left[:, begin:end].T @ right[:, :end]
        product[begin:end, :end] = block
        product[:begin, begin:end] = block[:, :begin].T
    return product


def power_of_two(value: float) -> float:
    """The next power of two: dividing by it rounds nothing, so a cast of scaled weights is the scaled cast."""
    return 2.0 ** math.ceil(math.log2(value))


def largest(array: Tensor) -> float:
    """The largest finite absolute entry, 1 where there is none or it is zero."""
    return largest_finite(array) or 1.0
