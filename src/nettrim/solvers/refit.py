"""Refit: on a fixed support, without shrinkage, the least squared distance to the preimages.

    minimise  sum_p dist(x_p' u, box_p)^2 + ridge * |u - anchor|^2_D   over u with the given support

is convex and piecewise quadratic; Newton with the set of samples outside their box needs a handful of steps. The ridge
(relative to D, the diagonal of the Gram matrix) pulls towards the select stage's weights; its strength is chosen per
neuron on held-back samples, because an unregularised refit can overfit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nettrim.errors import DataError, InputError, should
from nettrim.programs import Program
from nettrim.solvers.design import make_design
from nettrim.solvers.problem import Problem, make_problem

_STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 0.0)  # from strong to weak: each fit starts at the one before
_VALIDATION = 0.2  # share of the samples on which the strength is chosen
_HARD_WEIGHT = 1e4  # of a hard sample against a soft one
_MULTIPLIER_STEPS = 12
_FEWEST = 50  # samples under which no part can be held back


def refit(
    program: Program,
    weight: Tensor,
    *,
    strength: float | None = None,
    seed: int = 0,
    memory_budget: int | None = None,
) -> Tensor:
    """Weights (out, in) with the support of `weight` and the least squared distance to the preimages.

    `strength` >= 0 is the ridge towards `weight` relative to the Gram matrix's diagonal; None chooses it for each
    neuron on a fifth of the samples. No row's distance is ever larger than that of `weight`. Under the strict
    constraint entries that must stay at distance zero count as heavily as needed to stay there, or the row is left as
    it was. `memory_budget` bounds the bytes of copies of the inputs.

    Raises InputError for a negative strength, DataError for a weight of the wrong shape.
    """
    if strength is not None and not 0 <= strength < float("inf"):
        raise InputError(should("strength", "a finite number >= 0, or None", repr(strength)))
    if tuple(weight.shape) != program.shape:
        raise DataError(should("weight", f"of shape {program.shape}", f"shape {tuple(weight.shape)}"))
    problem = make_problem(program, make_design(program.inputs, torch.float64, memory_budget))
    start = weight.detach().to(problem.lower) / problem.weight_scale
    ridge = torch.full((problem.rows,), strength or 0.0, dtype=torch.float64, device=start.device)
    if strength is None and program.samples >= _FEWEST:
        ridge = _choose_strength(problem, start, seed)
    fitted = torch.stack([_fit_row(problem, start[row], row, float(ridge[row])) for row in range(problem.rows)])
    result = (fitted * problem.weight_scale).to(weight)
    return _never_worse(problem, result.to(torch.float64) / problem.weight_scale, start, result, weight)


def fit_support(problem: Problem, start: Tensor, row: int, ridge: float = 0.0) -> Tensor:
    """The refit of one row on the support of `start`, hard samples met exactly where they can be.

    Hard samples weigh a large constant and have their bounds shifted by what is still missing, step after step (the
    method of multipliers), until none is outside.
    """
    if problem.soft is None:
        return _fit_row(problem, start, row, ridge)
    hard, lower, upper = ~problem.soft[row], problem.lower[row], problem.upper[row]
    point, shift = start, torch.zeros_like(lower)
    for _ in range(_MULTIPLIER_STEPS):
        point = _fit_row(problem, point, row, ridge, shift=shift, anchor=start)
        product = problem.design.forward(point[None])[0]
        missing = torch.where(hard, product - product.clamp(lower, upper), 0.0)
        if float(missing.abs().max()) <= 1e-11:
            break
        shift = shift + missing
    return point


class _Features:
    """The columns of one row's support: held where there is room, streamed otherwise."""

    def __init__(self, problem: Problem, support: Tensor) -> None:
        self.design, self.support = problem.design, support
        room = self.design.slice_rows * self.design.width
        fits = self.design.wide is not None or self.design.samples * len(support) <= room
        self.columns = self.design.columns(support) if fits else None

    def product(self, point: Tensor) -> Tensor:
        """X_S u, (samples,)."""
        if self.columns is not None:
            return point @ self.columns
        whole = point.new_zeros(1, self.design.width)
        whole[0, self.support] = point
        return self.design.forward(whole)[0]

    def pull(self, values: Tensor) -> Tensor:
        """X_S' r, (support,)."""
        if self.columns is not None:
            return self.columns @ values
        return self.design.back(values[None])[0, self.support]

    def gram(self, samples: Tensor, weights: Tensor) -> Tensor:
        """X_S' diag(weights) X_S over some samples (index)."""
        if self.columns is None:
            return self.design.gram(samples, self.support, weights=weights)
        part = self.columns[:, samples] * weights.sqrt()
        return part @ part.T


