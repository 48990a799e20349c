"""Groups through the interior-point method, as many at a time as fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nettrim.solvers.interior.best import Best
from nettrim.solvers.interior.path import Path
from nettrim.solvers.polish import Guess, Polished
from nettrim.solvers.problem import Problem

_STARTS = (300.0, 3.0)  # how far the first multipliers may outweigh the costs; the second where the first fails
_ELEMENTS = 1 << 18  # rows times samples that are worked on together


@dataclass(frozen=True)
class Central:
    """The end of a central path: weights and multipliers, and the vertex they point at, for the polish to land on."""

    found: Polished
    guess: Guess


def solve_interior(problem: Problem, tolerance: float) -> Central:
    """Solve every budget group of an l1 `problem`, to a gap well below `tolerance` where numbers allow it.

    Weights that vanish on the central path are zero. Groups whose point is not feasible come back with an objective of
    infinity.
    """
    whole = Best(problem)
    steps = 0
    for groups, rows in _chunks(problem):
        part = problem.select(rows)
        best, count = Path(part, tolerance, _STARTS[0]).follow()
        for start in _STARTS[1:]:
            missed = best.gap > tolerance
            if not bool(missed.any()):
                break
            local = missed[part.groups].nonzero()[:, 0]
            again, more = Path(part.select(local), tolerance, start).follow()
            best.take(again, missed.nonzero()[:, 0], local)
            count += more
        whole.take(best, groups, rows)
        steps = max(steps, count)
    found = Polished(whole.weight, whole.objective, whole.dual, whole.bound, steps)
    binding = None if problem.soft is None else whole.binding
    return Central(found, Guess(whole.vertex, whole.dual, binding, whole.tau))


def _chunks(problem: Problem) -> Iterator[tuple[Tensor, Tensor]]:
    """Groups, and their rows in order, that are worked on together."""
    order = torch.argsort(problem.groups, stable=True)
    sizes = torch.bincount(problem.groups, minlength=problem.group_count).tolist()
    limit = max(1, _ELEMENTS // problem.inputs.shape[0])
    first, start = 0, 0
    while first < len(sizes):
        last, stop = first + 1, start + sizes[first]
        while last < len(sizes) and stop + sizes[last] - start <= limit:
            stop += sizes[last]
            last += 1
        yield torch.arange(first, last, device=order.device), order[start:stop].sort().values
        first, start = last, stop
