"""Where a polish starts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nettrim.solvers.curvature import Curvatures
from nettrim.solvers.problem import Problem


@dataclass
class Guess:
    """Where a polish starts: weights, multipliers, hard samples that bind, tau per group."""

    u: Tensor  # (rows, in) float64, sparse
    dual: Tensor  # (rows, samples)
    binding: Tensor | None  # (rows, samples) bool
    tau: Tensor  # (groups,)
    # where they are known: X u (rows, samples), -X' of its distances that count (rows, in), X' of the multipliers
    product: Tensor | None = None
    gradient: Tensor | None = None
    pull: Tensor | None = None

    def select(self, rows: Tensor, groups: Tensor) -> Guess:
        """That of some rows and groups (index or mask)."""
        binding = None if self.binding is None else self.binding[rows]
        return Guess(self.u[rows], self.dual[rows], binding, self.tau[groups])


def guess_from(problem: Problem, weight: Tensor, dual: Tensor, curvatures: Curvatures) -> Guess:
    """The weights (rows, in) and multipliers (rows, samples) of another program, seen as a guess for this one.

    Of rows that a polish left with these weights `curvatures` knows the rest, for want of which it is computed.
    """
    design, u = problem.design, weight.clone()
    z, gradient, t = torch.empty_like(dual), torch.empty_like(u), torch.empty_like(u)
    unknown = []
    for row in range(problem.rows):
        point = curvatures.point(row)
        if point is None or not torch.equal(problem.cast(point.u), weight[row]):
            unknown.append(row)
        else:
            u[row], z[row], gradient[row], t[row] = point.u, point.z, point.gradient, point.t
    if unknown:
        z[unknown] = design.forward(u[unknown])
    soft, _ = problem.distance(z)
    if unknown:
        gradient[unknown], t[unknown] = design.back(-soft[unknown]), roughly_pulled(problem, dual[unknown])
    inside = dual if problem.soft is None else dual * problem.soft.to(dual.dtype)
    reach, pressure = (problem.group_sum((values**2).sum(dim=1)).sqrt() for values in (soft, inside))
    tau = reach / pressure.clamp(min=1e-300)
    return Guess(u, dual, binding(problem, dual, weight), tau, z, gradient, t)


def roughly_pulled(problem: Problem, dual: Tensor) -> Tensor:
    """X' of multipliers, near enough to say which features come first."""
    return problem.design.pull(dual.to(problem.design.precision)).to(torch.float64)


def binding(problem: Problem, dual: Tensor, u: Tensor, least: float = 1e-6) -> Tensor | None:
    """Hard samples that bind (rows, samples), as multipliers tell: those above `least` times a row's largest, and fewer
    than the support can meet. None without hard samples. Far smaller ones are what a central path leaves."""
    if problem.soft is None:
        return None
    pressure = dual.abs().mul_((~problem.soft).to(dual.dtype))
    support = ((u != 0).sum(dim=1, keepdim=True) - 1).clamp(min=0, max=pressure.shape[1] - 1)
    limit = pressure.topk(int(support.max()) + 1, dim=1).values
    bar = torch.maximum(limit.gather(1, support), least * limit[:, :1])
    return (pressure > bar) | (~problem.soft & (problem.lower == problem.upper))
