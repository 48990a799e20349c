"""Systems of supports that differ little from one that is factored, by bordering it.

The unknowns of a row are the weights of its features and the multipliers of its hard samples, which are its `members`:
those that take part have their rows and columns of [G A'; A 0] for equations. With K the matrix of the members that
were factored, the system of a like set is

    [K   C] [x]   [r]        for a member that left: C a column of the identity, D and s zero,
    [C'  D] [y] = [s],       for one that came:      C, D and s its part of the larger system,

solved by the Schur complement D - C' K^-1 C, which is as small as the change: a few products with K's factor in place
of a new one. The y of one that left is the force that holds it at zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nettrim.solvers.cholesky import solve_factored

_EXACT = 1e-9  # relative: by how much an answer may miss the equations of what came; more, and a new factor is due


@dataclass(frozen=True, eq=False)
class Equations:
    """Of one row: G, A, and the right-hand sides of all members; what does not take part is not looked at."""

    gram: Tensor  # (features, features)
    around: Tensor  # (near, features): X of the hard samples
    right: Tensor  # (2, features + near)

    def of(self, members: Tensor) -> Tensor:
        """The rows of the matrix that belong to some members (index, ascending), (count, features + near)."""
        features = len(self.gram)
        count = int((members < features).sum())
        chosen = members[:count]
        parts = torch.cat([self.gram.index_select(0, chosen), self.around.index_select(1, chosen).T], dim=1)
        if count == len(members):
            return parts
        hard = torch.nn.functional.pad(self.around.index_select(0, members[count:] - features), (0, len(self.around)))
        return torch.cat([parts, hard])


@dataclass(frozen=True, eq=False)
class Factored:
    """The factor of a row's matrix for some features and hard samples: Cholesky's, or LU's where there are `pivots`.

    `spots` (index) are their places where the factor has padding besides.
    """

    inside: Tensor  # (support,) index into the row's features
    samples: Tensor  # (held,) index into all samples, ascending
    factor: Tensor
    pivots: Tensor | None
    spots: Tensor | None

    def members(self, features: int, near: Tensor) -> Tensor | None:
        """They (index) in a row of so many features that watches the samples `near` (index, ascending); None where it
        does not watch one of them."""
        if not len(self.samples):
            return self.inside
        there = torch.searchsorted(near, self.samples)
        if int(there[-1]) >= len(near) or not torch.equal(near[there], self.samples):
            return None
        return torch.cat([self.inside, features + there])

    def solve(self, right: Tensor) -> Tensor:
        """right K^-1, (rows, members)."""
        if self.spots is None:
            return self._solve(right)
        padded = right.new_zeros(len(right), len(self.factor)).index_copy_(1, self.spots, right)
        return self._solve(padded).index_select(1, self.spots)

    def _solve(self, right: Tensor) -> Tensor:
        if self.pivots is None:
            return solve_factored(self.factor, right.mT).mT
        return torch.linalg.lu_solve(self.factor, self.pivots, right.mT).mT

    def change(self, equations: Equations, members: Tensor, wanted: Tensor) -> Tensor | None:
        """The solutions (2, features + near), zero outside the members `wanted` (mask), from those that were factored,
        `members` (index); None where rounding spoils them."""
        gone = (~wanted.index_select(0, members)).nonzero()[:, 0]
        came = wanted.index_fill(0, members, False).nonzero()[:, 0]
        rows, left = equations.of(came), len(gone)
        held = torch.zeros(left, len(members), dtype=rows.dtype, device=rows.device)
        held.scatter_(1, gone[:, None], 1.0)
        border, corner = rows.index_select(1, members), rows.index_select(1, came)
        lacking = equations.right.index_select(1, came)
        solved = self.solve(torch.cat([equations.right.index_select(1, members), held, border]))
        schur = torch.cat([solved.index_select(1, gone), solved @ border.T], dim=1)
        schur[:2, left:] -= lacking
        schur[2 + left :, left:] -= corner
        forces, info = torch.linalg.solve_ex(schur[2:], schur[:2], left=False)
        point = solved[:2] - forces @ solved[2:]
        forces = forces[:, left:]
        missing = point @ border.T + forces @ corner - lacking
        limit = _EXACT * (point.abs() @ border.abs().T + lacking.abs())
        if int(info) or not bool((missing.abs() <= limit).all()):
            return None
        solution = torch.zeros_like(equations.right)
        solution.index_copy_(1, members, point.index_fill(1, gone, 0.0))
        return solution.index_copy_(1, came, forces)
