"""Repair: a feasible point for the groups that have none yet, kept as sparse as possible, or a proof that none exists.

Order: the refit on the iterate's own support, then on all features; a feasible refit is pulled back towards the
iterate until the distance is eps, which keeps the support. The given initial weights come last.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nettrim.solvers.admm import Admm
from nettrim.solvers.problem import Problem
from nettrim.solvers.refit import fit_support

_HUGE = 1e6  # a proved lower bound this many times the plausible weight is called infeasible


def repair(
    problem: Problem, u: Tensor, dual: Tensor, gap: Tensor, state: Admm, remaining: Tensor, initial: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Fill the groups whose gap is infinite; returns weights, multipliers and which groups are proved infeasible."""
    u, dual = u.clone(), dual.clone()
    infeasible = torch.zeros(problem.group_count, dtype=torch.bool)
    iterate = torch.zeros_like(u)
    iterate[remaining] = state.w.to(torch.float64)
    rough = torch.zeros_like(dual)
    rough[remaining] = state.multipliers().to(torch.float64)
    allowed = ~torch.isinf(problem.penalty.full(u)) if hasattr(problem.penalty, "full") else torch.ones_like(u, dtype=torch.bool)
    for group in (gap == torch.inf).nonzero()[:, 0].tolist():
        rows = (problem.groups == group).nonzero()[:, 0]
        part = problem.select(rows)
        start, dual[rows] = iterate[rows], rough[rows]
        point = make_feasible(part, start)
        if point is not None:
            u[rows] = point
            continue
        fitted = _fit(part, torch.where((start == 0) & allowed[rows], 1e-12, start))
        if _feasible(part, fitted):
            u[rows] = _pull_back(part, fitted, start)
        elif initial is not None and _feasible(part, initial[rows]):
            u[rows] = initial[rows]
        else:
            u[rows] = fitted
            proof = _infeasibility(part, fitted)
            if proof is not None:
                dual[rows] = proof
                infeasible[group] = True
    return u, dual, infeasible


def make_feasible(problem: Problem, start: Tensor) -> Tensor | None:
    """A feasible point near `start` on the same support, or None."""
    if _feasible(problem, start):
        return start
    fitted = _fit(problem, start)
    return _pull_back(problem, fitted, start) if _feasible(problem, fitted) else None


def _fit(problem: Problem, start: Tensor) -> Tensor:
    margin = 1e-7 if problem.inputs.dtype == torch.float32 else 1e-11
    return torch.stack([fit_support(problem, start[row], row, margin) for row in range(problem.rows)])


def _feasible(problem: Problem, u: Tensor) -> bool:
    if problem.epsilon is None and problem.soft is None:
        return True
    soft, hard = problem.distance(u @ problem.inputs_t)
    inside = problem.epsilon is None or float((soft**2).sum().sqrt()) <= float(problem.epsilon[0]) * (1 + 1e-12)
    return inside and float(hard.abs().max()) <= 1e-10


def _pull_back(problem: Problem, feasible: Tensor, start: Tensor) -> Tensor:
    """The point nearest `start` on the segment that is still feasible; distances are convex, so bisection finds it."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if _feasible(problem, feasible + middle * (start - feasible)):
            low = middle
        else:
            high = middle
    return feasible + low * (1 - 1e-6) * (start - feasible)


def _infeasibility(problem: Problem, fitted: Tensor) -> Tensor | None:
    """Multipliers under which every feasible weight would be absurdly large, or None."""
    soft, hard = problem.distance(fitted @ problem.inputs_t)
    dual = -(soft + 1e4 * hard) if problem.soft is not None else -soft
    support = (torch.where(dual > 0, dual * problem.lower, 0.0) + torch.where(dual < 0, dual * problem.upper, 0.0)).sum()
    ball = (dual if problem.soft is None else torch.where(problem.soft, dual, 0.0)).norm()
    epsilon = problem.epsilon[0] if problem.epsilon is not None else 0.0
    surplus = float(support - epsilon * ball)
    gauge = float(problem.penalty.gauge(dual @ problem.inputs_t.T).max())
    plausible = 1.0 + float(fitted.abs().sum())
    if surplus > 0 and surplus > _HUGE * plausible * gauge:
        return dual / max(gauge, 1e-300)
    return None
