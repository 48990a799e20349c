"""The iterates of the central path, and the steps along it."""

from __future__ import annotations

import torch
from torch import Tensor

from nettrim.programs import group_sums
from nettrim.programs.penalties import L1
from nettrim.solvers.interior.best import Best
from nettrim.solvers.interior.newton import Direction, Pair, System
from nettrim.solvers.problem import Problem

_MAX_STEPS = 80
_APPROACH = 20  # steps for the first part of a path, at most
_BOUNDARY = 0.99  # share of the way to the boundary
_CORRECTORS = 2  # of a step that falls short; each costs a solve, a fraction of the step's matrices ...
_WIDE = 64  # ... from so many inputs on; with fewer there are none
_LONG = 0.9  # a step that needs no corrector
_STRETCH, _FURTHER = 1.1, 0.1  # a corrector aims at so many times the length, and so much more
_WORTH = 0.1  # share of that gain under which a corrected step is dropped
_SPREAD = 10.0  # how many times larger or smaller than their aim products may end that a corrector leaves alone
_SHORT = 0.3  # a shorter step is tried once more as plain centring
_STALL = 5  # steps without progress after which a group is given up
_FAR = 1e-2  # gap above which a smaller mu is progress: zero weights are all that is feasible for long
_NEGLIGIBLE = 1e-8  # D relative to that of a sample in the ball, under which a sample does not bend anything
_AIM = 0.05  # share of the tolerance at which a group is done
_CAST = 0.5  # in units of rounding: about twice the distance that a cast is likely to add
_PRODUCTS = 18  # with the inputs that a step takes besides its matrices
_ROUGH = 1e-3  # mu relative to its start, above which the matrices of Newton's equations may be rounded
_SPENT = 1e-9  # mu relative to its start, under which it has fallen to nothing
_END = 1e-5  # likewise, under which weights that vanish are told by ever finer cuts


