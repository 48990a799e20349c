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

_BORDER = 0.25  # changes of a row's members, of what was factored, up to which the factor is bordered ...
_SMALLEST = 80  # ... from this size on; smaller systems cost less than the bordering
_KINDS = {"cpu"}  # of devices where that pays: others factor many systems as fast as one
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


class Factors:
    """What was factored last of rows with padded members, as long as there is room for it."""

    def __init__(self, room: int, real: Tensor, near: Tensor, watched: Tensor) -> None:
        """Nothing is known yet.

        room: bytes. The masks `real` (rows, features) and `watched` (rows, near) say which entries are no padding;
        `near` (rows, near) are the hard samples, index into all of them.
        """
        self.room, self.near = room, near
        self.counts = list(zip(real.sum(dim=1).tolist(), watched.sum(dim=1).tolist(), strict=True))
        self.width = real.shape[1]
        self.known: dict[int, Factored] = {}
        self.members: dict[int, Tensor] = {}  # of these, as index without padding, ...
        self.masks = torch.zeros_like(torch.cat([real, watched], dim=1))  # ... as mask with it, ...
        self.sizes = torch.full((len(real),), -1, device=real.device)  # ... and how many; -1 where nothing is known
        self.bytes = 0

    def welcomes(self, size: int) -> bool:
        """Whether systems of this size are worth keeping here."""
        return size >= _SMALLEST and self.masks.device.type in _KINDS

    def keep(self, row: int, factored: Factored) -> None:
        """Keep a row's factor, in place of an older one, while there is room."""
        before = self.known.pop(row, None)
        self.bytes += factored.factor.nbytes - (0 if before is None else before.factor.nbytes)
        features, watched = self.counts[row]
        members = factored.members(features, self.near[row, :watched]) if self.bytes <= self.room else None
        self.sizes[row] = -1
        if members is None:
            self.bytes -= factored.factor.nbytes
            return
        self.known[row], self.members[row] = factored, members
        self.sizes[row], self.masks[row] = len(members), False
        self.masks[row, torch.where(members < features, members, members - features + self.width)] = True

    def near_to(self, rows: Tensor, wanted: Tensor) -> Tensor:
        """Mask of the rows (index) of which something is known and whose members are to be little else, the mask
        `wanted` (rows, features + near)."""
        return (wanted != self.masks[rows]).sum(dim=1) <= _BORDER * self.sizes[rows]

    def change(self, row: int, equations: Equations, wanted: Tensor) -> Tensor | None:
        """`Factored.change` of a row of which something is known; `wanted` is its mask with padding."""
        features, watched = self.counts[row]
        taking_part = torch.cat([wanted[:features], wanted[self.width : self.width + watched]])
        return self.known[row].change(equations, self.members[row], taking_part)
