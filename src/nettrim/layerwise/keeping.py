"""Solutions that stay feasible when they are cast to the layer's own type.

Programs that float32 would lose are posed in float64, and solved to its margins; the layer keeps float32 weights.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from nettrim.certificates.program import certify
from nettrim.layerwise.matrices import cast_weight
from nettrim.layerwise.means import Means
from nettrim.models.base import Layer
from nettrim.programs import Program
from nettrim.solvers import Solution, Start

_FEASIBLE = {torch.float64: 1e-9, torch.float32: 1e-6}  # relative excess that rounding a feasible weight may leave
_FURTHER = 2.0  # times the excess of the cast weights, by which a budget is shrunk first ...
_GROWTH = 4.0  # ... and by how much more each time: less than float32 can tell would give the very same weights
_ROUNDING = 1e-2  # a larger excess comes from no rounding
_TRIES = 4


def feasibility(layer: Layer) -> float:
    """The relative excess over a constraint that rounding a feasible weight to the layer's type may leave."""
    return _FEASIBLE.get(layer.weight.dtype, _FEASIBLE[torch.float32])


def solve_kept(
    means: Means, program: Program, layer: Layer, tolerance: float, initial: Tensor | None, warm: Start | None = None
) -> Solution:
    """Solve `program`; budgets that the cast weights break are solved again, from there, a little further inside."""
    solution = means.solve(program, tolerance, initial, warm)
    epsilon = program.epsilon
    if epsilon is None or program.inputs.dtype == layer.weight.dtype:
        return solution
    allowed = feasibility(layer)
    for number in range(_TRIES):
        excess = certify(program, cast_weight(layer, solution.weight)).group_violation.to(epsilon)
        broken = (excess > 0.5 * allowed) & (excess < _ROUNDING)
        if not bool(broken.any()):
            break
        epsilon = torch.where(broken, epsilon * (1 - _FURTHER * _GROWTH**number * (excess + allowed)), epsilon)
        rows = (broken.to(program.groups.device)[program.groups] | program.penalty.couples_rows).nonzero()[:, 0]
        start = Start(solution.weight[rows], solution.dual[:, rows])
        inside = replace(program, epsilon=epsilon).rows(rows)
        again = means.solve(inside, tolerance, None if initial is None else initial[rows], start)
        solution = _merged(program, solution, again, rows)
    return solution


def _merged(program: Program, solution: Solution, again: Solution, rows: Tensor) -> Solution:
    """`solution` with some rows (index) in place of which others were found, certified as an answer of `program`."""
    weight, dual, status = solution.weight.clone(), solution.dual.clone(), list(solution.status)
    weight[rows], dual[:, rows] = again.weight, again.dual
    for row, end in zip(rows.tolist(), again.status, strict=True):
        status[row] = end
    return replace(
        solution,
        weight=weight,
        dual=dual,
        status=tuple(status),
        certificate=certify(program, weight, dual),
        iterations=max(solution.iterations, again.iterations),
        seconds=solution.seconds + again.seconds,
    )
