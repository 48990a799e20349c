"""Crossover: from a point inside the face of all optimal weights to a vertex of it, which is sparse.

The ball is strictly convex, so the part of X w that it counts is the same for all optimal w; they differ by vectors of
the null space of those samples (and of the hard samples that bind), among weights of fixed signs. Along such a vector
the penalty is constant, until a weight is zero or another bound binds: each step removes a weight or a dimension.
Samples whose singular values are below what the tolerance allows count as dependent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nettrim.solvers.problem import Problem

_SHARE = 0.05  # of the tolerance, by which distance and penalty may change
_BINDS = 5e-11  # distance to a bound at which it binds
_FLAT = 1e-12  # a direction this short relative to the first ones is no direction


def crossover(problem: Problem, weight: Tensor, dual: Tensor, costs: Tensor, tolerance: float) -> Tensor:
    """Feasible `weight` (rows, in) of one budget group moved to vertices of their face, row by row.

    The multipliers `dual` (rows, samples) say which weights are likely to vanish. The result may leave the constraint
    by a small share of `tolerance`; whoever calls makes it feasible again. Rows whose samples of nonzero weights do not
    fit the memory budget stay as they are.
    """
    slack = _SHARE * tolerance
    product = problem.design.forward(weight)
    soft, _ = problem.distance(product)
    reach = slack * float(soft.norm()) / max(len(weight), 1) ** 0.5
    room = (costs - problem.design.back(dual).abs()).clamp(min=1e-300)
    rank = torch.where(costs == 0, torch.inf, weight.abs() / room)
    result = weight.clone()
    design = problem.design
    room_for = torch.inf if design.wide is not None else design.slice_rows * design.width // design.samples
    for row in range(len(weight)):
        if 0 < int((weight[row] != 0).sum()) <= room_for:
            face = _Face(problem, row, product[row], soft[row] != 0, reach)
            face.restrict(weight[row], rank[row])
            face.descend(costs[row], slack)
            result[row] = face.weight(weight[row])
    return result


class _Face:
    """One row's weights that give the same X w on the samples that are fixed, and keep the bounds of all others."""

    def __init__(self, problem: Problem, row: int, product: Tensor, pressed: Tensor, reach: float) -> None:
        lower, upper = problem.lower[row], problem.upper[row]
        fixed = pressed | (lower == upper)
        self.design, self.reach = problem.design, reach
        self.fixed, self.others = fixed.nonzero()[:, 0], (~fixed).nonzero()[:, 0]
        self.product = product
        # what is left to the bounds below and above, (2, others)
        self.room = torch.stack([product[self.others] - lower[self.others], upper[self.others] - product[self.others]])

    def restrict(self, weight: Tensor, rank: Tensor) -> None:
        """Leave out weights of low `rank` as long as the others can give the same X w with the same signs."""
        support = weight.nonzero()[:, 0]
        support = support[rank[support].argsort(descending=True)]
        inputs = self.design.take(self.fixed, support)
        orthogonal, _ = torch.linalg.qr(inputs)
        parts = orthogonal.T @ self.product[self.fixed]
        missed = (float((self.product[self.fixed] ** 2).sum()) - torch.cumsum(parts**2, 0)).clamp(min=0).sqrt()
        count = int((missed > 0.5 * self.reach).sum()) + 1
        while count < len(support):
            kept = support[:count]
            values = weight[kept]
            lacking = self.product[self.fixed] - inputs[:, :count] @ values
            values = values + torch.linalg.pinv(inputs[:, :count]) @ lacking
            moved = self.design.take(self.others, kept) @ values - self.product[self.others]
            room = self.room + torch.stack([moved, -moved])
            close = float((inputs[:, :count] @ values - self.product[self.fixed]).norm()) <= self.reach
            if close and bool((values * weight[kept] >= 0).all()) and bool((room >= -_BINDS).all()):
                self.support, self.values, self.room = kept, values, room.clamp(min=0)
                return
            count += max(1, count // 2)
        self.support, self.values = support, weight[support]

    def descend(self, costs: Tensor, slack: float) -> None:
        """Along the face to a vertex; the penalty grows by `slack` of itself at most."""
        gram = self.design.gram(self.fixed, self.support)
        basis = _null_space(gram, 0.5 * self.reach / max(float(self.values.norm()), 1e-300))
        if not basis.shape[1]:
            return
        signs = self.values.sign()
        price = costs[self.support] * signs
        budget = slack * float(price @ self.values)
        inputs = self.design.take(self.others, self.support)
        stuck = (self.room <= _BINDS).any(dim=0)  # bounds met already take a dimension each
        for sample in stuck.nonzero()[:, 0].tolist():
            basis = _without(basis, inputs[sample] @ basis)
        self.room[:, stuck] = torch.inf
        while basis.shape[1]:
            direction = _towards_zero(basis, self.values)
            if direction is None:
                return
            if float(price @ direction) > 0 and bool((direction * signs > 0).any()):
                direction = -direction
            moved = inputs @ direction
            shrinks = (self.values != 0) & (direction * signs < 0)
            ends = torch.where(shrinks, -self.values / direction, torch.inf)
            walls = torch.where(moved < 0, self.room[0], self.room[1]) / moved.abs().clamp(min=1e-300)
            end, wall = float(ends.min()), float(walls.min()) if len(walls) else float("inf")
            step = min(end, wall)
            budget -= max(step * float(price @ direction), 0.0)
            if budget < 0 or step == float("inf"):
                return
            self.values = self.values + step * direction
            self.room = self.room + step * torch.stack([moved, -moved])
            if end <= wall:
                gone = ends <= end * (1 + 1e-12)
                self.values = torch.where(gone, 0.0, self.values)
                for index in gone.nonzero()[:, 0].tolist():
                    basis = _without(basis, basis[index])
                basis = basis * ~gone[:, None]
            else:
                index = int(walls.argmin())
                basis = _without(basis, inputs[index] @ basis)
                self.room[:, index] = torch.inf

    def weight(self, like: Tensor) -> Tensor:
        """The weights of the row (in,)."""
        result = torch.zeros_like(like)
        result[self.support] = self.values
        return result


def _towards_zero(basis: Tensor, values: Tensor) -> Tensor | None:
    """The direction that brings the nearest weight to zero soonest."""
    length = basis.norm(dim=1)
    distance = torch.where((length > _FLAT) & (values != 0), values.abs() / length.clamp(min=1e-300), torch.inf)
    nearest = int(distance.argmin())
    if not bool(torch.isfinite(distance[nearest])):
        return None
    return basis @ basis[nearest] * -values[nearest].sign()


def _null_space(gram: Tensor, small: float) -> Tensor:
    """Orthonormal vectors (size, count) that the matrix behind `gram` shortens to `small` of their length, or more."""
    eigenvalues, vectors = torch.linalg.eigh(gram)
    size = max(len(gram), 1)
    limit = max(small**2 / size, 1e-15 * float(eigenvalues[-1]))
    return vectors[:, eigenvalues <= limit]


def _without(basis: Tensor, row: Tensor) -> Tensor:
    """The vectors of the space of `basis` whose coordinates are orthogonal to `row` (count,): one dimension less."""
    norm = float(row.norm())
    if norm <= _FLAT or not basis.shape[1]:
        return basis
    mirror = row.clone()
    mirror[0] += norm if float(row[0]) >= 0 else -norm
    mirror = mirror / mirror.norm()
    return (basis - 2 * (basis @ mirror)[:, None] * mirror)[:, 1:]
