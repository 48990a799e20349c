"""The entry point: check the arguments, choose the solver, solve."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from nettrim.errors import DataError, InputError, should
from nettrim.programs import Program
from nettrim.solvers.base import Solution, Solver, Start
from nettrim.solvers.hybrid import Carried, Hybrid


def solve(
    program: Program,
    tolerance: float = 1e-4,
    *,
    solver: Solver | None = None,
    initial: Tensor | None = None,
    warm: Solution | Start | None = None,
    memory_budget: int | None = None,
    device: torch.device | str | None = None,
) -> Solution:
    """Solve `program` to a relative optimality gap of `tolerance` and certify the answer.

    `initial` (out, in) is a feasible point such as the dense weights: the answer of last resort.
    `warm` is the solution of a program that differs little, such as another epsilon of a path (see `solve_path`), or
    its weights and multipliers: the default solver looks near its vertex first; other solvers ignore it.
    `memory_budget` bounds the bytes of working arrays beside the program itself. `device` moves the work there; the
    answer comes back to the program's device.
    Never raises for a hard program: `Solution.status` says how each neuron ended.

    Raises InputError for a tolerance outside (0, 1), DataError for an `initial` or `warm` of the wrong shape.
    """
    solver, moved, start = _ready(program, tolerance, solver, initial, memory_budget, device)
    home, there = program.inputs.device, moved.inputs.device
    if warm is not None and tuple(warm.weight.shape) != program.shape:
        raise DataError(should("warm", f"a solution of shape {program.shape}", f"shape {tuple(warm.weight.shape)}"))
    if warm is None or not isinstance(solver, Hybrid):
        return solver.solve(moved, tolerance, start).to(home)
    return solver.solve(moved, tolerance, start, Start(warm.weight.to(there), warm.dual.to(there))).to(home)


def solve_path(
    program: Program,
    epsilons: Iterable[Tensor | float],
    tolerance: float = 1e-4,
    *,
    solver: Solver | None = None,
    initial: Tensor | None = None,
    memory_budget: int | None = None,
    device: torch.device | str | None = None,
) -> list[Solution]:
    """Solutions of `program` with each of `epsilons` in place of its own, every one started from the one before.

    An epsilon is one number or one per budget group; neighbours should be close (a factor of 1.5 or less) for the warm
    start to pay, and may go up or down. The other arguments are those of `solve`. The inputs are prepared once, and
    each neuron's Gram matrix is handed on, as far as an eighth of the memory budget holds them.

    Raises what `solve` raises, and InputError for a regularised program, which has no epsilon.
    """
    if isinstance(program, Program) and program.epsilon is None:
        raise InputError("`program` is regularised and has no epsilon to vary; build it with an epsilon.")
    solver, moved, start = _ready(program, tolerance, solver, initial, memory_budget, device)
    own = moved.epsilon
    assert own is not None
    solutions: list[Solution] = []
    carried, warm = Carried(), None
    for epsilon in epsilons:
        values = torch.as_tensor(epsilon, dtype=torch.float64, device=own.device)
        changed = replace(moved, epsilon=values.expand_as(own).clone())
        if isinstance(solver, Hybrid):
            solution = solver.solve(changed, tolerance, start, warm, carried)
            warm = Start(solution.weight, solution.dual)
        else:
            solution = solver.solve(changed, tolerance, start)
        solutions.append(solution.to(program.inputs.device))
    return solutions


def _ready(
    program: Program,
    tolerance: float,
    solver: Solver | None,
    initial: Tensor | None,
    memory_budget: int | None,
    device: torch.device | str | None,
) -> tuple[Solver, Program, Tensor | None]:
    """The arguments checked: the solver, and the program and the initial weights on the device that is asked for."""
    if not 0 < tolerance < 1:
        raise InputError(should("tolerance", "between 0 and 1", repr(tolerance)))
    if not isinstance(program, Program):
        raise InputError(should("program", "a nettrim.Program", type(program).__name__, "Build one with Program.relu."))
    if initial is not None and (tuple(initial.shape) != program.shape or not bool(torch.isfinite(initial).all())):
        raise DataError(should("initial", f"finite and of shape {program.shape}", f"shape {tuple(initial.shape)}"))
    if solver is None:
        solver = Hybrid(memory_budget=memory_budget)
    moved = program if device is None else program.to(torch.device(device))
    return solver, moved, None if initial is None else initial.to(moved.inputs.device)
