"""Judging weights and multipliers of an l1 problem in float64, from sums at hand: the inner certificate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nettrim.certificates.program import support_value
from nettrim.programs.penalties import L1
from nettrim.solvers.problem import Problem

AIM = 0.5  # share of the tolerance at which a group is finished, so that the cast keeps it there
MET = 1e-10  # by how much a bound that must hold may be missed
_FREE = 1e-7  # of a unit cost: what rounding leaves on free columns


@dataclass(frozen=True)
class Polished:
    """The best weights and the best multipliers of each group that the polish saw; they need not come from one step."""

    weight: Tensor  # (rows, in)
    objective: Tensor  # (groups,) of `weight`, inf where no feasible point was seen
    dual: Tensor  # (rows, samples)
    bound: Tensor  # (groups,) that `dual` proves, at least 0
    steps: int
    tau: Tensor | None = None  # (groups,) of the last step
    strayed: Tensor | None = None  # (rows,) bool: those on whose account a joint budget was not met

    @property
    def gap(self) -> Tensor:
        """(objective - bound) / objective of each group, inf without a feasible point."""
        return relative_gap(self.objective, self.bound)


def relative_gap(objective: Tensor, bound: Tensor) -> Tensor:
    """(objective - bound) / objective; 0 for an objective of zero, inf for an infinite one."""
    gap = (objective - bound) / objective.clamp(min=1e-300)
    return torch.where(objective == torch.inf, torch.inf, torch.where(objective > 0, gap, 0.0))


def misses(problem: Problem, u: Tensor, product: Tensor) -> tuple[Tensor, Tensor]:
    """Of weights u (rows, in) after the cast, where X u is `product`: each row's sum of squared distances that count,
    and by how much it misses the worst of the bounds that must hold."""
    moved = (problem.cast(u) - u).to(problem.design.precision)  # so little that its own rounding is none
    if bool((moved != 0).any()):
        product = product + problem.design.product(moved)
    soft, hard = problem.distance(product)
    worst = hard.abs().amax(dim=1) if problem.soft is not None else torch.zeros(len(u), dtype=u.dtype, device=u.device)
    return (soft**2).sum(dim=1), worst


def judged(problem: Problem, weight: Tensor, dual: Tensor, pull: Tensor) -> tuple[Tensor, Tensor]:
    """Objective and bound of each group of an l1 problem, of the weights as they will be cast; `pull` is X'r."""
    assert isinstance(problem.penalty, L1)
    costs = problem.penalty.full(weight).expand(weight.shape)
    product = problem.design.forward(weight)
    return judge(problem, weight, *misses(problem, weight, product), dual, pull, costs)


def judge(
    problem: Problem, u: Tensor, squares: Tensor, worst: Tensor, dual: Tensor, t: Tensor, costs: Tensor
) -> tuple[Tensor, Tensor]:
    """Each group's l1 objective, inf where infeasible, and dual bound, from sums at hand.

    `squares` and `worst` (rows,) are the `misses` of u; `t` is X' of the multipliers.
    """
    squares = problem.group_sum(squares)
    value = l1_of_rows(u, costs)
    support = support_value(dual, problem.lower, problem.upper, dim=1)
    gauge = torch.where(costs == 0, 0.0, t.abs() / costs).amax(dim=1).clamp(min=1e-300)
    # multipliers that push on a column without a cost prove nothing
    valid = (torch.where(costs == 0, t.abs(), 0.0) <= _FREE).all(dim=1)
    scale = torch.where(valid & (support > 0), (1 / gauge).clamp(max=1.0), 0.0)
    ball = (dual if problem.soft is None else dual * problem.soft.to(dual.dtype)).norm(dim=1)
    if problem.regularization is not None:
        lam = problem.regularization
        objective = problem.group_sum(value) + lam * squares
        bound = problem.group_sum(scale * support - (scale * ball) ** 2 / (4 * lam))
        feasible = torch.ones_like(objective, dtype=torch.bool)
    else:
        assert problem.epsilon is not None
        objective = problem.group_sum(value)
        bound = problem.group_sum(scale * support) - problem.epsilon * problem.group_sum((scale * ball) ** 2).sqrt()
        feasible = squares.sqrt() <= problem.epsilon * (1 + 1e-12)
    if problem.soft is not None:
        feasible &= torch.zeros_like(objective).scatter_reduce(0, problem.groups, worst, "amax") <= MET
    return torch.where(feasible, objective, torch.inf), bound.clamp(min=0)


def l1_of_rows(u: Tensor, costs: Tensor) -> Tensor:
    """The l1 norm with costs of each row; an infinite cost of a zero weight is none."""
    return torch.where(u == 0, 0.0, u.abs() * costs).sum(dim=1)
