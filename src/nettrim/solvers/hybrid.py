"""The default solver: batched ADMM finds the support, polish lands on the vertex, repair makes it feasible."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nettrim.certificates import certify
from nettrim.errors import InputError, should
from nettrim.programs import Program
from nettrim.programs.penalties import L1
from nettrim.solvers import admm
from nettrim.solvers.base import Solution, Status
from nettrim.solvers.plain import plain_candidate
from nettrim.solvers.polish import Guess, Polished, polish
from nettrim.solvers.presolve import presolve
from nettrim.solvers.problem import Problem, make_problem
from nettrim.solvers.repair import repair

_CHECKS = (30, 60, 100, 160, 240)  # ADMM iterations after which a polish is tried; later ones every half more


@dataclass(frozen=True)
class Hybrid:
    """Settings of the default solver; none needs to be touched.

    `max_iterations` bounds ADMM's iterations per block; `rows_per_block` the rows that are solved together (None: as
    many as `memory_budget` bytes of working arrays allow).
    """

    max_iterations: int = 3000
    rows_per_block: int | None = None
    memory_budget: int = 1 << 30

    def __post_init__(self) -> None:
        if self.max_iterations < 1:
            raise InputError(should("max_iterations", "at least 1", repr(self.max_iterations)))

    def solve(self, program: Program, tolerance: float, initial: Tensor | None = None) -> Solution:
        """Solve `program`; rows with budgets of their own are solved in blocks, the others together."""
        began = time.perf_counter()
        inputs = program.inputs
        weight = inputs.new_zeros(program.shape, dtype=torch.float64)
        dual = inputs.new_zeros(program.upper.shape, dtype=torch.float64)
        proved = torch.zeros(program.shape[0], dtype=torch.bool)
        reduced = presolve(program)
        iterations, gemms = 0, 0.0
        if reduced.program is not None:
            inner = reduced.program
            guess = None if initial is None else initial[reduced.rows][:, reduced.columns]
            for block in self._blocks(inner):
                part = inner.rows(block)
                outcome = _solve_block(part, tolerance, None if guess is None else guess[block], self.max_iterations)
                rows = reduced.rows[block]
                weight[rows[:, None], reduced.columns] = outcome.weight
                dual[:, rows] = outcome.dual
                proved[rows.cpu()] = outcome.infeasible[part.groups.cpu()]
                iterations = max(iterations, outcome.iterations)
                gemms += outcome.gemms * len(block) / program.shape[0]
        solution = finish(program, weight, dual, initial, tolerance, proved, reduced.rows)
        return replace(solution, iterations=iterations, gemms=gemms, seconds=time.perf_counter() - began)

    def _blocks(self, program: Program) -> list[Tensor]:
        """Row indices of blocks that can be solved apart: whole budget groups, as many as fit."""
        rows = program.shape[0]
        if program.penalty.couples_rows:
            return [torch.arange(rows)]
        limit = self.rows_per_block or max(1, self.memory_budget // (64 * (program.samples + 3 * program.shape[1])))
        blocks: list[list[int]] = [[]]
        by_group: dict[int, list[int]] = {}
        for row, group in enumerate(program.groups.tolist()):
            by_group.setdefault(row if program.regularization is not None else group, []).append(row)
        for members in by_group.values():
            if blocks[-1] and len(blocks[-1]) + len(members) > limit:
                blocks.append([])
            blocks[-1].extend(members)
        return [torch.tensor(block) for block in blocks]


@dataclass(frozen=True)
class _Outcome:
    weight: Tensor  # (rows, in), in the program's units, float64
    dual: Tensor  # (samples, rows)
    infeasible: Tensor  # (groups,) bool: proved
    iterations: int
    gemms: float


def _solve_block(program: Program, tolerance: float, initial: Tensor | None, max_iterations: int) -> _Outcome:
    precision = program.inputs.dtype if isinstance(program.penalty, L1) else torch.float64
    problem = make_problem(program, precision)
    start = None if initial is None else initial.to(problem.inputs_t) / problem.weight_scale
    best_u = problem.inputs_t.new_zeros(program.shape)
    best_dual = torch.zeros_like(problem.lower)
    best_gap = problem.inputs_t.new_full((problem.group_count,), torch.inf)
    remaining = torch.arange(problem.rows)
    open_groups = torch.arange(problem.group_count)
    state = admm.start(problem, admm.make_factor(problem), start)
    check, gemms = 0, 0.0
    while True:
        target = min(_next_check(check), max_iterations)
        while state.iteration < target:
            state.step()
        gemms += 2 * (target - (_next_check(check - 1) if check else 0)) * len(remaining) / problem.rows
        candidate = _candidate(state, tolerance, target == max_iterations)
        gemms += 4 * candidate.steps * len(remaining) / problem.rows
        better = candidate.gap < best_gap[open_groups]
        for group in better.nonzero()[:, 0].tolist():
            local = (state.problem.groups == group).nonzero()[:, 0]
            rows = remaining[local.cpu()]
            best_u[rows], best_dual[rows] = candidate.weight[local], candidate.dual[local]
            best_gap[open_groups[group]] = candidate.gap[group]
        unfinished = best_gap[open_groups] > tolerance * 0.5
        if not bool(unfinished.any()) or state.iteration >= max_iterations:
            break
        keep = unfinished[state.problem.groups].nonzero()[:, 0]
        if len(keep) < state.problem.rows:
            state.select(keep)
            remaining = remaining[keep.cpu()]
            open_groups = open_groups[unfinished.cpu()]
        check += 1
    infeasible = torch.zeros(problem.group_count, dtype=torch.bool)
    if bool((best_gap == torch.inf).any()):
        best_u, best_dual, infeasible = repair(problem, best_u, best_dual, best_gap, state, remaining, start)
    return _Outcome(best_u * problem.weight_scale, best_dual.T * problem.dual_scale, infeasible, state.iteration, gemms)


def _next_check(number: int) -> int:
    if number < len(_CHECKS):
        return _CHECKS[number]
    return int(_CHECKS[-1] * 1.6 ** (number - len(_CHECKS) + 1))


def _candidate(state: admm.Admm, tolerance: float, last: bool) -> Polished:
    """Polish the present iterate where the penalty is l1; otherwise judge it as it is."""
    problem = state.problem
    u, dual = state.w.to(torch.float64), state.multipliers().to(torch.float64)
    if not isinstance(problem.penalty, L1):
        return plain_candidate(problem, u, dual, tolerance, last)
    shrink = state.shrink[:, 0].to(torch.float64)
    mu = state.rho[:, 0].to(torch.float64) * (1 - shrink) / shrink.clamp(min=1e-9)
    largest = torch.zeros(problem.group_count, dtype=torch.float64).scatter_reduce(0, problem.groups, mu, "amax")
    tau = 1 / largest.clamp(min=1e-12)
    binding = None if problem.soft is None else _binding(problem, dual, u)
    return polish(problem, Guess(u, dual, binding, tau), tolerance)


def _binding(problem: Problem, dual: Tensor, u: Tensor) -> Tensor:
    """Hard samples that bind: where ADMM's multiplier is not small, and never more than the support can meet."""
    assert problem.soft is not None
    pressure = torch.where(problem.soft, 0.0, dual.abs())
    limit = pressure.sort(dim=1, descending=True).values
    support = (u != 0).sum(dim=1, keepdim=True).clamp(max=limit.shape[1] - 1)
    bar = torch.maximum(limit.gather(1, support), 1e-2 * limit[:, :1])
    return pressure > bar


