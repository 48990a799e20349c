"""Candidates for penalties without a polish: ADMM's own iterate, made feasible and judged in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from nettrim.certificates import certify
from nettrim.programs import Program
from nettrim.solvers.judge import Polished
from nettrim.solvers.problem import Problem
from nettrim.solvers.repair import make_feasible

_WORTH = 3.0  # repairing is worth its price when the unrepaired gap is within this factor of the tolerance


def plain_candidate(problem: Problem, u: Tensor, dual: Tensor, tolerance: float, last: bool) -> Polished:
    """The iterate's objective where it could be made feasible and was near enough to try, and its dual bound.

    A penalty that couples rows has one objective and one bound, repeated for every group.
    """
    program = as_program(problem)
    first = certify(program, u, dual.T)
    coupled = problem.penalty.couples_rows
    rough = torch.full_like(first.group_gap, first.gap) if coupled else first.group_gap
    bound = torch.full_like(rough, first.bound) if coupled else first.group_bound
    u, found = u.clone(), torch.zeros_like(rough, dtype=torch.bool)
    for group in ((rough.abs() <= _WORTH * tolerance) | last).nonzero()[:, 0].tolist():
        rows = (problem.groups == group).nonzero()[:, 0]
        point = make_feasible(problem.select(rows), u[rows])
        if point is not None:
            u[rows] = point
            found[group] = True
    final = certify(program, u)
    if coupled:
        whole = final.objective if bool(found.all()) else torch.inf
        return Polished(u, torch.full_like(rough, whole), dual, bound, 0)
    return Polished(u, torch.where(found, final.group_objective, torch.inf), dual, bound, 0)


def as_program(problem: Problem, inputs: Tensor | None = None) -> Program:
    """The scaled problem as a program in its own right, for certificates, with these `inputs` if not its own."""
    return Program(
        inputs=problem.design.dense().T if inputs is None else inputs,
        lower=problem.lower.T,
        upper=problem.upper.T,
        epsilon=problem.epsilon,
        groups=problem.groups,
        penalty=problem.penalty,
        constraint="distance" if problem.soft is None else "strict",
        regularization=problem.regularization,
    )