def _fit_row(
    problem: Problem,
    start: Tensor,
    row: int,
    ridge: float,
    *,
    shift: Tensor | None = None,
    anchor: Tensor | None = None,
    max_steps: int = 40,
) -> Tensor:
    """One row by Newton; `shift` tightens hard bounds, the ridge pulls towards `anchor` (the start unless given)."""
    support = (start if anchor is None else anchor).nonzero()[:, 0]
    if not len(support):
        return start.clone()
    features = _Features(problem, support)
    lower, upper = problem.lower[row], problem.upper[row]
    weights = torch.ones_like(lower)
    if problem.soft is not None:
        hard = ~problem.soft[row]
        weights = torch.where(hard, _HARD_WEIGHT, 1.0)
        inward = problem.hard_margin * (hard & (upper > lower))
        push = torch.zeros_like(lower) if shift is None else shift
        upper = upper - inward - push.clamp(min=0)
        lower = torch.minimum(lower + inward - push.clamp(max=0), upper)
    u = start[support]
    anchor = u if anchor is None else anchor[support]
    scale = ridge * problem.design.total.diagonal()[support]

    def gap_of(point: Tensor) -> Tensor:
        product = features.product(point)
        return product - product.clamp(lower, upper)

    def value(point: Tensor, gap: Tensor) -> Tensor:
        return (weights * gap**2).sum() + (scale * (point - anchor) ** 2).sum()

    gap = gap_of(u)
    present = value(u, gap)
    points = lower == upper
    for _ in range(max_steps):
        active = ((gap != 0) | points).nonzero()[:, 0]
        if not len(active):
            break
        gram = features.gram(active, weights[active])
        gram.diagonal().add_(scale + 1e-12 * (float(gram.diagonal().max()) + 1e-300))
        gradient = features.pull(weights * gap) + scale * (u - anchor)
        factor, info = torch.linalg.cholesky_ex(gram)
        if int(info):
            break
        step = torch.cholesky_solve(gradient[:, None], factor)[:, 0]
        length = 1.0
        trial, trial_gap, trial_value = u, gap, present
        while length > 1e-6:
            trial = u - length * step
            trial_gap = gap_of(trial)
            trial_value = value(trial, trial_gap)
            if trial_value <= present - 1e-4 * length * float(gradient @ step):
                break
            length /= 2
        if not bool(trial_value < present):
            break
        settled = bool(present - trial_value <= 1e-14 * present)
        u, gap, present = trial, trial_gap, trial_value
        if settled:
            break
    fitted = torch.zeros_like(start)
    fitted[support] = u
    return fitted


def _choose_strength(problem: Problem, start: Tensor, seed: int) -> Tensor:
    """Per row, the strength with the least distance on samples held back; weaker ones are not tried once it grows."""
    count = problem.design.samples
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).to(start.device)
    held, used = order[: int(_VALIDATION * count)].sort().values, order[int(_VALIDATION * count) :].sort().values
    held_part, used_part = problem.restrict(held), problem.restrict(used)
    chosen = torch.zeros(problem.rows, dtype=torch.float64, device=start.device)
    for row in range(problem.rows):
        u, least = start[row], torch.inf
        lower, upper = held_part.lower[row], held_part.upper[row]
        for strength in _STRENGTHS:
            u = _fit_row(used_part, u, row, strength, anchor=start[row])
            product = held_part.design.forward(u[None])[0]
            error = float(((product - product.clamp(lower, upper)) ** 2).sum())
            if error > least:
                break
            chosen[row], least = strength, error
    return chosen


def _never_worse(problem: Problem, fitted: Tensor, start: Tensor, result: Tensor, weight: Tensor) -> Tensor:
    """Keep the start where the cast result is not closer, or breaks a hard sample more than the start does."""
    soft_new, hard_new = problem.distance(problem.design.forward(fitted))
    soft_old, hard_old = problem.distance(problem.design.forward(start))
    closer = (soft_new**2).sum(dim=1) <= (soft_old**2).sum(dim=1)
    if problem.soft is not None:
        closer &= hard_new.abs().amax(dim=1) <= hard_old.abs().amax(dim=1).clamp(min=1e-12)
    return torch.where(closer[:, None], result, weight)