def finish(
    program: Program, weight: Tensor, dual: Tensor, initial: Tensor | None, tolerance: float, proved: Tensor, touched: Tensor
) -> Solution:
    """Cast, certify exactly what is returned, and say how each row ended."""
    cast_weight, cast_dual = weight.to(program.inputs), dual.to(program.inputs)
    certificate = certify(program, cast_weight, cast_dual)
    used_initial = torch.zeros(program.shape[0], dtype=torch.bool)
    if initial is not None and certificate.violation > _FEASIBLE:
        bad = (certificate.group_violation > _FEASIBLE)[program.groups.to(certificate.group_violation.device)] & ~proved
        trial = torch.where(bad[:, None], initial.to(cast_weight), cast_weight)
        retry = certify(program, trial, cast_dual)
        if retry.violation < certificate.violation:
            cast_weight, certificate, used_initial = trial, retry, bad
    kept = set(touched.tolist())
    gap, violation = certificate.group_gap.tolist(), certificate.group_violation.tolist()
    if program.penalty.couples_rows:
        gap = [certificate.gap] * len(gap)
    status = []
    for row, group in enumerate(program.groups.tolist()):
        if row not in kept:
            status.append(Status.ZERO)
        elif bool(proved[row]):
            status.append(Status.INFEASIBLE)
        elif violation[group] > _FEASIBLE:
            status.append(Status.VIOLATED)
        elif gap[group] <= tolerance:
            status.append(Status.CERTIFIED)
        else:
            status.append(Status.DENSE if bool(used_initial[row]) else Status.GAP)
    return Solution(cast_weight, cast_dual, tuple(status), certificate)


_FEASIBLE = 1e-9
