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
HARD_WEIGHT = 1e4  # of a hard sample against a soft one
_MULTIPLIER_STEPS = 12
_NEWTON_STEPS = 40
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
    fitted = torch.zeros_like(start)
    for row in range(problem.rows):
        fitted[row] = _fit_row(_Row(problem, row, start[row]), start[row], float(ridge[row]))
    result = (fitted * problem.weight_scale).to(weight)
    return _never_worse(problem, result.to(torch.float64) / problem.weight_scale, start, result, weight)


def fit_support(problem: Problem, start: Tensor, row: int, ridge: float = 0.0) -> Tensor:
    """The refit of one row on the support of `start`, hard samples met exactly where they can be.

    Hard samples weigh a large constant and have their bounds shifted by what is still missing, step after step (the
    method of multipliers), until none is outside.
    """
    fit = _Row(problem, row, start)
    if fit.hard is None:
        return _fit_row(fit, start, ridge)
    point, shift = start, torch.zeros_like(fit.lower)
    for _ in range(_MULTIPLIER_STEPS):
        point = _fit_row(fit, point, ridge, shift=shift, anchor=start)
        product = problem.design.forward(point[None])[0]
        missing = torch.where(fit.hard, product - product.clamp(fit.lower, fit.upper), 0.0)
        if float(missing.abs().max()) <= 1e-11:
            break
        shift = shift + missing
    return point


class _Row:
    """One row on its support: the columns, held where there is room and streamed otherwise, and X_S' diag(weights) X_S
    over the samples that count, which few samples enter or leave from one step, strength or shift to the next."""

    def __init__(self, problem: Problem, row: int, start: Tensor) -> None:
        """`start` (in,) are weights with the row's support."""
        support = start.nonzero()[:, 0]
        self.design, self.support = problem.design, support
        self.lower, self.upper = problem.lower[row], problem.upper[row]
        self.points = self.lower == self.upper
        self.hard = None if problem.soft is None else ~problem.soft[row]
        self.weights = torch.ones_like(self.lower)
        self.inward = torch.zeros_like(self.lower)
        if self.hard is not None:
            self.weights = torch.where(self.hard, HARD_WEIGHT, 1.0)
            self.inward = problem.hard_margin * (self.hard & ~self.points)
        self.diagonal = self.design.squares[support]
        room = self.design.slice_rows * self.design.width
        fits = self.design.wide is not None or self.design.samples * len(support) <= room
        self.columns = self.design.columns(support) if fits else None
        self.active = torch.zeros_like(self.points)
        self.gram = self.lower.new_zeros(len(support), len(support))

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

    def count(self, active: Tensor) -> Tensor:
        """X_S' diag(weights) X_S over the samples in the mask `active`."""
        changed = active != self.active
        if int(changed.sum()) < int(active.sum()):
            self.gram = self.gram + self._over(changed & active) - self._over(changed & ~active)
        elif self.hard is None and 2 * int(active.sum()) > len(active):
            self.gram = self.design.total[self.support[:, None], self.support] - self._over(~active)
        else:
            self.gram = self._over(active)
        self.active = active
        return self.gram

    def _over(self, mask: Tensor) -> Tensor:
        samples = mask.nonzero()[:, 0]
        if self.columns is None:
            return self.design.gram(samples, self.support, weights=self.weights[samples])
        part = self.columns[:, samples] * self.weights[samples].sqrt()
        return part @ part.T


def _fit_row(
    row: _Row, start: Tensor, ridge: float, *, shift: Tensor | None = None, anchor: Tensor | None = None
) -> Tensor:
    """One row by Newton; `shift` tightens hard bounds, the ridge pulls towards `anchor` (the start unless given)."""
    if not len(row.support):
        return start.clone()
    push = torch.zeros_like(row.lower) if shift is None else shift
    upper = row.upper - row.inward - push.clamp(min=0)
    lower = torch.minimum(row.lower + row.inward - push.clamp(max=0), upper)
    u = start[row.support]
    anchor = u if anchor is None else anchor[row.support]
    scale = ridge * row.diagonal

    def gap_of(point: Tensor) -> Tensor:
        product = row.product(point)
        return product - product.clamp(lower, upper)

    def value(point: Tensor, gap: Tensor) -> Tensor:
        return (row.weights * gap**2).sum() + (scale * (point - anchor) ** 2).sum()

    gap = gap_of(u)
    present = value(u, gap)
    for _ in range(_NEWTON_STEPS):
        active = (gap != 0) | row.points
        if not bool(active.any()):
            break
        gram = row.count(active).clone()
        gram.diagonal().add_(scale + 1e-12 * (float(gram.diagonal().max()) + 1e-300))
        gradient = row.pull(row.weights * gap) + scale * (u - anchor)
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
    fitted[row.support] = u
    return fitted


def _choose_strength(problem: Problem, start: Tensor, seed: int) -> Tensor:
    """Per row, the strength with the least distance on samples held back; weaker ones are not tried once it grows."""
    count = problem.design.samples
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).to(start.device)
    held, used = order[: int(_VALIDATION * count)].sort().values, order[int(_VALIDATION * count) :].sort().values
    held_part, used_part = problem.restrict(held), problem.restrict(used)
    chosen = torch.zeros(problem.rows, dtype=torch.float64, device=start.device)
    for row in range(problem.rows):
        u, least, fit = start[row], torch.inf, _Row(used_part, row, start[row])
        lower, upper = held_part.lower[row], held_part.upper[row]
        for strength in _STRENGTHS:
            u = _fit_row(fit, u, strength, anchor=start[row])
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
