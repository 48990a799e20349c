"""The Gram matrices of single rows, X_A' X_A, updated by the samples and features that change instead of made anew.

A row's matrix is of the samples A that count for it and of a working set of features. Programs that differ little, such
as those along a path of epsilons, let nearly the same samples count: their solvers hand the matrices on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from nettrim.solvers.design import Design

_BALLAST = 2  # features that are known, per feature wanted, above which the others are dropped


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

    @property
    def bytes(self) -> int:
        return self.gram.nbytes + self.active.nbytes

    def only(self, wanted: Tensor) -> Curvature:
        """On those features alone that are in the mask `wanted`, where they are few of them."""
        kept = wanted[self.features].nonzero()[:, 0]
        if len(self.features) <= _BALLAST * len(kept):
            return self
        return Curvature(
            self.features[kept], self.active, self.gram[kept[:, None], kept].clone(), self.count, self.rough
        )


def nothing_known(design: Design) -> Curvature:
    """Of no feature and no sample."""
    index = torch.empty(0, dtype=torch.int64, device=design.device)
    active = torch.zeros(design.samples, dtype=torch.bool, device=design.device)
    return Curvature(index, active, torch.zeros(0, 0, dtype=torch.float64, device=design.device), 0, rough=True)


def extended(known: Curvature, design: Design, wanted: Tensor, active: Tensor) -> Curvature:
    """`known`, with the samples in the mask `active` for A and the features in the mask `wanted` besides its own."""
    changed = (active != known.active).nonzero()[:, 0]
    count = int(active.sum())
    fewer = 2 * count <= len(active)  # else the samples that do not count are taken from the whole
    rough = count > int(wanted.sum())  # else the support may be as large as the rank, where rounding decides
    before, gram = known.features, known.gram
    if len(before) and len(changed) < min(count, len(active) - count) and rough == known.rough:
        if len(changed):
            sign = torch.where(active[changed], 1.0, -1.0)
            gram = gram + design.gram(changed, before, weights=sign, rough=rough)
    else:
        before, gram = before[:0], gram[:0, :0]
    seen = torch.zeros_like(wanted)
    seen[before] = True
    added = (wanted & ~seen).nonzero()[:, 0]
    if not len(added):
        return Curvature(before, active, gram, count, rough)
    features = torch.cat([before, added])
    picked = (active if fewer else ~active).nonzero()[:, 0]
    cross = design.gram(picked, features, first=len(before), rough=rough)
    if not fewer:
        cross = design.total[features[:, None], added] - cross
    whole = gram.new_empty(len(features), len(features))
    whole[: len(before), : len(before)] = gram
    whole[:, len(before) :] = cross
    whole[len(before) :, :] = cross.T
    return Curvature(features, active, whole, count, rough)


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

    def keep(self, row: int, curvature: Curvature) -> None:
        """Keep a row's while there is room."""
        self.take(row)
        if self.taken[0] + curvature.bytes <= self.memory:
            self.known[row if self.rows is None else self.rows[row]] = curvature
            self.taken[0] += curvature.bytes
