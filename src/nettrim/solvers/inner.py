"""The lassos of one quadratic per row, by a primal-dual active set; see `polish` for the mathematics.

Vectors of all rows are padded to the longest and worked on at once. Matrices stay with their rows; the systems of rows
with supports of like size are solved in batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from nettrim.solvers.bordered import Factored, Factors
from nettrim.solvers.cholesky import solve_factored
from nettrim.solvers.curvature import Curvature
from nettrim.solvers.design import Design
from nettrim.solvers.padding import alike, most, padded, places, stacked

_JOINING = 0.07  # hard samples that join in a pass, per weight of the support: more throw the point far away
_ENTERING, _FEWEST = 0.15, 4  # likewise weights that enter in a pass: a share of the support, or a few
_MOST_BINDING = 2  # hard samples per weight of the support, above which a row is given up
_LARGEST_SINGULAR = 100  # a singular system up to this size is solved by its pseudo-inverse, else its row is given up
_SOUND = 1e-10  # the least pivot of a factor that is kept, relative to its largest
_SPARE = 5  # weights that a row may ask for beyond what a vertex can have


class Lassos:
    """|X_A u - b|^2 of every row on its working set of features, by its Gram matrix; see `curvature`.

    Entries are (rows, features), features of the working set of each row, or (rows, near), the hard samples that it
    watches; those past a row's own are padding, which is zero.
    """

    def __init__(self, design: Design, curvatures: Sequence[Curvature], costs: Tensor, tiny: float) -> None:
        """The rows' `costs` are (rows, in); weights below `tiny` are zero to rounding."""
        self.design, self.curvatures, self.tiny = design, curvatures, tiny
        self.features, self.real = padded([curvature.features for curvature in curvatures])
        self.costs = torch.where(self.real, costs.gather(1, self.features), 1.0)
        self.free = self.real & (self.costs == 0)
        zero = torch.zeros_like(self.costs)
        self.linear = self.start = self.v = self.signs = zero
        self.v0, self.v1, self.q0, self.q1 = (zero.clone() for _ in range(4))
        rows = len(curvatures)
        self.constant = zero.new_zeros(rows)
        self.coefficients = zero.new_zeros(rows, 3)  # of the squared distance in tau
        self.size = torch.zeros(rows, dtype=torch.int64, device=zero.device)  # weights of the support
        self.asked = self.size.clone()  # the most that there were, had all entered at once that exceed their limits
        counts = torch.tensor([curvature.count for curvature in curvatures], device=zero.device)
        # weights that the samples which count, and no cost, can tell apart
        self.rank = counts.clamp(max=design.independent) + self.free.sum(dim=1)
        self.dirty = torch.ones(rows, dtype=torch.bool, device=zero.device)  # whose signs are not those of its point
        # whether more bounds bind than weights could meet: not a vertex that this method finds
        self.hopeless = torch.zeros_like(self.dirty)
        self.strayed = torch.zeros_like(self.dirty)  # whether it kept a joint budget waiting in an earlier outer step
        self.watching = False  # hard samples
        nothing = zero.new_zeros(rows, 0)
        self.edge = self.pull = self.nu = self.nu0 = self.nu1 = nothing
        self.near, self.watched = nothing.to(torch.int64), nothing.to(torch.bool)
        self.held = self.began = self.watched
        self.margin = self.constant
        # X of the watched samples of each row, (near, features)
        self.around = [curvature.gram[:0] for curvature in curvatures]

    @property
    def rows(self) -> int:
        return len(self.curvatures)

    def begin(self, u: Tensor, signs: Tensor, gradient: Tensor, square: Tensor, t: Tensor) -> None:
        """Start from u (rows, in), where X' (b - X_A u) = `gradient` and |b - X_A u|^2 = `square` (rows,); `t` is X'
        of the multipliers. Hard samples that are watched are told before, by `bind`."""
        u, signs, gradient, t = (
            torch.where(self.real, part.gather(1, self.features), 0.0) for part in (u, signs, gradient, t)
        )
        curved = torch.zeros_like(u)
        for row, curvature in enumerate(self.curvatures):
            count = len(curvature.features)
            curved[row, :count] = curvature.gram @ u[row, :count]
        self.linear = gradient + curved
        self.constant = square + (2 * gradient * u + u * curved).sum(dim=1)
        excess = torch.where(self.real & ~self.free & (signs == 0), t.abs() - self.costs, 0.0)
        entering = self._entering(slice(None), excess, (signs != 0).sum(dim=1), cautious=False)
        self.signs = torch.where(self.free, 0.0, torch.where(entering, t.sign(), signs))
        self.start, self.v = u, u.clone()

    def bind(self, near: Tensor, watched: Tensor, held: Tensor, edge: Tensor, pull: Tensor, margin: Tensor) -> None:
        """Ask X u = edge of the hard samples `near` (rows, near) that are `held`; the others may come to be held.

        `watched` says which entries are no padding, `pull` the sign each multiplier must have, 0 where both will do; a
        sample outside by more than `margin` (rows,) is held.
        """
        self.watching = True
        self.near, self.watched, self.edge, self.pull, self.margin = near, watched, edge, pull, margin
        counts = watched.sum(dim=1).tolist()
        self.around = [
            self.design.take(near[row, :count], curvature.features)
            for row, (curvature, count) in enumerate(zip(self.curvatures, counts, strict=True))
        ]
        self.held, self.began = held.clone(), held
        self.nu, self.nu0, self.nu1 = (torch.zeros_like(edge) for _ in range(3))

    @cached_property
    def factors(self) -> Factors:
        """What was factored last; at first, with what the rows watch then, what their curvatures came with."""
        factors = Factors(self.design.factor_bytes, self.real, self.near, self.watched)
        for row, curvature in enumerate(self.curvatures):
            if curvature.factored is not None:
                factors.keep(row, curvature.factored)
        return factors

    def solve(self, rows: Tensor) -> None:
        """v = v0 - tau v1 for the present signs of some rows (index), and the coefficients of the squared distance."""
        support = (self.signs[rows] != 0) | self.free[rows]
        self.size[rows] = size = support.sum(dim=1)
        self.v0[rows], self.v1[rows] = 0.0, 0.0
        self.nu0[rows], self.nu1[rows] = 0.0, 0.0
        self.dirty[rows] = False
        bound = self.held[rows].sum(dim=1)
        crowded = bound > _MOST_BINDING * (size + 1)
        self.hopeless[rows] |= crowded
        anew = (size > 0) & ~crowded
        anew[self._solve_bordered(rows, support, anew)] = False
        for saddle in (False, True):
            index = (anew & ((bound > 0) == saddle)).nonzero()[:, 0]
            if len(index):
                for part in alike((size + bound)[index], self.design.device.type):
                    self._solve_alike(rows[index[part]], support[index[part]], saddle)
        self._expand(rows)

    def _solve_bordered(self, rows: Tensor, support: Tensor, wanted: Tensor) -> Tensor:
        """Solve those of some rows (index) in the mask `wanted` whose supports (rows, features) and held samples differ
        little from what was factored; the places of those solved."""
        members = torch.cat([support, self.held[rows]], dim=1)
        index = (wanted & self.factors.near_to(rows, members)).nonzero()[:, 0]
        if not len(index):
            return index
        numbers, width = rows[index], support.shape[1]
        edge = self.edge[numbers]
        right = torch.stack(
            [
                torch.cat([self.linear[numbers], edge], dim=1),
                torch.cat([(self.costs * self.signs)[numbers], torch.zeros_like(edge)], dim=1),
            ],
            dim=1,
        )
        matrices = [(self.curvatures[row].gram, self.around[row]) for row in numbers.tolist()]
        done, found = self.factors.change(numbers, members[index], right, matrices)
        index, numbers, found = index[done], numbers[done], found[done]
        self.v0[numbers], self.v1[numbers] = found[:, :, :width].unbind(dim=1)
        self.nu0[numbers], self.nu1[numbers] = found[:, :, width:].unbind(dim=1)
        return index

    def _solve_alike(self, rows: Tensor, support: Tensor, saddle: bool) -> None:
        """Solve some rows (index) whose supports (rows, features) are not empty and of like size; `saddle` where hard
        samples bind."""
        inside, real = places(support)
        held = self.held[rows]
        bound, binds = places(held) if saddle else (inside[:, :0], real[:, :0])
        numbers = rows.tolist()
        chosen = [inside[place, :size] for place, size in enumerate(real.sum(dim=1).tolist())]
        blocks = [
            self.curvatures[row].gram.index_select(0, index).index_select(1, index)
            for row, index in zip(numbers, chosen, strict=True)
        ]
        count, width = inside.shape
        system = stacked(blocks, width + bound.shape[1])
        here, cost = (
            torch.where(real, values[rows].gather(1, inside), 0.0) for values in (self.linear, self.costs * self.signs)
        )
        right = torch.stack([here, cost], dim=2)
        if saddle:
            solution, factor, pivots = self._saddle(rows, system, right, (inside, real), (bound, binds))
        else:
            solution, factor, pivots = *self._definite(rows, system, right, real), None
        sides = right.new_zeros(count, 2, support.shape[1])
        sides.scatter_add_(2, inside[:, None].expand(-1, 2, -1), solution.mT)  # padding adds zero
        self.v0[rows], self.v1[rows] = sides.unbind(dim=1)
        if self.factors.welcomes(len(system[0])):
            taking_part = torch.cat([real, binds], dim=1)
            diagonal = factor.diagonal(dim1=1, dim2=2).abs()
            pivot = diagonal if saddle else diagonal**2
            sound = pivot.amin(dim=1) > _SOUND * pivot.amax(dim=1)  # bordering multiplies rounding by its inverse
            for place in sound.nonzero()[:, 0].tolist():
                row, index = numbers[place], chosen[place]
                samples = self.near[row][held[place]]
                spots = None if bool(taking_part[place].all()) else taking_part[place].nonzero()[:, 0]
                ours = None if pivots is None else pivots[place]
                self.factors.keep(row, Factored(index, samples, factor[place], ours, spots))

    def curvature(self, row: int) -> Curvature:
        """That of a row, with what was factored last."""
        return replace(self.curvatures[row], factored=self.factors.known.get(row))

    def _expand(self, rows: Tensor) -> None:
        """What the multipliers of features and the squared distance are at the solutions of some rows (index)."""
        sides = torch.stack([self.v0[rows], self.v1[rows]], dim=1)
        pushes = torch.stack([self.nu0[rows], self.nu1[rows]], dim=1)
        moved, pushed = torch.zeros_like(sides), torch.zeros_like(sides)
        for place, row in enumerate(rows.tolist()):
            near, features = self.around[row].shape
            moved[place, :, :features] = sides[place, :, :features] @ self.curvatures[row].gram
            if near:
                pushed[place, :, :features] = pushes[place, :, :near] @ self.around[row]
        here = self.linear[rows]
        self.q0[rows], self.q1[rows] = here - moved[:, 0] - pushed[:, 0], moved[:, 1] + pushed[:, 1]
        quadratic = moved @ sides.mT
        linear = (sides @ here[:, :, None])[:, :, 0]
        self.coefficients[rows] = torch.stack(
            [
                (self.constant[rows] - 2 * linear[:, 0] + quadratic[:, 0, 0]).clamp(min=0),
                2 * linear[:, 1] - 2 * quadratic[:, 0, 1],
                quadratic[:, 1, 1],
            ],
            dim=1,
        )

    def _definite(self, rows: Tensor, gram: Tensor, right: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """The solutions (rows, support, 2) and Cholesky's factors; `gram` is overwritten."""
        diagonal = gram.diagonal(dim1=1, dim2=2)
        diagonal.mul_(1 + 1e-13).add_(1e-300)
        diagonal.masked_fill_(~real, 1.0)
        factor, info = torch.linalg.cholesky_ex(gram)
        solution = solve_factored(factor, right)
        for place in info.nonzero()[:, 0].tolist():
            size = int(real[place].sum())
            solution[place], factor[place] = 0.0, torch.nan  # nothing to go on from
            if size > _LARGEST_SINGULAR:  # more weights than the samples that count can tell apart
                self.hopeless[rows[place]] = True
                continue
            values, vectors = torch.linalg.eigh(gram[place, :size, :size])
            inverse = torch.where(values > 1e-12 * values[-1], 1 / values, 0.0)
            solution[place, :size] = vectors @ (inverse[:, None] * (vectors.T @ right[place, :size]))
        return solution, factor

    def _saddle(
        self,
        rows: Tensor,
        system: Tensor,
        right: Tensor,
        support: tuple[Tensor, Tensor],
        held: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The solutions (rows, support, 2) that meet the bounds which bind, whose multipliers are kept; LU's factors
        and pivots.

        `system` has the Gram matrices at its top left. `support` and `held` say where features and bounds are, as
        `places`.
        """
        (inside, real), (bound, binds) = support, held
        width = real.shape[1]
        sizes, counts = real.sum(dim=1), binds.sum(dim=1)
        for place, (row, size, count) in enumerate(zip(rows.tolist(), sizes.tolist(), counts.tolist(), strict=True)):
            hard = self.around[row].index_select(0, bound[place, :count]).index_select(1, inside[place, :size])
            system[place, width : width + count, :size] = hard
            system[place, :size, width : width + count] = hard.T
        diagonal = system.diagonal(dim1=1, dim2=2)
        pressure = (system[:, :width, width:] ** 2).sum(dim=(1, 2)) / counts
        scale = torch.maximum(diagonal[:, :width].sum(dim=1) / sizes, pressure) + 1e-300
        diagonal[:, :width] += (1e-11 * scale)[:, None]
        diagonal[:, width:] -= (1e-11 * pressure / scale)[:, None]
        diagonal.masked_fill_(~torch.cat([real, binds], dim=1), 1.0)
        edge = torch.where(binds, self.edge[rows].gather(1, bound), 0.0)
        right = torch.cat([right, torch.stack([edge, torch.zeros_like(edge)], dim=2)], dim=1)
        factor, pivots, _ = torch.linalg.lu_factor_ex(system)
        solution = torch.linalg.lu_solve(factor, pivots, right)
        broken = ~torch.isfinite(solution).all(dim=2).all(dim=1)
        for place in broken.nonzero()[:, 0].tolist():
            lost = int(sizes[place] + counts[place]) > _LARGEST_SINGULAR
            self.hopeless[rows[place]] |= lost
            inverse = torch.zeros_like(system[place]) if lost else torch.linalg.pinv(system[place], hermitian=True)
            solution[place], factor[place] = inverse @ right[place], torch.nan  # nothing to go on from
        for kept, values in zip((self.nu0, self.nu1), solution[:, width:].unbind(dim=2), strict=True):
            kept[rows] = torch.zeros_like(kept[rows]).scatter_add(1, bound, torch.where(binds, values, 0.0))
        return solution[:, :width], factor, pivots

    @property
    def beyond(self) -> Tensor:
        """Whether a row asks for more weights than any vertex has, (rows,): the passes are lost.

        A vertex has at most one weight for each sample that counts or binds.
        """
        return self.asked > self.rank + self.held.sum(dim=1) + _SPARE

    def take(self, rows: Tensor, tau: Tensor) -> None:
        """The points and the hard multipliers of some rows (index) at tau (rows,)."""
        self.v[rows] = self.v0[rows] - tau[:, None] * self.v1[rows]
        self.nu[rows] = self.nu0[rows] - tau[:, None] * self.nu1[rows]

    def settle(self, rows: Tensor, tau: Tensor, cautious: bool) -> None:
        """Take the points at tau and read the signs off them."""
        self.take(rows, tau)
        signs, v = self.signs[rows], self.v[rows]
        q = self.q0[rows] + tau[:, None] * self.q1[rows]
        if self.watching:
            self._rebind(rows, cautious)
        flipped = v * signs < -self.tiny  # a weight that hard samples hold at zero keeps its sign
        closed = (signs != 0) | self.free[rows] | ~self.real[rows]
        excess = torch.where(closed, 0.0, q.abs() - tau[:, None] * self.costs[rows] * (1 + 1e-9))
        entering = self._entering(rows, excess, self.size[rows], cautious)
        self.signs[rows] = torch.where(flipped, 0.0, torch.where(entering, q.sign(), signs))
        self.v[rows] = torch.where(flipped, 0.0, v)
        self.dirty[rows] |= (flipped | entering).any(dim=1)

    def _entering(self, rows: Tensor | slice, excess: Tensor, size: Tensor, cautious: bool) -> Tensor:
        """Mask of the features that enter the supports of some rows (index), now `size` (rows,), of those that exceed
        their limits: the worst when cautious, else several of the worst, with hard samples all, which need weights to
        be met."""
        exceeds = excess > 0
        self.asked[rows] = torch.maximum(self.asked[rows], size + exceeds.sum(dim=1))
        if self.watching and not cautious:
            return exceeds
        return most(excess, torch.ones_like(size) if cautious else _some(_ENTERING, _FEWEST, size))

    def _rebind(self, rows: Tensor, cautious: bool) -> None:
        """Let go of the hard samples whose multiplier has the wrong sign, and hold the worst of those outside.

        When cautious, one of the first or, where there are none, of the second.
        """
        held, nu = self.held[rows], self.nu[rows]
        wrong = torch.where(held, -nu * self.pull[rows], 0.0)
        outside = torch.where(held | ~self.watched[rows], 0.0, self.outside(rows) - self.margin[rows, None])
        count = _some(_JOINING, 1, self.size[rows])
        leaving = wrong > 0
        if cautious and held.shape[1]:
            leaving &= wrong == wrong.amax(dim=1, keepdim=True)
            count = 1 - leaving.any(dim=1).to(torch.int64)
        now = (held | most(outside, count)) & ~leaving
        self.held[rows], self.nu[rows] = now, torch.where(now, nu, 0.0)
        self.dirty[rows] |= (now != held).any(dim=1)

    def outside(self, rows: Tensor) -> Tensor:
        """By how much the points of some rows (index) break the bounds of the hard samples they watch, (rows, near)."""
        return (self.product(rows, self.v[rows]) - self.edge[rows]) * self.pull[rows]

    def product(self, rows: Tensor, weight: Tensor) -> Tensor:
        """X w of the hard samples that some rows (index) watch, for weights (rows, features), (rows, near)."""
        result = torch.zeros_like(self.edge[rows])
        for place, row in enumerate(rows.tolist()):
            around = self.around[row]
            result[place, : len(around)] = around @ weight[place, : around.shape[1]]
        return result


def tau_at(coefficients: Tensor, square: Tensor) -> Tensor:
    """Where c0 + c1 tau + c2 tau^2 = `square` (rows,), for `coefficients` (rows, 3); 0 where it does not come that
    near."""
    c0, c1, c2 = coefficients.unbind(dim=1)
    root = (c1**2 / 4 + c2 * (square - c0)).clamp(min=0).sqrt() - c1 / 2
    return torch.where((square <= c0) | (c2 <= 0), 0.0, (root / c2.clamp(min=1e-300)).clamp(min=0))


def _some(share: float, fewest: int, sizes: Tensor) -> Tensor:
    """A share of these sizes, rounded down, and at least `fewest`."""
    return (share * sizes).to(torch.int64).clamp(min=fewest)
