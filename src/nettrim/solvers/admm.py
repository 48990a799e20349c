"""Batched ADMM: finds support and active samples, one shared factor, one penalty parameter a neuron.

Splitting: min penalty(w) + indicator(z in C) subject to z = X u, w = u. The u-step solves (X'X + ratio I) u = rhs
with a factor that no neuron's parameter changes, because both constraints of a neuron share its rho; prox and
projection are closed forms. Over-relaxed; rho is set from the iterates at a few early iterations and then left alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nettrim.programs import group_sums
from nettrim.programs.penalties import Penalty
from nettrim.solvers.precision import tensor_cores
from nettrim.solvers.problem import Problem

RELAXATION = 1.7
_FIRST = 200.0  # rho at first, over the gauge of the targets' pull
_RAMP_AT, _RAMP = 5, 1.5  # rho is raised until the weights' multipliers would reach so much of the gauge by then
_TUNE_AT = (40, 60)
_TUNE_GAIN = 15.0  # rho = gain |multiplier| / |X u|
_RETRIES = (5.0, 0.2, 1.0)
_TUNE_CLAMP = 3.0  # kept within this factor of the block's median


@dataclass
class Admm:
    """The running state of some rows; `step` advances it in place."""

    problem: Problem
    lower: Tensor
    upper: Tensor
    soft: Tensor | None
    penalty: Penalty
    rho: Tensor  # (rows, 1)
    w: Tensor  # (rows, in)
    b: Tensor  # w + scaled multiplier
    z: Tensor  # (rows, samples)
    a: Tensor  # z + scaled multiplier
    shrink: Tensor  # (rows, 1): how much of the distance the last projection kept
    tuned: Tensor  # (rows, 1): rho before the first retry
    iteration: int = 0

    def step(self) -> None:
        """One iteration: two large products, one small, elementwise work."""
        design = self.problem.design
        with tensor_cores(design.device):
            pulled = design.pull(torch.sub(self.a, self.z, alpha=2))
        u = pulled.add_(self.b - 2 * self.w, alpha=design.ratio).neg_() @ design.inverse
        with tensor_cores(design.device):
            v = design.product(u)
        # the relaxed point plus the multiplier: alpha v + (1 - alpha) z + (a - z)
        self.a = torch.add(self.a, v.sub_(self.z), alpha=RELAXATION, out=v)
        self.b = u = torch.add(self.b, u.sub_(self.w), alpha=RELAXATION, out=u)
        self.w = self.penalty.prox(u, 1 / (self.rho * self.problem.design.ratio))
        self.project()
        self.iteration += 1
        if self.iteration == _RAMP_AT:
            self.ramp()
        if self.iteration in _TUNE_AT:
            self.tune()

    def project(self) -> None:
        """z = the projection of a on the constraint: on the box, then back towards the point until the distance is
        eps."""
        box = torch.clamp(self.a, self.lower, self.upper)
        gap = self.a - box
        if self.soft is not None:
            gap.mul_(self.soft)
        squares = torch.linalg.vector_norm(gap, dim=1) ** 2
        self.shrink = ball_shrink(squares, self.rho[:, 0], self.problem)[:, None]
        self.z = box.addcmul_(gap, self.shrink)

    def ramp(self) -> None:
        """Raise a rho with which the weights would long stay zero.

        They leave it when the gauge of their multipliers reaches 1, and from zero that grows in proportion to rho and
        the iterations. Too large a rho is soon tuned down; too small a one makes no multiplier to tune it by.
        """
        gauge = self.penalty.gauge(self.rho * self.problem.design.ratio * (self.b - self.w))
        usable = gauge > 0
        if bool(usable.any()):
            reached = float(gauge[usable].median())
            if reached < 1:
                self.set_rho(self.rho * (_RAMP / reached))

    def tune(self) -> None:
        """rho from the present multipliers and responses, within a factor of the block's median."""
        multiplier = self.rho[:, 0] * (self.a - self.z).norm(dim=1)
        response = self.z.norm(dim=1)
        usable = (multiplier > 0) & (response > 0)
        if not bool(usable.any()):
            return
        target = _TUNE_GAIN * multiplier / response.clamp(min=1e-30)
        median = target[usable].median()
        target = torch.where(usable, target, median).clamp(median / _TUNE_CLAMP, median * _TUNE_CLAMP)
        if self.penalty.couples_rows:
            target = median.expand_as(target)
        self.set_rho(target[:, None])

    def retry(self, number: int) -> None:
        """For rows that are slow to converge: rho on another scale around the tuned one."""
        if number == 0:
            self.tuned = self.rho
        self.set_rho(self.tuned * _RETRIES[number % len(_RETRIES)])

    def set_rho(self, rho: Tensor) -> None:
        """Change rho and keep the multipliers."""
        change = self.rho / rho
        self.a = self.z + (self.a - self.z) * change
        self.b = self.w + (self.b - self.w) * change
        self.rho = rho

    def multipliers(self) -> Tensor:
        """The dual estimate r (rows, samples), of the sign that certificates use."""
        return -self.rho * (self.a - self.z)

    def select(self, index: Tensor) -> None:
        """Keep only some rows (whole budget groups)."""
        self.problem = self.problem.select(index)
        self.penalty = self.penalty.rows(index)
        for name in ("lower", "upper", "rho", "tuned", "w", "b", "z", "a", "shrink"):
            setattr(self, name, getattr(self, name)[index])
        if self.soft is not None:
            self.soft = self.soft[index]


