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

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nettrim.solvers.cholesky import solve_factored

_BORDER = 0.15  # changes of a row's members, of what was factored, up to which the factor is bordered ...
_SMALLEST = 80  # ... from this size on; smaller systems cost less than the bordering
_KINDS = {"cpu"}  # of devices where that pays: others factor many systems as fast as one
_EXACT = 1e-9  # relative: by how much an answer may miss the equations of what came; more, and a new factor is due


@dataclass(frozen=True, eq=False)
class Equations:
    """Of one row: G, A, and the right-hand sides of all members; what does not take part is not looked at.

    Members are numbered features first, hard samples from `width` on, with padding between and after them.
    """

    gram: Tensor  # (features, features)
    around: Tensor  # (near, features): X of the hard samples
    right: Tensor  # (2, members)
    width: int

    def of(self, members: Tensor) -> Tensor:
        """The rows of the matrix that belong to some members (index, ascending), (count, all members); where no hard
        sample is watched, (count, features)."""
        if not len(self.around):
            return self.gram.index_select(0, members)
        near, features = self.around.shape
        count = int((members < self.width).sum())
        rows = self.gram.new_zeros(len(members), self.right.shape[1])
        chosen = members[:count]
        rows[:count, :features] = self.gram.index_select(0, chosen)
        rows[:count, self.width : self.width + near] = self.around.index_select(1, chosen).T
        rows[count:, :features] = self.around.index_select(0, members[count:] - self.width)
        return rows


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

    def among(self, kept: Tensor) -> Factored | None:
        """The same in a row of which only the features `kept` (index, ascending) are left; None where one of its own is
        not."""
        places = torch.searchsorted(kept, self.inside)
        there = len(kept) > 0 and bool((kept[places.clamp(max=len(kept) - 1)] == self.inside).all())
        return replace(self, inside=places) if there else None

    def members(self, width: int, near: Tensor) -> Tensor | None:
        """They (index), numbered as `Equations` does in a row that watches the samples `near` (index, ascending); None
        where it does not watch one of them."""
        if not len(self.samples):
            return self.inside
        there = torch.searchsorted(near, self.samples)
        if int(there[-1]) >= len(near) or not torch.equal(near[there], self.samples):
            return None
        return torch.cat([self.inside, width + there])

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

    def change(
        self, equations: Equations, members: Tensor, gone: Tensor, came: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """The solutions at what was factored, `members` (index), (2, members), where those at the places `gone` left,
        and at those (index, ascending) that `came`, (2, came); None where rounding spoils them."""
        right = equations.right.index_select(1, members)
        left, entered = len(gone), len(came)
        if not left and not entered:
            return self.solve(right), right[:, :0]
        held = right.new_zeros(left, len(members)).scatter_(1, gone[:, None], 1.0)
        if not entered:
            solved = self.solve(torch.cat([right, held]))
            forces, point, sound = _corrected(solved, solved.index_select(1, gone))
            return (point, forces[:, :0]) if sound else None
        rows = equations.of(came)
        border, corner = rows.index_select(1, members), rows.index_select(1, came)
        lacking = equations.right.index_select(1, came)
        solved = self.solve(torch.cat([right, held, border]))
        schur = torch.cat([solved.index_select(1, gone), solved @ border.T], dim=1)
        schur[:2, left:] -= lacking
        schur[2 + left :, left:] -= corner
        forces, point, sound = _corrected(solved, schur)
        forces = forces[:, left:]
        missing = point @ border.T + forces @ corner - lacking
        limit = _EXACT * (point.abs() @ border.abs().T + lacking.abs())
        return (point, forces) if sound and bool((missing.abs() <= limit).all()) else None


def _corrected(solved: Tensor, schur: Tensor) -> tuple[Tensor, Tensor, bool]:
    """The forces of the border and the points that they leave; of both, the first two rows are the right-hand sides'.
    Also whether the Schur complement could be factored."""
    forces, info = torch.linalg.solve_ex(schur[2:], schur[:2], left=False)
    return forces, torch.addmm(solved[:2], forces, solved[2:], alpha=-1.0), not int(info)


class Factors:
    """What was factored last of rows with padded members, as long as there is room for it."""

    def __init__(self, room: int, real: Tensor, near: Tensor, watched: Tensor) -> None:
        """Nothing is known yet.

        room: bytes. The masks `real` (rows, features) and `watched` (rows, near) say which entries are no padding;
        `near` (rows, near) are the hard samples, index into all of them.
        """
        self.room, self.near = room, near
        self.counts = watched.sum(dim=1).tolist()
        self.width = real.shape[1]
        self.known: dict[int, Factored] = {}
        self.members: dict[int, Tensor] = {}  # of these, as index, ...
        self.masks = torch.zeros_like(torch.cat([real, watched], dim=1))  # ... as mask, ...
        self.sizes = torch.full((len(real),), -1, device=real.device)  # ... and how many; -1 where nothing is known
        self.bytes = 0

    def welcomes(self, size: int) -> bool:
        """Whether systems of this size are worth keeping here."""
        return size >= _SMALLEST and self.masks.device.type in _KINDS

    def keep(self, row: int, factored: Factored) -> None:
        """Keep a row's factor, in place of an older one, while there is room."""
        before = self.known.pop(row, None)
        self.bytes += factored.factor.nbytes - (0 if before is None else before.factor.nbytes)
        members = factored.members(self.width, self.near[row, : self.counts[row]]) if self.bytes <= self.room else None
        self.sizes[row] = -1
        if members is None:
            self.bytes -= factored.factor.nbytes
            return
        self.known[row], self.members[row] = factored, members
        self.sizes[row], self.masks[row] = len(members), False
        self.masks[row, members] = True

    def near_to(self, rows: Tensor, wanted: Tensor) -> Tensor:
        """Mask of the rows (index) of which something is known and whose members are to be little else, the mask
        `wanted` (rows, members)."""
        return (wanted != self.masks[rows]).sum(dim=1) <= _BORDER * self.sizes[rows]

    def change(
        self, rows: Tensor, wanted: Tensor, right: Tensor, matrices: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[list[int], Tensor]:
        """Solve for the members `wanted` (rows, members; mask) of rows (index) of which something is known.

        `right` (rows, 2, members) are the right-hand sides, `matrices` each row's G and A. Returns the places solved,
        and the solutions, (rows, 2, members), of these; zero where a member takes no part.
        """
        before = self.masks[rows]
        order = before.cumsum(dim=1) - 1
        parts = []
        for changed in (before & ~wanted, wanted & ~before):
            where = changed.nonzero()
            parts.append((where, changed.sum(dim=1).tolist()))
        (where, left), (entered, counts) = parts
        gone = order[where[:, 0], where[:, 1]].split(left)
        came = entered[:, 1].split(counts)
        solutions, done = torch.zeros_like(right), []
        for place, row in enumerate(rows.tolist()):
            members = self.members[row]
            equations = Equations(*matrices[place], right[place], self.width)
            found = self.known[row].change(equations, members, gone[place], came[place])
            if found is not None:
                done.append(place)
                solutions[place].index_copy_(1, members, found[0]).index_copy_(1, came[place], found[1])
        return done, solutions.mul_(wanted[:, None])
