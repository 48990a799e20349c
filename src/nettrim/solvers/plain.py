"""Candidates for penalties without a polish: ADMM's own iterate, made feasible and judged in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from nettrim.certificates import certify
from nettrim.programs import Program
from nettrim.solvers.polish import Polished
from nettrim.solvers.problem import Problem
from nettrim.solvers.repair import make_feasible

_WORTH = 3.0  # repairing is worth its price when the unrepaired gap is within this factor of the tolerance


def plain_candidate(problem: Problem, u: Tensor, dual: Tensor, tolerance: float, last: bool) -> Polished:
    """The iterate's gap per group; inf where it could not be made feasible or was too far off to try."""
    program = as_program(problem)
    first = certify(program, u, dual.T)
    coupled = problem.penalty.couples_rows
    rough = torch.full_like(first.group_gap, first.gap) if coupled else first.group_gap
    gap = torch.full_like(rough, torch.inf)
    u = u.clone()
    for group in ((rough.abs() <= _WORTH * tolerance) | last).nonzero()[:, 0].tolist():
        rows = (problem.groups == group).nonzero()[:, 0]
        point = make_feasible(problem.select(rows), u[rows])
        if point is not None:
            u[rows] = point
            gap[group] = 0.0
    if bool((gap == 0).any()):
        final = certify(program, u, dual.T)
        judged = torch.full_like(gap, final.gap) if coupled else final.group_gap
        gap = torch.where(gap == 0, judged, gap)
    if coupled and bool((gap == torch.inf).any()):
        gap = torch.full_like(gap, torch.inf)
    return Polished(u, dual, gap, 0)


def as_program(problem: Problem) -> Program:
    """The scaled problem as a program in its own right, for certificates."""
    return Program(
        inputs=problem.inputs_t.T,
        lower=problem.lower.T,
        upper=problem.upper.T,
        epsilon=problem.epsilon,
        groups=problem.groups,
        penalty=problem.penalty,
        constraint="distance" if problem.soft is None else "strict",
        regularization=problem.regularization,
    )
