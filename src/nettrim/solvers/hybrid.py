"""The default solver: batched ADMM finds the support, polish lands on the vertex, repair makes it feasible."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nettrim.errors import InputError, should
from nettrim.programs import Program
from nettrim.programs.penalties import L1
from nettrim.solvers.base import Solution, Start
from nettrim.solvers.block import solve_block
from nettrim.solvers.curvature import Curvatures
from nettrim.solvers.design import Design, make_design
from nettrim.solvers.finish import Ending, finish
from nettrim.solvers.guess import Guess, guess_from
from nettrim.solvers.precision import full_precision
from nettrim.solvers.presolve import Reduced, presolve
from nettrim.solvers.problem import Problem, make_problem
from nettrim.solvers.rescue import can_rescue, rescue

_ARRAYS = 24  # (rows, samples) working arrays of four bytes that a block holds at its peak, float64 ones counted twice
_CURVATURE_SHARE = 8  # of the budget, for the rows' Gram matrices that are kept
_MEMORY = 1 << 30  # bytes of the budget where none is named, but ...
_CUDA_SHARE = 2  # ... on a CUDA device that share of what is free there, if that is more
_PATIENCE = 720  # ADMM iterations after which a small degenerate program is better left to a general solver


@dataclass
class Carried:
    """What programs that differ in their epsilon alone share; each leaves here what the next can use."""

    reduced: Reduced | None = None
    design: Design | None = None
    curvatures: Curvatures | None = None  # by row of the program


@dataclass(frozen=True)
class Hybrid:
    """Settings of the default solver; none needs to be touched.

    `max_iterations` bounds ADMM's iterations per block; `memory_budget` the bytes of working arrays (None: 1 GiB, on a
    CUDA device half of what is free there if that is more); `rows_per_block` the rows that are solved together (None:
    as many as the budget allows). `rescue` hands small budget groups that are still uncertified, which are degenerate
    ones, to a general solver where one is installed.
    """

    max_iterations: int = 3000
    rows_per_block: int | None = None
    memory_budget: int | None = None
    rescue: bool = True

    def __post_init__(self) -> None:
        if self.max_iterations < 1:
            raise InputError(should("max_iterations", "at least 1", repr(self.max_iterations)))
        for name in ("rows_per_block", "memory_budget"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(should(name, "at least 1, or None", repr(value)))

    def memory(self, device: torch.device) -> int:
        """The budget in bytes for a program on this device."""
        if self.memory_budget is not None:
            return self.memory_budget
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
        return max(_MEMORY, free // _CUDA_SHARE)

    @full_precision()
    def solve(
        self,
        program: Program,
        tolerance: float,
        initial: Tensor | None = None,
        warm: Start | None = None,
        carried: Carried | None = None,
    ) -> Solution:
        """Solve `program`; rows with budgets of their own are solved in blocks, the others together.

        `carried` is what the programs of a path share, the very inputs among it.
        """
        began = time.perf_counter()
        weight = program.inputs.new_zeros(program.shape, dtype=torch.float64)
        dual = program.inputs.new_zeros(program.upper.shape, dtype=torch.float64)
        ending = [Ending.ZERO] * program.shape[0]
        along = carried or Carried()
        memory = self.memory(program.inputs.device)
        reduced = presolve(program, memory, along.reduced)
        iterations, gemms = 0, 0.0
        if reduced.program is not None:
            inner = reduced.program
            dense = None if initial is None else initial[reduced.rows][:, reduced.columns]
            design, curvatures = self._prepare(reduced, inner, memory, along)
            for block in self._blocks(inner, design.room):
                problem = make_problem(inner if len(block) == inner.shape[0] else inner.rows(block), design)
                rows = reduced.rows[block]
                start = None if dense is None else dense[block].to(problem.lower) / problem.weight_scale
                patience = (
                    min(self.max_iterations, _PATIENCE) if self.rescue and can_rescue(problem) else self.max_iterations
                )
                known = curvatures.of(rows)
                guess = None if warm is None else _guess(problem, warm, rows, reduced.columns, known)
                outcome = solve_block(problem, tolerance, start, patience, known, guess)
                if carried is None:  # no other program asks for them
                    curvatures = Curvatures(curvatures.memory)
                weight[rows[:, None], reduced.columns] = outcome.weight * problem.weight_scale
                dual[:, rows] = outcome.dual.T * problem.dual_scale
                for row, group in zip(rows.tolist(), problem.groups.tolist(), strict=True):
                    ending[row] = outcome.ending[group]
                iterations = max(iterations, outcome.iterations)
                gemms += outcome.gemms * len(block) / program.shape[0]
        solution = finish(program, weight, dual, initial, tolerance, ending)
        if self.rescue:
            solution = rescue(program, solution, tolerance)
        return replace(solution, iterations=iterations, gemms=gemms, seconds=time.perf_counter() - began)

    def _prepare(
        self, reduced: Reduced, program: Program, memory: int, carried: Carried
    ) -> tuple[Design, Curvatures]:
        """What the blocks of a reduced program share, taken from `carried` or left there."""
        exact = program.epsilon is not None and bool((program.epsilon == 0).any())
        precision = program.inputs.dtype if isinstance(program.penalty, L1) and not exact else torch.float64
        design, curvatures = carried.design, carried.curvatures
        if design is None or curvatures is None or design.precision != precision:
            design = make_design(program.inputs, precision, memory)
            curvatures = Curvatures(design.room // _CURVATURE_SHARE)
        carried.reduced, carried.design, carried.curvatures = reduced, design, curvatures
        return design, curvatures

    def _blocks(self, program: Program, room: int) -> Iterator[Tensor]:
        """Row indices of blocks that can be solved apart: whole budget groups, as many as fit into `room` bytes."""
        rows = program.shape[0]
        if program.penalty.couples_rows:
            yield torch.arange(rows)
            return
        arrays = room // 2  # the other half is for matrices
        limit = self.rows_per_block or max(1, arrays // (4 * _ARRAYS * (program.samples + program.shape[1])))
        by_group: dict[int, list[int]] = {}
        for row, group in enumerate(program.groups.tolist()):
            by_group.setdefault(row if program.regularization is not None else group, []).append(row)
        block: list[int] = []
        for members in by_group.values():
            if block and len(block) + len(members) > limit:
                yield torch.tensor(block)
                block = []
            block.extend(members)
        yield torch.arange(rows) if len(block) == rows else torch.tensor(block)  # all of them in their own order


def _guess(problem: Problem, warm: Start, rows: Tensor, columns: Tensor, known: Curvatures) -> Guess:
    """Another program's solution, seen as a guess for this one."""
    weight = warm.weight[rows][:, columns].to(problem.lower) / problem.weight_scale
    dual = warm.dual[:, rows].T.to(problem.lower) / problem.dual_scale
    return guess_from(problem, weight, dual, known)
