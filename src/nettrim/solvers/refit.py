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
from nettrim.solvers.problem import Problem, make_design, make_problem

_STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 0.0)  # from strong to weak: each fit starts at the one before
_VALIDATION = 0.2  # share of the samples on which the strength is chosen
_HARD_WEIGHT = 1e4  # of a hard sample against a soft one
_MULTIPLIER_STEPS = 12
_FEWEST = 50  # samples under which no part can be held back


def refit(program: Program, weight: Tensor, *, strength: float | None = None, seed: int = 0) -> Tensor:
    """Weights (out, in) with the support of `weight` and the least squared distance to the preimages.

    `strength` >= 0 is the ridge towards `weight` relative to the Gram matrix's diagonal; None chooses it for each
    neuron on a fifth of the samples. No row's distance is ever larger than that of `weight`. Under the strict
    constraint entries that must stay at distance zero count as heavily as needed to stay there, or the row is left as
    it was.

    Raises InputError for a negative strength, DataError for a weight of the wrong shape.
    """
    if strength is not None and not 0 <= strength < float("inf"):
        raise InputError(should("strength", "a finite number >= 0, or None", repr(strength)))
    if tuple(weight.shape) != program.shape:
        raise DataError(should("weight", f"of shape {program.shape}", f"shape {tuple(weight.shape)}"))
    problem = make_problem(program, make_design(program.inputs, torch.float64))
    start = weight.detach().to(problem.inputs_t) / problem.weight_scale
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
        product = point @ problem.inputs_t
        missing = torch.where(hard, product - product.clamp(lower, upper), 0.0)
        if float(missing.abs().max()) <= 1e-11:
            break
        shift = shift + missing
    return point


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
    features = problem.inputs_t[support]
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
    scale = ridge * (features**2).sum(dim=1)

    def gap_of(point: Tensor) -> Tensor:
        product = point @ features
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
        part = features[:, active] * weights[active].sqrt()
        gram = part @ part.T
        gram.diagonal().add_(scale + 1e-12 * (float(gram.diagonal().max()) + 1e-300))
        gradient = (features * weights) @ gap + scale * (u - anchor)
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
    count = problem.inputs.shape[0]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).to(start.device)
    held, used = order[: int(_VALIDATION * count)].sort().values, order[int(_VALIDATION * count) :].sort().values
    held_features = problem.inputs_t.index_select(1, held)
    used_part = problem.restrict(used)
    chosen = torch.zeros(problem.rows, dtype=torch.float64, device=start.device)
    for row in range(problem.rows):
        u, least = start[row], torch.inf
        lower, upper = problem.lower[row, held], problem.upper[row, held]
        for strength in _STRENGTHS:
            u = _fit_row(used_part, u, row, strength, anchor=start[row])
            product = u @ held_features
            error = float(((product - product.clamp(lower, upper)) ** 2).sum())
            if error > least:
                break
            chosen[row], least = strength, error
    return chosen


def _never_worse(problem: Problem, fitted: Tensor, start: Tensor, result: Tensor, weight: Tensor) -> Tensor:
    """Keep the start where the cast result is not closer, or breaks a hard sample more than the start does."""
    soft_new, hard_new = problem.distance(fitted @ problem.inputs_t)
    soft_old, hard_old = problem.distance(start @ problem.inputs_t)
    closer = (soft_new**2).sum(dim=1) <= (soft_old**2).sum(dim=1)
    if problem.soft is not None:
        closer &= hard_new.abs().amax(dim=1) <= hard_old.abs().amax(dim=1).clamp(min=1e-12)
    return torch.where(closer[:, None], result, weight)
