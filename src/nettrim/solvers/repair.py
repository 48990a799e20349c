"""Repair: a feasible point for the groups that have none yet, kept as sparse as possible, or a proof that none exists.

Order: the refit on the iterate's own support, then on all features; a feasible refit is pulled back towards the
iterate until the distance is eps, which keeps the support. The given initial weights come last.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nettrim.certificates.program import support_value
from nettrim.programs.penalties.l1 import EntryCosts
from nettrim.solvers.base import ABSURD
from nettrim.solvers.judge import MET
from nettrim.solvers.problem import Problem
from nettrim.solvers.refit import HARD_WEIGHT, fit_support

_RIDGES = (1e2, 1.0, 1e-2, 1e-4, 0.0)
_FURTHER = (1.0, 8.0, 64.0)  # margins, in the usual ones, at which a point is aimed inside the constraint


@dataclass(frozen=True)
class Repaired:
    """A group's weights, whether they are feasible, and, where nothing is, multipliers that prove it."""

    weight: Tensor  # (rows, in)
    feasible: bool
    proof: Tensor | None = None  # (rows, samples)


def repair(problem: Problem, start: Tensor, initial: Tensor | None) -> Repaired:
    """Make ADMM's iterate `start` (rows, in) of one budget group feasible, or prove that nothing is."""
    point = make_feasible(problem, start)
    if point is not None:
        return Repaired(point, feasible=True)
    allowed = torch.ones_like(start, dtype=torch.bool)
    if isinstance(problem.penalty, EntryCosts):
        allowed = ~torch.isinf(problem.penalty.full(start)).expand(start.shape)
    fitted = _fit(problem, torch.where((start == 0) & allowed, 1e-12, start))
    if is_feasible(problem, fitted):
        return Repaired(_pull_back(problem, fitted, start), feasible=True)
    if initial is not None and is_feasible(problem, initial, margin=0.0):
        return Repaired(initial, feasible=True)
    return Repaired(fitted, feasible=False, proof=_infeasibility(problem, fitted))


def make_feasible(problem: Problem, start: Tensor, *, cast: bool = False) -> Tensor | None:
    """A feasible point near `start` (rows, in), of one budget group, on the same support, or None.

    With `cast` it is feasible after the cast to the program's dtype too, which takes it further inside.
    """
    if not cast:
        return _moved(problem, start)
    for share in _FURTHER:
        point = _moved(problem.inside(start, share), start)
        if point is None:
            return None
        if is_feasible(problem, problem.cast(point), margin=0.0):
            return point
    return None


def _moved(problem: Problem, start: Tensor) -> Tensor | None:
    """The refit pulled back along a segment towards `start`.

    With hard samples the segment may leave the set at once, so the refit itself is held near the start, as strongly as
    the budget allows.
    """
    if is_feasible(problem, start):
        return start
    if problem.soft is None:
        fitted = _fit(problem, start)
        return _pull_back(problem, fitted, start) if is_feasible(problem, fitted) else None
    for ridge in _RIDGES:
        fitted = _fit(problem, start, ridge)
        if is_feasible(problem, fitted):
            return _pull_back(problem, fitted, start)
    return None


def _fit(problem: Problem, start: Tensor, ridge: float = 0.0) -> Tensor:
    return torch.stack([fit_support(problem, start[row], row, ridge) for row in range(problem.rows)])


def is_feasible(problem: Problem, u: Tensor, margin: float | None = None) -> bool:
    """Inside the constraint by a margin that survives the cast to the inputs' precision."""
    if isinstance(problem.penalty, EntryCosts) and bool((torch.isinf(problem.penalty.full(u)) & (u != 0)).any()):
        return False
    if margin is None:
        margin = problem.margin
    if problem.epsilon is None and problem.soft is None:
        return True
    soft, hard = problem.distance(problem.design.forward(u))
    inside = problem.epsilon is None or float((soft**2).sum().sqrt()) <= float(problem.epsilon[0]) * (1 - margin)
    return inside and float(hard.abs().max()) <= MET


def _pull_back(problem: Problem, feasible: Tensor, start: Tensor) -> Tensor:
    """The point nearest `start` on the segment that is still feasible; distances are convex, so bisection finds it."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if is_feasible(problem, feasible + middle * (start - feasible)):
            low = middle
        else:
            high = middle
    return feasible + low * (1 - 1e-6) * (start - feasible)


def _infeasibility(problem: Problem, fitted: Tensor) -> Tensor | None:
    """Multipliers under which every feasible weight would be absurdly large, or None; a penalty that is no norm has no
    such bound."""
    if not problem.penalty.is_norm:
        return None
    soft, hard = problem.distance(problem.design.forward(fitted))
    dual = -(soft + HARD_WEIGHT * hard)
    support = support_value(dual, problem.lower, problem.upper, dim=1).sum()
    epsilon = problem.epsilon[0] if problem.epsilon is not None else 0.0
    surplus = float(support - epsilon * soft.norm())
    gauge = float(problem.penalty.gauge(problem.design.back(dual)).max())
    plausible = 1.0 + float(fitted.abs().sum())
    if surplus > 0 and surplus > ABSURD * plausible * gauge:
        return dual / max(gauge, 1e-30 * float(dual.abs().max()))
    return None
