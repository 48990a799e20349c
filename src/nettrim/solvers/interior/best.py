"""The best that was seen on a central path, judged in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nettrim.certificates.program import clip_multipliers
from nettrim.programs import group_sums
from nettrim.programs.penalties import L1
from nettrim.solvers.judge import judged, relative_gap
from nettrim.solvers.problem import Problem

if TYPE_CHECKING:
    from nettrim.solvers.interior.path import Path

_CUTS = (1.0, 1e-2, 1e-4, 0.0)  # of |w| relative to the multiplier of its sign
_ALMOST = 10.0  # times the tolerance: a gap of which nothing is left but what the cast takes


class Best:
    """The best weights and multipliers of each group seen on the path, in the problem's units."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        assert isinstance(problem.penalty, L1)
        self.weight = problem.lower.new_zeros(problem.rows, problem.design.width)
        self.dual = torch.zeros_like(problem.lower)
        self.objective = problem.lower.new_full((problem.group_count,), torch.inf)
        self.bound = torch.zeros_like(self.objective)
        self.vertex = torch.zeros_like(self.weight)  # with all weights zero that vanish in the limit
        self.binding = torch.zeros_like(self.dual, dtype=torch.bool)  # hard samples whose bound is met in the limit
        self.tau = torch.ones_like(self.objective)
        self.spent = torch.zeros_like(self.objective, dtype=torch.bool)  # whether mu has fallen to nothing
        self.work = 0  # samples passed over by products with a weight, or their equivalents

    @property
    def gap(self) -> Tensor:
        return relative_gap(self.objective, self.bound)

    def done(self, tolerance: float) -> Tensor:
        """Mask of the groups within the tolerance, or as near to it as the room for the cast lets their path end."""
        return self.gap <= torch.where(self.spent, _ALMOST, 1.0) * tolerance

    def see(self, path: Path, near_end: bool) -> None:
        """Judge the path's iterate with the weights that vanish set to zero; near the end, as few as it takes."""
        problem = self.problem.select(path.rows)
        up, down = path.pairs[:2]
        largest = path.weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-300)
        sloped = torch.minimum(up.dual, down.dual) / path.costs.clamp(min=1e-300)
        dual = clip_multipliers(path.dual * path.unit[path.groups][:, None], problem.lower, problem.upper)
        pull = problem.design.back(dual)
        value = self.objective.new_full((path.count,), torch.inf)
        proved, weight = torch.zeros_like(value), torch.zeros_like(path.weight)
        for cut in _CUTS if near_end else _CUTS[:1]:
            kept = path.free | ((path.weight.abs() / largest > cut * sloped) & ~path.banned)
            trial = torch.where(kept, path.weight, 0.0) * path.size[path.groups][:, None]
            if cut == 1:
                self.vertex[path.rows] = trial
            found, proved = judged(problem, trial, dual, pull)
            weight = torch.where((value == torch.inf)[path.groups][:, None], trial, weight)
            value = torch.where(value == torch.inf, found, value)
            if bool((value < torch.inf).all()):
                break
        self._limit(path)
        better, tighter = value < self.objective[path.alive], proved > self.bound[path.alive]
        self.objective[path.alive[better]], self.bound[path.alive[tighter]] = value[better], proved[tighter]
        rows = better[path.groups]
        self.weight[path.rows[rows]] = weight[rows]
        rows = tighter[path.groups]
        self.dual[path.rows[rows]] = dual[rows]

    def _limit(self, path: Path) -> None:
        """Which hard samples bind, and tau, in the problem's units."""
        low, high = path.pairs[2:]
        bound = (low.mask & (low.dual > low.value)) | (high.mask & (high.dual > high.value))
        self.binding[path.rows] = ~path.in_ball & (path.point | bound)
        inside = torch.where(path.in_ball, path.dual, 0.0)
        radius = group_sums((inside**2).sum(dim=1), path.groups, path.count).sqrt()
        self.tau[path.alive] = path.ball(torch.zeros_like(radius), radius)[0] * path.size / path.unit

    def spread(self, part: Best, samples: Tensor) -> None:
        """What was found on some samples (index), judged on all: the others have multipliers of zero."""
        problem = self.problem
        self.weight, self.vertex, self.tau, self.spent = part.weight, part.vertex, part.tau, part.spent
        self.dual[:, samples], self.binding[:, samples] = part.dual, part.binding
        self.objective, self.bound = judged(problem, self.weight, self.dual, problem.design.back(self.dual))

    def take(self, part: Best, groups: Tensor, rows: Tensor) -> None:
        """What was found for some groups, and their rows, where it is no worse."""
        better = part.gap <= self.gap[groups]
        chosen = better[part.problem.groups]
        for name in ("weight", "vertex", "dual", "binding"):
            getattr(self, name)[rows[chosen]] = getattr(part, name)[chosen]
        for name in ("objective", "bound", "tau", "spent"):
            getattr(self, name)[groups[better]] = getattr(part, name)[better]
        self.work += part.work
