"""The Gram matrices of single rows, X_A' X_A, updated by the samples and features that change instead of made anew.

A row's matrix is of the samples A that count for it and of a working set of features. Programs that differ little, such
as those along a path of epsilons, let nearly the same samples count: their solvers hand the matrices on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from nettrim.solvers.bordered import Factored
from nettrim.solvers.design import Design

_FEW = 24  # features that come to a row, up to which all samples are multiplied in place of gathering some
_BALLAST = 1.3  # features that are known, per feature wanted, above which the others are dropped


@dataclass(frozen=True, eq=False)
class Point:
    """Where a polish left a row, and what it knew there."""

    u: Tensor  # (in,) float64
    z: Tensor  # X u, (samples,)
    gradient: Tensor  # -X' of the distances counted, (in,)
    t: Tensor  # X' of the multipliers, (in,)

    @property
    def bytes(self) -> int:
        return sum(part.nbytes for part in (self.u, self.z, self.gradient, self.t))


@dataclass(frozen=True, eq=False)
class Curvature:
    """X_A' X_A on some features.

    It may be rounded to working precision: each outer step of the polish solves for a correction whose right-hand side
    is exact, so rounding slows convergence a little and moves no answer.
    """

    features: Tensor  # (features,) index
    active: Tensor  # (samples,) bool: A
    gram: Tensor  # (features, features) float64
    count: int  # samples in A
    rough: bool  # whether it is rounded
    factored: Factored | None = None  # what was factored last of it
    point: Point | None = None  # where the row was left

    @property
    def bytes(self) -> int:
        factor = 0 if self.factored is None else self.factored.factor.nbytes
        point = 0 if self.point is None else self.point.bytes
        return self.gram.nbytes + self.active.nbytes + factor + point

    def only(self, wanted: Tensor) -> Curvature:
        """On those features alone that are in the mask `wanted`, where they are few of them."""
        kept = wanted[self.features].nonzero()[:, 0]
        if len(self.features) <= _BALLAST * len(kept):
            return self
        factored = None if self.factored is None else self.factored.among(kept)
        gram = self.gram.index_select(0, kept).index_select(1, kept)
        return Curvature(self.features[kept], self.active, gram, self.count, self.rough, factored)


def nothing_known(design: Design) -> Curvature:
    """Of no feature and no sample."""
    index = torch.empty(0, dtype=torch.int64, device=design.device)
    active = torch.zeros(design.samples, dtype=torch.bool, device=design.device)
    return Curvature(index, active, torch.zeros(0, 0, dtype=torch.float64, device=design.device), 0, rough=True)


def extended(known: list[Curvature], design: Design, wanted: Tensor, active: Tensor) -> list[Curvature]:
    """`known` of every row, with the samples in its row of the mask `active` (rows, samples) for A and the features in
    the mask `wanted` (rows, in) besides its own.

    The list `known` is emptied, so that no matrix is kept twice.
    """
    known.reverse()
    moved = [_moved(known.pop(), design, wanted[row], active[row]) for row in range(len(known))]
    added = [wanted[row].index_fill(0, old.features, False).nonzero()[:, 0] for row, old in enumerate(moved)]
    crosses = _few_columns(moved, added, design)
    moved.reverse()
    return [_widened(moved.pop(), design, new, crosses.pop(row, None)) for row, new in enumerate(added)]


def _moved(known: Curvature, design: Design, wanted: Tensor, active: Tensor) -> Curvature:
    """`known` with the samples in the mask `active`; of no feature where so many change that it is better made anew."""
    changed = (active != known.active).nonzero()[:, 0]
    count = int(active.sum())
    rough = count > int(wanted.sum())  # else the support may be as large as the rank, where rounding decides
    features, gram = known.features, known.gram
    if not len(features) or len(changed) >= min(count, len(active) - count) or rough != known.rough:
        features, gram = features[:0], gram[:0, :0]
    elif len(changed):
        sign = torch.where(active[changed], 1.0, -1.0)
        gram = gram + design.gram(changed, features, weights=sign, rough=rough)
    factored = known.factored if len(features) and not len(changed) else None
    return Curvature(features, active, gram, count, rough, factored)


def _few_columns(moved: Sequence[Curvature], added: Sequence[Tensor], design: Design) -> dict[int, Tensor]:
    """X_A' X of the features added to each row (index) that gets few, (in, added): of many rows in one product, as
    gathering a row's samples would take longer than multiplying all of them."""
    found: dict[int, Tensor] = {}
    for rough in (False, True):
        alike = [row for row, old in enumerate(moved) if len(old.features) and old.rough == rough]
        due = [row for row in alike if 0 < len(added[row]) <= _FEW]
        most = max(_FEW, len(moved) // 4)  # columns of all samples at a time
        while due:
            part: list[int] = []
            while due and sum(len(added[row]) for row in (*part, due[0])) <= most:
                part.append(due.pop(0))
            values = design.columns(torch.cat([added[row] for row in part]))
            counts = torch.tensor([len(added[row]) for row in part], device=design.device)
            values *= torch.stack([moved[row].active for row in part]).to(values.dtype).repeat_interleave(counts, dim=0)
            product = design.pull(values.to(design.precision)) if rough else design.back(values)
            found.update(zip(part, product.to(torch.float64).T.split(counts.tolist(), dim=1), strict=True))
    return found


def _widened(known: Curvature, design: Design, added: Tensor, cross: Tensor | None) -> Curvature:
    """`known` with the features `added` (index); `cross` is X_A' X of them, (in, added), where it was made before."""
    if not len(added):
        return known
    before, active = known.features, known.active
    features = torch.cat([before, added])
    if cross is not None:
        cross = cross.index_select(0, features)
    else:
        fewer = 2 * known.count <= len(active)  # else the samples that do not count are taken from the whole
        picked = (active if fewer else ~active).nonzero()[:, 0]
        cross = design.gram(picked, features, first=len(before), rough=known.rough)
        if not fewer:
            cross = design.total[features[:, None], added] - cross
    whole = known.gram.new_empty(len(features), len(features))
    whole[: len(before), : len(before)] = known.gram
    whole[:, len(before) :] = cross
    whole[len(before) :, :] = cross.T
    return Curvature(features, active, whole, known.count, known.rough, known.factored)


@dataclass
class Curvatures:
    """What is known of some rows, at most `memory` bytes of it; views of fewer rows share it."""

    memory: int
    rows: list[int] | None = None  # the number of each row in the whole; None: its own
    known: dict[int, Curvature] = field(default_factory=dict)
    taken: list[int] = field(default_factory=lambda: [0])  # bytes, in a list that views share

    def of(self, rows: Tensor) -> Curvatures:
        """Those of some rows (index), numbered from zero."""
        numbers = rows.tolist()
        return Curvatures(
            self.memory,
            numbers if self.rows is None else [self.rows[row] for row in numbers],
            self.known,
            self.taken,
        )

    def take(self, row: int) -> Curvature | None:
        """What is known of a row, which is forgotten here."""
        found = self.known.pop(row if self.rows is None else self.rows[row], None)
        if found is not None:
            self.taken[0] -= found.bytes
        return found

    def point(self, row: int) -> Point | None:
        """Where a row was left, if that is known."""
        found = self.known.get(row if self.rows is None else self.rows[row])
        return None if found is None else found.point

    def keep(self, row: int, curvature: Curvature) -> None:
        """Keep a row's while there is room."""
        self.take(row)
        if self.taken[0] + curvature.bytes > self.memory:
            curvature = replace(curvature, factored=None, point=None)
        if self.taken[0] + curvature.bytes <= self.memory:
            self.known[row if self.rows is None else self.rows[row]] = curvature
            self.taken[0] += curvature.bytes
