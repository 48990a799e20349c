"""Groups through the interior-point method, as many at a time as fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nettrim.solvers.interior.best import Best
from nettrim.solvers.interior.path import Path
from nettrim.solvers.polish import AIM, Guess, Polished, polish
from nettrim.solvers.problem import Problem

_STARTS = (300.0, 3.0)  # how far the first multipliers may outweigh the costs; the second where the first fails
_SCREENS = 6  # sets of samples that are tried before all are taken
_FIRST = 5e-2  # gap that is small enough on the first of them, which is hardly ever the last
_LANDING_STEPS = 10  # of the polish from there
_ELEMENTS = 1 << 13  # rows times samples worked on together: few, as one row's screen leaves out more than many rows'


@dataclass(frozen=True)
class Central:
    """The end of a central path: weights and multipliers, and the vertex they point at, for the polish to land on."""

    found: Polished
    guess: Guess
    gemms: float  # work in units of one product of the inputs with all weights


def solve_interior(problem: Problem, tolerance: float, near: Tensor | None = None) -> Central:
    """Solve every budget group of an l1 `problem`, to a gap well below `tolerance` where numbers allow it.

    `near` (rows, in) are weights somewhere near the answer: they tell which one-sided samples are worth looking at.
    Weights that vanish on the central path are zero. Groups whose point is not feasible come back with an objective of
    infinity.
    """
    whole = Best(problem)
    steps = 0
    for groups, rows in _chunks(problem):
        part = problem.select(rows)
        best, count = _screened(part, tolerance, None if near is None else near[rows])
        whole.take(best, groups, rows)
        steps = max(steps, count)
    found = Polished(whole.weight, whole.objective, whole.dual, whole.bound, steps)
    binding = None if problem.soft is None else whole.binding
    gemms = whole.work / (problem.rows * problem.design.samples)
    return Central(found, Guess(whole.vertex, whole.dual, binding, whole.tau), gemms)


def _followed(problem: Problem, tolerance: float) -> tuple[Best, int]:
    """The path from the fast start, and for groups that it failed from the safe one."""
    best, count = Path(problem, tolerance, _STARTS[0]).follow()
    for start in _STARTS[1:]:
        missed = best.gap > tolerance
        if not bool(missed.any()):
            break
        local = missed[problem.groups].nonzero()[:, 0]
        again, more = Path(problem.select(local), tolerance, start).follow()
        best.take(again, missed.nonzero()[:, 0], local)
        count += more
    return best, count


def _screened(problem: Problem, tolerance: float, near: Tensor | None) -> tuple[Best, int]:
    """The path on the samples that can matter: all with a target, and of the one-sided ones those near their bound.

    Nearly dead neurons have a target at few samples, and thousands of bounds that are never met. What the answer breaks
    is added until nothing is broken; then multipliers of zero elsewhere make it the answer of the whole problem.
    """
    targets = (problem.lower == problem.upper).any(dim=0)
    bounds = len(targets) - int(targets.sum())
    wanted = 2 * problem.design.width  # samples besides those with a target, which cost their matrix once only
    steps = work = 0
    product = torch.zeros_like(problem.lower) if near is None else problem.design.forward(near)
    chosen = targets
    for number in range(_SCREENS):
        aim = max(tolerance, _FIRST) if number == 0 else tolerance
        slack = torch.minimum(problem.upper - product, product - problem.lower).amin(dim=0)
        chosen = chosen | (slack < 0)
        extra = wanted - int((chosen & ~targets).sum())
        if extra > 0:
            order = torch.where(chosen, torch.inf, slack).argsort()[:extra]
            chosen = chosen.index_fill(0, order, True)
        if 2 * int((chosen & ~targets).sum()) > bounds:
            break
        samples = chosen.nonzero()[:, 0]
        part, count = _followed(problem.restrict(samples), aim)
        steps += count
        work += part.work + 2 * problem.rows * len(targets)
        if not bool((part.gap <= aim).all()):
            break
        best = Best(problem)
        best.spread(part, samples)
        landing = number == 0 and problem.soft is None
        if bool((best.gap <= tolerance).all()) or (landing and _land(best, tolerance)):
            best.work = work
            return best, steps
        product = problem.design.forward(part.weight)
        wanted = int(wanted * 1.5)
    best, count = _followed(problem, tolerance)
    best.work += work
    return best, steps + count


def _land(best: Best, tolerance: float) -> bool:
    """Polish the vertex that a first set of samples shows, on all of them, where others count too; whether all groups
    are done, which is written into `best`."""
    guess = Guess(best.vertex, best.dual, None, best.tau)
    landed = polish(best.problem, guess, tolerance, max_steps=_LANDING_STEPS)
    if not bool((landed.gap <= AIM * tolerance).all()):
        return False
    best.weight, best.objective, best.dual, best.bound = landed.weight, landed.objective, landed.dual, landed.bound
    best.vertex = landed.weight
    return True


def _chunks(problem: Problem) -> Iterator[tuple[Tensor, Tensor]]:
    """Groups, and their rows in order, that are worked on together."""
    order = torch.argsort(problem.groups, stable=True)
    sizes = torch.bincount(problem.groups, minlength=problem.group_count).tolist()
    limit = max(1, _ELEMENTS // problem.design.samples)
    first, start = 0, 0
    while first < len(sizes):
        last, stop = first + 1, start + sizes[first]
        while last < len(sizes) and stop + sizes[last] - start <= limit:
            stop += sizes[last]
            last += 1
        yield torch.arange(first, last, device=order.device), order[start:stop].sort().values
        first, start = last, stop
