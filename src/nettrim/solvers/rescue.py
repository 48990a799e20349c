"""The last resort for small degenerate programs: a general solver, where CVXPY is installed (extra `solvers`).

Hard bounds that are tight in more ways than there are weights defeat an active-set polish, and ADMM alone ends with a
gap. What comes back is judged by the same certificate as everything else, and kept only where it is better.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import torch

from nettrim.certificates import certify
from nettrim.programs import Program
from nettrim.solvers.base import Solution, Status
from nettrim.solvers.cvxpy_solver import Cvxpy, can_state
from nettrim.solvers.problem import Problem

_LARGEST = 20_000  # rows times samples of a group above which a general solver would take too long


def can_rescue(problem: Problem) -> bool:
    """Whether every group of `problem` is small enough and a general solver is installed that can be told it."""
    return problem.rows * problem.design.samples <= _LARGEST and _installed() and can_state(problem.penalty)


def rescue(program: Program, solution: Solution, tolerance: float) -> Solution:
    """Try a general solver on the small budget groups of `solution` that are not certified."""
    groups = program.groups.cpu()
    open_rows = torch.tensor([not status.certified and status is not Status.INFEASIBLE for status in solution.status])
    if not bool(open_rows.any()) or not _installed() or not can_state(program.penalty):
        return solution
    together = program.penalty.couples_rows
    wanted = [None] if together else torch.unique(groups[open_rows]).tolist()
    weight, dual, status = solution.weight.clone(), solution.dual.clone(), list(solution.status)
    for group in wanted:
        rows = torch.arange(program.shape[0]) if group is None else (groups == group).nonzero()[:, 0]
        if len(rows) * program.samples > _LARGEST:
            continue
        part = program.rows(rows)
        other = Cvxpy().solve(part, tolerance)
        present = certify(part, weight[rows], dual[:, rows])
        if other.certificate.holds(tolerance) and (other.certificate.gap < present.gap or not present.holds(tolerance)):
            weight[rows], dual[:, rows] = other.weight, other.dual
            for row in rows.tolist():
                status[row] = status[row] if status[row] is Status.ZERO else Status.RESCUED
        elif Status.INFEASIBLE in other.status and present.violation > 1e-9:
            weight[rows], dual[:, rows] = other.weight, other.dual
            for row, end in zip(rows.tolist(), other.status, strict=True):
                status[row] = end
    return replace(solution, weight=weight, dual=dual, status=tuple(status), certificate=certify(program, weight, dual))


def _installed() -> bool:
    return importlib.util.find_spec("cvxpy") is not None and importlib.util.find_spec("clarabel") is not None