def ball_shrink(squares: Tensor, rho: Tensor, problem: Problem) -> Tensor:
    """rho / (rho + mu_g) per row, mu_g >= 0 the least that brings a group's distance within eps; mu = 2 lambda if
    regularised."""
    if problem.regularization is not None:
        return rho / (rho + 2 * problem.regularization)
    assert problem.epsilon is not None
    target = (problem.epsilon**2).to(squares)
    count = problem.group_count
    if count == len(squares):
        own = target[problem.groups]
        return torch.where(squares > own, (own / squares).sqrt(), 1.0)
    groups = problem.groups
    mu = torch.zeros_like(target)
    total = group_sums(squares, groups, count)
    outside = total > target
    if not bool(outside.any()):
        return torch.ones_like(rho)
    # 1 / sqrt(sum) is concave and nearly linear in mu: Newton from the left converges monotonically
    for _ in range(30):
        factor = rho / (rho + mu[groups])
        total = group_sums(squares * factor**2, groups, count)
        slope = group_sums(squares * factor**3 / rho, groups, count)
        root = total.clamp(min=1e-30).sqrt()
        step = torch.where(
            outside & (target > 0), (root / target.clamp(min=1e-30).sqrt() - 1) * total / slope.clamp(min=1e-30), 0.0
        )
        mu = (mu + step).clamp(min=0)
        if bool((step <= 1e-6 * mu).all()):
            break
    shrink = rho / (rho + mu[groups])
    return torch.where((target == 0)[groups] & outside[groups], 0.0, shrink)


def start(problem: Problem) -> Admm:
    """The first iterate, zero."""
    design, rows = problem.design, problem.rows
    dtype = design.precision
    lower, upper = problem.lower.to(dtype), problem.upper.to(dtype)
    w = lower.new_zeros(rows, design.width)
    z = lower.new_zeros(rows, design.samples)
    rho = _first_rho(problem).to(dtype).expand(rows)[:, None].clone()
    return Admm(
        problem=problem,
        lower=lower,
        upper=upper,
        soft=None if problem.soft is None else problem.soft.to(dtype),
        penalty=problem.penalty.to(w),
        rho=rho,
        tuned=rho,
        w=w,
        b=w.clone(),
        z=z,
        a=z.clone(),
        shrink=torch.ones_like(rho),
    )


def _first_rho(problem: Problem) -> Tensor:
    """In proportion to 1 / the gauge of X'y, y the responses nearest to zero, the median over the rows.

    With multipliers y duality proves a penalty of at least |y|^2 / gauge(X'y), and rho turns squared responses into
    penalties. What the dense weights cost would tell less: they may have much in directions that change no response.
    """
    nearest = torch.nan_to_num(problem.lower.clamp(min=0), posinf=0.0) + torch.nan_to_num(
        problem.upper.clamp(max=0), neginf=0.0
    )
    pull = problem.design.back(nearest)
    gauge = problem.penalty.gauge(pull)
    gauge = torch.where(gauge > 0, gauge, pull.abs().amax(dim=1))  # a penalty that is none has no gauge
    usable = gauge > 0
    return _FIRST / gauge[usable].median() if bool(usable.any()) else gauge.new_ones(())
