"""Groups through the interior-point method, as many at a time as fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nettrim.solvers.guess import Guess
from nettrim.solvers.interior.best import Best
from nettrim.solvers.interior.path import Path
from nettrim.solvers.judge import AIM, Polished
from nettrim.solvers.polish import polish
from nettrim.solvers.problem import Problem

_STARTS = (300.0, 3.0)  # how far the first multipliers may outweigh the costs; the second where the first fails
# Samples are counted as multiples of the inputs, those with a target aside, which cost their matrix once only; where
# the rank is low, of so many times the rank.
_RANKS = 2
_STAGES = ((0.1, 1), (1e-2, 2), (1e-3, 2))  # mu, as a share of its start, and the samples of the path as far as there
_SCREENS = (2, 3, 4.5, 7, 10, 15)  # samples of the rest of the path, more each time that its answer breaks others
_AGAIN = 1  # the stage from which the second and later times begin
_FIRST = 5e-2  # gap that is small enough the first time where no bound is hard: a polish may land from there
_LANDING_STEPS = 10  # of the polish from there
_ELEMENTS = 1 << 13  # rows times samples worked on together: few, as one row's screen leaves out more than many rows'


@dataclass(frozen=True)
class Central:
    """The end of a central path: weights and multipliers, and the vertex they point at, for the polish to land on."""

    found: Polished
    guess: Guess
    gemms: float  # work in units of one product of the inputs with all weights


@dataclass(frozen=True)
class _Stage:
    """Where the path of some samples (index) is."""

    path: Path
    samples: Tensor

    def on(self, problem: Problem, samples: Tensor, tolerance: float) -> Path:
        """The path from here of `problem`, whose samples these are, and others besides."""
        return self.path.extended(problem, torch.searchsorted(samples, self.samples), tolerance)


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


def _followed(problem: Problem, tolerance: float, path: Path | None = None) -> tuple[Best, int]:
    """`path` to its end, else one from the fast start; and for groups that it failed those from the starts left."""
    starts = list(_STARTS)
    if path is None:
        path = Path(problem, tolerance, starts.pop(0))
    best, count = path.follow()
    for start in starts:
        missed = ~best.done(tolerance)
        if not bool(missed.any()):
            break
        local = missed[problem.groups].nonzero()[:, 0]
        again, more = Path(problem.select(local), tolerance, start).follow()
        best.take(again, missed.nonzero()[:, 0], local)
        count += more
    return best, count


def _screened(problem: Problem, tolerance: float, near: Tensor | None) -> tuple[Best, int]:
    """The path on the samples that can matter: all with a target, and of the one-sided ones those near their bound.

    Nearly dead neurons have a target at few samples, and thousands of bounds that are never met. The path begins with
    few samples and takes in, stage by stage, those whose bound its iterate comes near; at its end what the answer still
    breaks, from the iterate of an early stage on, until nothing is broken: multipliers of zero elsewhere make it the
    answer of the whole problem.
    """
    chosen = (problem.lower == problem.upper).any(dim=0)
    product = torch.zeros_like(problem.lower) if near is None else problem.design.forward(near)
    stages: list[_Stage] = []
    steps = work = 0
    for goal, share in _STAGES:
        wider = _chosen(problem, chosen, product, share)
        if wider is None:
            return _whole(problem, tolerance, stages[-1] if stages else None, steps, work)
        chosen, samples = wider, wider.nonzero()[:, 0]
        part = problem.restrict(samples)
        path = stages[-1].on(part, samples, tolerance) if stages else Path(part, tolerance, _STARTS[0])
        steps += path.approach(goal)
        work += path.work + problem.lower.numel()
        stages.append(_Stage(path, samples))
        product = problem.design.forward(path.weight * path.size[path.groups][:, None])
    begin, best = stages[-1], None
    for number, share in enumerate(_SCREENS):
        wider = _chosen(problem, chosen, product, share)
        if wider is None:
            break
        landing = number == 0 and problem.soft is None
        aim = max(tolerance, _FIRST) if landing else tolerance
        chosen, samples = wider, wider.nonzero()[:, 0]
        part = problem.restrict(samples)
        found, count = _followed(part, aim, begin.on(part, samples, aim))
        steps += count
        work += found.work + 2 * problem.lower.numel()
        best = Best(problem)
        best.spread(found, samples)
        if bool(best.done(tolerance).all()) or (landing and _land(best, tolerance)):
            best.work = work
            return best, steps
        if not bool(found.done(aim).all()):
            break
        begin, product = stages[_AGAIN], problem.design.forward(found.weight)
    whole, steps = _whole(problem, tolerance, begin, steps, work)
    if best is None:
        return whole, steps
    device = problem.groups.device
    best.take(whole, *(torch.arange(count, device=device) for count in (problem.group_count, problem.rows)))
    return best, steps


def _whole(problem: Problem, tolerance: float, begin: _Stage | None, steps: int, work: int) -> tuple[Best, int]:
    """The path on all samples, from `begin` on; steps and work so far are added."""
    every = torch.arange(problem.design.samples, device=problem.groups.device)
    best, count = _followed(problem, tolerance, None if begin is None else begin.on(problem, every, tolerance))
    best.work += work
    return best, steps + count


def _chosen(problem: Problem, before: Tensor, product: Tensor, share: float) -> Tensor | None:
    """The samples in the mask `before`, those whose bound X u = `product` breaks, and those next to their bound until
    they are `share` times the inputs, or what of these matters, targets not counted; None where that leaves out less
    than half."""
    one_sided = (problem.lower != problem.upper).all(dim=0)
    slack = torch.minimum(problem.upper - product, product - problem.lower).amin(dim=0)
    chosen = before | (slack < 0)
    matter = min(problem.design.width, _RANKS * problem.design.rank)
    extra = int(share * matter) - int((chosen & one_sided).sum())
    if extra > 0:
        order = torch.where(chosen, torch.inf, slack).argsort()[:extra]
        chosen = chosen.index_fill(0, order, True)
    return chosen if 2 * int((chosen & one_sided).sum()) <= int(one_sided.sum()) else None


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
