"""The end of a solve: cast, certify exactly what is returned, and say how each row ended."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum, auto

import torch
from torch import Tensor

from nettrim.certificates import certify
from nettrim.certificates.program import response_lengths
from nettrim.programs import Program, group_sums
from nettrim.solvers.base import ABSURD, Solution, Status
from nettrim.solvers.problem import ROUNDING

_FEASIBLE = 1e-9
_OTHERS = 8.0  # times a group's own responses, up to which others' rounding counts for its own
_SLICE = 4096  # samples that are looked at together


class Ending(Enum):
    """Where a row's answer came from, as far as the solver knows."""

    ZERO = auto()
    SOLVED = auto()
    INITIAL = auto()
    LINEAR_PROGRAM = auto()
    INFEASIBLE = auto()


def finish(
    program: Program,
    weight: Tensor,
    dual: Tensor,
    initial: Tensor | None,
    tolerance: float,
    ending: Sequence[Ending],
) -> Solution:
    """The Solution of float64 answers: rows whose cast is not feasible fall back on `initial`, whole groups at a
    time."""
    cast_weight, cast_dual = weight.to(program.inputs), _within_range(program, dual).to(program.inputs)
    certificate = certify(program, cast_weight, cast_dual)
    allowed = _allowed_violation(program, cast_weight)
    fallback = torch.zeros(program.shape[0], dtype=torch.bool)
    over = certificate.group_violation.cpu() > _FEASIBLE
    if initial is not None and bool(over.any()):
        refused = torch.tensor([end is Ending.INFEASIBLE for end in ending])
        given = certify(program, initial.to(cast_weight), cast_dual)
        # where only rounding breaks the constraint, the given weights have to be as good, too
        as_good = given.group_objective <= certificate.group_objective * (1 + tolerance)
        over &= (certificate.group_violation.cpu() > allowed) | as_good.cpu()
        over &= (given.group_violation < certificate.group_violation).cpu()
        # weights at hand that are feasible refute the claim that there are none
        refused &= (given.group_violation.cpu() > allowed)[program.groups.cpu()]
        fallback = over[program.groups] & ~refused
        if bool(fallback.any()):
            cast_weight = torch.where(fallback.to(cast_weight.device)[:, None], initial.to(cast_weight), cast_weight)
            certificate = certify(program, cast_weight, cast_dual)
    status = []
    for row, group in enumerate(program.groups.tolist()):
        gap = certificate.gap if program.penalty.couples_rows else float(certificate.group_gap[group])
        feasible = float(certificate.group_violation[group]) <= float(allowed[group]) and math.isfinite(gap)
        end = Ending.SOLVED if feasible and ending[row] is Ending.INFEASIBLE else ending[row]
        if not feasible and gap < -ABSURD:
            end = Ending.INFEASIBLE
        status.append(_status(end, feasible, gap <= tolerance, bool(fallback[row])))
    return Solution(cast_weight, cast_dual, tuple(status), certificate)


def _within_range(program: Program, dual: Tensor) -> Tensor:
    """Multipliers that the program's dtype can hold: a group's may be scaled together, a bound only asks for their
    direction."""
    limit = torch.finfo(program.inputs.dtype).max ** 0.5
    largest = dual.new_zeros(program.group_count).scatter_reduce(
        0, program.groups.to(dual.device), dual.abs().amax(dim=0), "amax"
    )
    if program.penalty.couples_rows:
        largest = largest.amax().expand_as(largest)
    shrink = torch.where(largest > limit, limit / largest.clamp(min=1.0), 1.0)
    return dual * shrink[program.groups.to(dual.device)]


def _status(ending: Ending, feasible: bool, optimal: bool, fallback: bool) -> Status:
    if ending is Ending.INFEASIBLE:
        return Status.INFEASIBLE
    if not feasible:
        return Status.VIOLATED
    if ending is Ending.ZERO:
        return Status.ZERO
    if optimal:
        return Status.LINEAR_PROGRAM if ending is Ending.LINEAR_PROGRAM else Status.CERTIFIED
    return Status.DENSE if fallback or ending is Ending.INITIAL else Status.GAP


def _allowed_violation(program: Program, weight: Tensor) -> Tensor:
    """Relative violation per group under which a weight counts as feasible.

    Exact constraints on float32 numbers can be met only to rounding: of the responses, by `ROUNDING` each, and of the
    weights, by half a unit in the last place each.
    """
    allowed = torch.full((program.group_count,), _FEASIBLE, dtype=torch.float64)
    exact = torch.zeros_like(allowed, dtype=torch.bool) if program.epsilon is None else program.epsilon.cpu() == 0
    if program.inputs.dtype != torch.float32 or not bool(exact.any()):
        return allowed
    squares = torch.zeros(program.shape[0], dtype=torch.float64, device=weight.device)
    rows = (exact[program.groups.cpu()].to(weight.device) & (weight != 0).any(dim=1)).nonzero()[:, 0]
    sizes = weight[rows].abs().to(torch.float64).T
    for part in program.inputs.split(_SLICE) if len(rows) else ():
        squares[rows] += ((part.abs().to(torch.float64) @ sizes) ** 2).sum(dim=0)
    groups = program.groups.to(squares.device)
    cast = 2.0**-24 * group_sums(squares, groups, program.group_count).sqrt().cpu()
    entries = program.samples * torch.bincount(program.groups.cpu(), minlength=program.group_count)
    response = response_lengths(program).cpu()
    rounded = torch.minimum(response.amax(), _OTHERS * response)  # sums of products are rounded as the largest are
    moved = ROUNDING * 2 * rounded * entries.sqrt() + cast
    return torch.where(exact, moved / response, allowed)
