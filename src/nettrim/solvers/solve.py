"""The entry point: check the arguments, choose the solver, solve."""

from __future__ import annotations

import torch
from torch import Tensor

from nettrim.errors import DataError, InputError, should
from nettrim.programs import Program
from nettrim.solvers.base import Solution, Solver
from nettrim.solvers.hybrid import Hybrid


def solve(
    program: Program,
    tolerance: float = 1e-4,
    *,
    solver: Solver | None = None,
    initial: Tensor | None = None,
    memory_budget: int | None = None,
    device: torch.device | str | None = None,
) -> Solution:
    """Solve `program` to a relative optimality gap of `tolerance` and certify the answer.

    `initial` (out, in) is a feasible point such as the dense weights: a warm start, and the answer of last resort.
    `memory_budget` bounds the bytes of working arrays beside the program itself. `device` moves the work there; the
    answer comes back to the program's device. Never raises for a hard program: `Solution.status` says how each neuron
    ended.

    Raises InputError for a tolerance outside (0, 1), DataError for an `initial` of the wrong shape.
    """
    if not 0 < tolerance < 1:
        raise InputError(should("tolerance", "between 0 and 1", repr(tolerance)))
    if not isinstance(program, Program):
        raise InputError(should("program", "a nettrim.Program", type(program).__name__, "Build one with Program.relu."))
    if initial is not None and (tuple(initial.shape) != program.shape or not bool(torch.isfinite(initial).all())):
        raise DataError(should("initial", f"finite and of shape {program.shape}", f"shape {tuple(initial.shape)}"))
    if solver is None:
        solver = Hybrid() if memory_budget is None else Hybrid(memory_budget=memory_budget)
    if device is None:
        return solver.solve(program, tolerance, initial)
    home = program.inputs.device
    moved = program.to(torch.device(device))
    return solver.solve(moved, tolerance, None if initial is None else initial.to(device)).to(home)