class Path:
    """The iterates of some groups. Rows are scaled to bounds of size one within each group."""

    def __init__(self, problem: Problem, tolerance: float, start: float) -> None:
        assert isinstance(problem.penalty, L1)
        self.problem, self.tolerance = problem, tolerance
        self.groups, self.count = problem.groups, problem.group_count
        self.rows = torch.arange(problem.rows, device=problem.groups.device)  # of the problem that are still worked on
        self.alive = torch.arange(self.count, device=problem.groups.device)  # groups of the problem
        costs = problem.penalty.full(problem.lower.new_zeros(problem.rows, problem.design.width))
        self.costs = costs.expand(problem.rows, problem.design.width)
        self.banned = torch.isinf(self.costs)
        self.free = self.costs == 0
        finite = torch.where(self.banned | self.free, 0.0, self.costs)
        self.unit = self._group_max(finite.amax(dim=1)).clamp(min=1e-300)  # of the costs
        self._bounds()
        self._start(start)

    def _bounds(self) -> None:
        """The box and the ball in units of the group's largest finite bound; `tighten` shrinks them for the cast."""
        problem = self.problem
        lower, upper = problem.lower, problem.upper
        self.point = lower == upper
        soft = torch.ones_like(self.point) if problem.soft is None else problem.soft
        self.in_ball = soft
        width = torch.where(torch.isinf(upper - lower), 1.0, upper - lower)
        self.hard = torch.where(soft | self.point, 0.0, 1.0)
        self.below, self.above = ~torch.isinf(lower) & ~self.point, ~torch.isinf(upper) & ~self.point
        size = torch.maximum(
            lower.nan_to_num(neginf=0.0, posinf=0.0).abs().amax(dim=1),
            upper.nan_to_num(neginf=0.0, posinf=0.0).abs().amax(dim=1),
        )
        self.size = self._group_max(size)
        self.size = torch.where(self.size > 0, self.size, 1.0)
        scale = self.size[self.groups][:, None]
        self.lower_edge, self.upper_edge = lower.nan_to_num(neginf=0.0) / scale, upper.nan_to_num(posinf=0.0) / scale
        self.width = width / scale
        self.lower, self.upper = self.lower_edge, self.upper_edge
        self.lam = None if problem.regularization is None else problem.regularization * self.size / self.unit
        self.epsilon = None
        if self.lam is None:
            assert problem.epsilon is not None
            self.epsilon = problem.epsilon * (1 - max(problem.margin, min(1e-7, 1e-2 * self.tolerance))) / self.size
        self.whole_epsilon = self.epsilon
        self.costs = torch.where(self.banned, 1.0, self.costs / self.unit[self.groups][:, None])

    def tighten(self) -> None:
        """Shrink the hard box and the ball by what a cast may move: rounding grows with the weights."""
        unit = torch.maximum(1 / self.size[self.groups], self.weight.norm(dim=1))[:, None]
        smallest = max(self.problem.hard_margin, min(1e-9, 1e-3 * self.tolerance))
        margin = torch.minimum(self.hard * smallest * unit, 0.25 * self.width)
        self.lower, self.upper = self.lower_edge + margin, self.upper_edge - margin
        if self.whole_epsilon is not None:
            spread = self.sum((self.weight**2 * self.problem.design.squares).sum(dim=1)).sqrt()
            moved = _CAST * torch.finfo(self.problem.design.dtype).eps * spread
            self.epsilon = torch.maximum(self.whole_epsilon - moved, 0.5 * self.whole_epsilon)

    def _start(self, start: float) -> None:
        """Products of one size. The smaller `start`, the wider the first slacks, the safer and slower the path."""
        rows = self.problem.rows
        target = torch.where(
            self.point,
            self.lower,
            torch.where(self.below, self.lower.clamp(min=0), 0.0)
            + torch.where(self.above, self.upper.clamp(max=0), 0.0),
        )
        pull = self.back(target)
        priced = ~self.banned & ~self.free
        reach = torch.where(priced, pull.abs() / self.costs.clamp(min=1e-300), 0.0).amax(dim=1).clamp(min=1e-30)
        width = pull.shape[1]
        least = (target**2).sum(dim=1) / reach / width**0.5
        count = self.sum((least > 0).to(torch.float64)).clamp(min=1)
        spread = (self.sum(least) / count).clamp(min=1e-12)[self.groups][:, None]
        cost = torch.where(self.free, 1.0, self.costs)
        part = Pair(spread.expand_as(cost), cost, priced)
        self.weight = torch.zeros_like(self.costs)
        product = self.sum(torch.where(priced, spread * self.costs, 0.0).sum(dim=1))
        product = (product / self.sum(priced.to(torch.float64).sum(dim=1)).clamp(min=1))[self.groups][:, None]
        typical = (target.abs().sum(dim=1) / (target != 0).sum(dim=1).clamp(min=1)).clamp(min=1e-6)[:, None]
        # slacks so wide that the first multipliers pull no more than `start` times what the costs hold
        bounded = (self.below | self.above).to(torch.float64)
        weightiest = (self._back_size(bounded) / cost).amax(dim=1, keepdim=True)
        typical = torch.maximum(typical, product * weightiest / start)
        pairs = [part, part]
        for edge, mask in ((-self.lower, self.below), (self.upper, self.above)):
            slack = torch.where(mask, torch.maximum(edge, typical), 1.0)
            pairs.append(Pair(slack, torch.where(mask, product / slack, 0.0), mask))
        self.pairs = tuple(pairs)
        self.dual = torch.where(self.point, 0.5 * target / reach[:, None], 0.0) + pairs[2].dual - pairs[3].dual
        counted = sum((pair.mask.sum(dim=1) for pair in self.pairs), torch.zeros(rows, device=target.device))
        self.number = self.sum(counted.to(torch.float64)).clamp(min=1)
        self.point_grams: dict[int, Tensor] = {}
        self.work = 0  # samples that products with a weight, or their equivalents, have passed over
        self.first = self._complementarity()  # mu at the start, (groups,)
        # by how much bounds missed their slacks before a step, where samples have joined: that it falls is progress
        self.joined, self.residual = False, torch.zeros_like(self.first)

    def extended(self, problem: Problem, places: Tensor, tolerance: float) -> Path:
        """The path of `problem`, which has this one's samples at `places` and others besides, from where this one is.

        The slack of a new sample is what it is, or as wide as the worst of them is broken; with multipliers that make
        products of the present mu the iterate stays central.
        """
        path = Path(problem, tolerance, 1.0)  # whose own start is written over
        path.point_grams, path.joined = dict(self.point_grams), True
        change = self.size / path.size
        ratio, mu = change[self.groups][:, None], (change * self._complementarity())[self.groups][:, None]
        path.weight, path.first = ratio * self.weight, change * self.first
        y = path.forward(path.weight)
        pairs = [Pair(ratio * pair.value, pair.dual, pair.mask) for pair in self.pairs[:2]]
        for slack, own, old in (
            (y - path.lower, path.pairs[2], self.pairs[2]),
            (path.upper - y, path.pairs[3], self.pairs[3]),
        ):
            broken = torch.where(own.mask, -slack, 0.0).index_fill(1, places, 0.0).amax(dim=1, keepdim=True)
            value = torch.where(own.mask, torch.maximum(slack, torch.maximum(broken, mu)), 1.0)
            value = value.index_copy(1, places, torch.where(old.mask, ratio * old.value, 1.0))
            dual = torch.where(own.mask, mu / value, 0.0).index_copy(1, places, old.dual)
            pairs.append(Pair(value, dual, own.mask))
        path.pairs = tuple(pairs)
        path.dual = (pairs[2].dual - pairs[3].dual).index_copy(1, places, self.dual)
        return path

    def approach(self, share: float) -> int:
        """Newton steps until mu is `share` of its start in every group, or it takes too many; their number."""
        steps = 0
        while steps < _APPROACH:
            mu = self._complementarity()
            if not bool((mu > share * self.first).any()):
                break
            steps += 1
            self._step(mu)
        return steps

    def follow(self) -> tuple[Best, int]:
        """Newton steps until every group is certified or no longer improves, and their number."""
        best = Best(self.problem)
        steps = 0
        least = torch.full_like(self.first, torch.inf)  # the smallest mu so far
        nearest = least.clone()  # likewise of the residuals
        stalled = torch.zeros(self.count, dtype=torch.int64, device=self.groups.device)
        while True:
            mu = self._complementarity()
            before = best.gap[self.alive]
            best.see(self, near_end=bool((mu < _END * self.first).any()))
            gap = best.gap[self.alive]
            nearer = (mu < 0.9 * least) | (self.residual < 0.9 * nearest)
            stalled = torch.where((gap < 0.9 * before) | ((gap > _FAR) & nearer), 0, stalled + 1)
            least, nearest = torch.minimum(least, mu), torch.minimum(nearest, self.residual)
            wanted = (gap > _AIM * self.tolerance) & (stalled < _STALL) & torch.isfinite(mu)
            if not bool(wanted.all()):
                best.spent[self.alive] = mu < _SPENT * self.first
                self._narrow(wanted)
                mu, least, nearest, stalled = mu[wanted], least[wanted], nearest[wanted], stalled[wanted]
            if not len(self.alive) or steps >= _MAX_STEPS:
                best.work = self.work
                return best, steps
            steps += 1
            self._step(mu)

    def _narrow(self, wanted: Tensor) -> None:
        """Keep only the groups in the mask `wanted`."""
        local = wanted[self.groups].nonzero()[:, 0]
        self.rows, self.alive = self.rows[local], self.alive[wanted]
        self.count = len(self.alive)
        self.groups = (torch.cumsum(wanted, 0) - 1)[self.groups[local]]
        for name in (
            "costs",
            "banned",
            "free",
            "point",
            "in_ball",
            "lower",
            "upper",
            "lower_edge",
            "upper_edge",
            "width",
            "hard",
            "weight",
            "dual",
        ):
            setattr(self, name, getattr(self, name)[local])
        self.pairs = tuple(Pair(*(part[local] for part in pair)) for pair in self.pairs)
        self.size, self.unit, self.number = self.size[wanted], self.unit[wanted], self.number[wanted]
        self.first, self.residual = self.first[wanted], self.residual[wanted]
        self.lam = None if self.lam is None else self.lam[wanted]
        self.epsilon = None if self.epsilon is None else self.epsilon[wanted]
        self.whole_epsilon = None if self.whole_epsilon is None else self.whole_epsilon[wanted]
        self.point_grams = {
            new: self.point_grams[old] for new, old in enumerate(local.tolist()) if old in self.point_grams
        }

    def _step(self, mu: Tensor) -> None:
        """A predictor and its correctors."""
        self.work += _PRODUCTS * self.weight.shape[0] * self.lower.shape[1]
        self.tighten()
        system = System.make(self, mu, mu > _ROUGH * self.first)
        if self.joined:
            self.residual = self._group_max(system.missed)
        nothing = tuple(torch.zeros_like(pair.value) for pair in self.pairs)
        first = system.direction(torch.zeros_like(mu), nothing)
        length = self._longest(first).clamp(max=1.0)
        ahead = self._complementarity(first, length)
        centring = ((ahead / mu.clamp(min=1e-300)) ** 3).clamp(1e-3, 0.9)
        row_mu = mu[self.groups][:, None]
        bend = tuple((change * turn).clamp(-10 * row_mu, 10 * row_mu) for change, turn in first.pairs)
        step = system.direction(centring * mu, bend)
        length = (_BOUNDARY * self._longest(step)).clamp(max=1.0)
        step, length = self._corrected(system, centring * mu, bend, step, length)
        short = length < _SHORT
        if bool(short.any()):
            plain = system.direction(0.4 * mu, nothing)
            other = (_BOUNDARY * self._longest(plain)).clamp(max=1.0)
            change = short & (other > length)
            step = _choose(change[self.groups][:, None], plain, step)
            length = torch.where(change, other, length)
        move = length[self.groups][:, None]
        free = self.weight + move * step.weight
        self.dual = self.dual + move * step.dual
        self.pairs = tuple(
            Pair(pair.value + move * change, pair.dual + move * turn, pair.mask)
            for pair, (change, turn) in zip(self.pairs, step.pairs, strict=True)
        )
        self.weight = torch.where(self.free, free, self.pairs[0].value - self.pairs[1].value)

    def _corrected(
        self, system: System, aim: Tensor, bend: tuple[Tensor, ...], step: Direction, length: Tensor
    ) -> tuple[Direction, Tensor]:
        """Lengthen a step by Gondzio's correctors (Computational Optimization and Applications 6, 1996).

        A little further along the step, products that would be far from their `aim` (groups,) are what blocks it: the
        corrector turns the step so that they end within a factor of it.
        """
        goal = aim[self.groups][:, None]
        for _ in range(_CORRECTORS if self.weight.shape[1] >= _WIDE else 0):
            if bool((length > _LONG).all()):
                break
            reach = (_STRETCH * length + _FURTHER).clamp(max=1.0)
            far = reach[self.groups][:, None]
            turned = []
            for pair, (change, turn), part in zip(self.pairs, step.pairs, bend, strict=True):
                product = (pair.value + far * change) * (pair.dual + far * turn)
                off = product - torch.minimum(torch.maximum(product, goal / _SPREAD), goal * _SPREAD)
                turned.append(part + torch.where(pair.mask, torch.minimum(off, goal * _SPREAD), 0.0))
            other = system.direction(aim, tuple(turned))
            longer = (_BOUNDARY * self._longest(other)).clamp(max=1.0)
            better = longer >= length + _WORTH * (reach - length)
            if not bool(better.any()):
                break
            rows = better[self.groups][:, None]
            step, length = _choose(rows, other, step), torch.where(better, longer, length)
            bend = tuple(torch.where(rows, new, old) for new, old in zip(turned, bend, strict=True))
        return step, length

    def _complementarity(self, step: Direction | None = None, length: Tensor | None = None) -> Tensor:
        """The mean product of the pairs of each group, after a step if one is given."""
        total = self.weight.new_zeros(len(self.rows))
        for index, pair in enumerate(self.pairs):
            value, dual = pair.value, pair.dual
            if step is not None and length is not None:
                move = length[self.groups][:, None]
                value, dual = value + move * step.pairs[index][0], dual + move * step.pairs[index][1]
            total = total + torch.where(pair.mask, value * dual, 0.0).sum(dim=1)
        return self.sum(total) / self.number

    def _longest(self, step: Direction) -> Tensor:
        """How far each group can go before a variable or a multiplier reaches zero."""
        longest = self.weight.new_full((len(self.rows),), 1e9)
        for pair, moves in zip(self.pairs, step.pairs, strict=True):
            for value, change in zip(pair[:2], moves, strict=True):
                ratio = torch.where(pair.mask & (change < 0), -value / change.clamp(max=-1e-300), 1e9)
                longest = torch.minimum(longest, ratio.amin(dim=1))
        result = self.weight.new_full((self.count,), 1e9)
        return result.scatter_reduce(0, self.groups, longest, "amin")

    def ball(self, mu: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        """tau of each group and k = -(d tau / d R) / R, at the barrier's weight `mu`."""
        if self.lam is not None:
            return 1 / (2 * self.lam), torch.zeros_like(self.lam)
        assert self.epsilon is not None
        square = self.epsilon**2
        root = (mu**2 + square * radius**2).sqrt().clamp(min=1e-300)
        return square / (mu + root), square**2 / ((mu + root) ** 2 * root)

    def counting(self, curvature: Tensor, tau: Tensor) -> list[Tensor]:
        """The samples of each row (index) whose D, `curvature` (rows, samples), is not negligible; tau is (rows,)."""
        reference = torch.minimum(curvature.amax(dim=1), torch.where(tau > 0, 1 / tau, torch.inf))
        counts = self.point | (curvature > _NEGLIGIBLE * reference[:, None])
        return [row.nonzero()[:, 0] for row in counts]

    def gram(self, row: int, curvature: Tensor, samples: Tensor, rough: bool) -> Tensor:
        """X' diag(curvature) X of one row over `samples` (index), its points taken from a matrix made once; `rough` in
        working precision."""
        design = self.problem.design
        point = self.point[row]
        kept = samples[~point[samples]]
        self.work += len(kept) * design.width
        gram = design.gram(kept, weights=curvature[kept], rough=rough)
        if bool(point.any()):
            if row not in self.point_grams:
                self.point_grams[row] = design.gram_of(point)
                self.work += min(int(point.sum()), int((~point).sum())) * design.width
            gram += self.point_grams[row] * float(curvature[point].max())
        return gram

    def sample_gram(self, give: Tensor, samples: Tensor, rough: bool) -> Tensor:
        """X diag(give) X' of one row over `samples` (index); `rough` in working precision."""
        design = self.problem.design
        self.work += len(samples) ** 2
        part = design.take(samples, dtype=design.precision if rough else torch.float64)
        return ((part * give.to(part.dtype)) @ part.T).to(torch.float64)

    def _back_size(self, count: Tensor) -> Tensor:
        """|X|' of `count`, by Cauchy-Schwarz: the largest that multipliers of these sizes can pull."""
        norms = self.problem.design.squares.sqrt()
        return count.norm(dim=1, keepdim=True) * norms

    def sum(self, values: Tensor) -> Tensor:
        return group_sums(values, self.groups, self.count)

    def _group_max(self, values: Tensor) -> Tensor:
        return values.new_zeros(self.count).scatter_reduce(0, self.groups, values, "amax")

    def forward(self, weight: Tensor) -> Tensor:
        return self.problem.design.forward(weight)

    def back(self, dual: Tensor) -> Tensor:
        return self.problem.design.back(dual)


def _choose(first: Tensor, one: Direction, other: Direction) -> Direction:
    """`one` in the rows of the mask `first` (rows, 1), `other` elsewhere."""
    pairs = tuple(
        (torch.where(first, a, c), torch.where(first, b, d))
        for (a, b), (c, d) in zip(one.pairs, other.pairs, strict=True)
    )
    weight, dual = torch.where(first, one.weight, other.weight), torch.where(first, one.dual, other.dual)
    return Direction(weight, dual, pairs)
