"""The ADMM of the papers, batched over neurons: one rho for the whole layer and an over-relaxation, set by hand.

Splitting: min |w|_1 + indicator(z in C) subject to z / c0 = X u / c0, w = u, both with the same penalty parameter
(N, section 5, names the method; rho here is that of z). c0 is a tenth of the largest sample's norm, as in ours.
Over-relaxed by alpha, z and w see alpha X u + (1 - alpha) z and alpha u + (1 - alpha) w where they would see X u and u.
The papers do not mention it, nor has the authors' code for the ball of responses any; their earlier code, for the
regularised program, is called with alpha = 1.8 (DNNToolBox/Net-Trim-v1, main.py), so both 1 and 1.8 are tried.
Float64, since its multipliers stall in float32. For a fair race it is given what it does not have: our certificate
stops it neuron by neuron, and the time of that check is not counted against it.

`best_settings` finds what a patient user would set by hand, on a neuron that is not measured.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from nettrim.certificates import certify
from nettrim.programs import Program

RELAXATIONS = (1.0, 1.8)
_CHECK_EVERY = 25


@dataclass(frozen=True, eq=False)
class Outcome:
    """Per neuron: the accuracy reached, by our certificate, and the CPU seconds of the whole batch."""

    accuracy: Tensor  # (rows,): max(|gap|, violation), of the last check
    violation: Tensor  # (rows,)
    nonzeros: Tensor  # (rows,)
    iterations: int
    seconds: float  # CPU, factor included, checks excluded
    own: Tensor  # (rows,) of these, each neuron's: an equal share with those that iterated beside it


@dataclass(frozen=True)
class PublishedAdmm:
    """Settings: the penalty parameter, the over-relaxation (1: none), and when to give up."""

    rho: float
    relaxation: float = 1.0
    max_iterations: int = 5000
    limit: float = math.inf  # CPU seconds after which it gives up
    dtype: torch.dtype = torch.float64  # float32 stalls at gaps of 1e-1 to 1e-2

    def solve(self, program: Program, tolerance: float) -> Outcome:
        """Iterate until every neuron is within `tolerance` by our certificate; budgets must be one a neuron."""
        assert program.epsilon is not None and program.group_count == program.shape[0]
        clock = time.process_time()
        x = program.inputs.to(self.dtype)
        lower, upper = program.lower.T.to(x).contiguous(), program.upper.T.to(x).contiguous()
        hard = (lower != upper) if program.constraint == "strict" else None
        epsilon = program.epsilon.to(x)[:, None]
        gram = (x.T @ x).double()
        ratio = 0.01 * float((x**2).sum(dim=1).max())  # c0^2
        gram.diagonal().add_(ratio)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram)).to(x)
        rows, columns = program.shape
        w, z = x.new_zeros(rows, columns), x.new_zeros(rows, len(x))
        b, a = torch.zeros_like(w), torch.zeros_like(z)  # scaled multipliers
        live = torch.arange(rows)
        accuracy = torch.full((rows,), torch.inf, dtype=torch.float64)
        violation, nonzeros = accuracy.clone(), torch.zeros(rows, dtype=torch.int64)
        own = torch.zeros_like(accuracy)
        alpha, seconds = self.relaxation, 0.0
        iteration = 0
        while iteration < self.max_iterations and len(live) and seconds < self.limit:
            iteration += 1
            u = torch.addmm((w - b) * ratio, z - a, x) @ inverse
            v = u @ x.T
            if alpha != 1:
                v.mul_(alpha).add_(z, alpha=1 - alpha)
                u.mul_(alpha).add_(w, alpha=1 - alpha)
            v.add_(a)
            u.add_(b)
            w = torch.sign(u) * (u.abs() - 1 / (self.rho * ratio)).clamp(min=0)
            z = _project(v, lower, upper, hard, epsilon)
            a, b = v - z, u - w
            if iteration % _CHECK_EVERY == 0 or iteration == self.max_iterations:
                spent = time.process_time() - clock
                seconds += spent
                own[live] += spent / len(live)
                told = certify(program.rows(live), w.double(), (-self.rho * a).T.double())
                accuracy[live] = torch.maximum(told.group_gap.abs(), told.group_violation)
                violation[live] = told.group_violation
                nonzeros[live] = (w != 0).sum(dim=1)
                keep = accuracy[live] > tolerance
                clock = time.process_time()
                live = live[keep]
                w, z, a, b = w[keep], z[keep], a[keep], b[keep]
                lower, upper, epsilon = lower[keep], upper[keep], epsilon[keep]
                hard = None if hard is None else hard[keep]
        seconds += time.process_time() - clock
        return Outcome(accuracy, violation, nonzeros, iteration, seconds, own)


def natural_rho(program: Program, initial: Tensor) -> float:
    """The middle of the grid of hand-set values: 50 times the median of |w|_1 / |y|^2 over live neurons."""
    targets = torch.nan_to_num(program.lower, neginf=0.0, posinf=0.0)
    squares = (targets**2).sum(dim=0)
    live = squares > 0
    return float((50 * initial.abs().sum(dim=1)[live] / squares[live]).median())


def best_settings(program: Program, initial: Tensor, iterations: int = 600) -> tuple[float, float]:
    """rho, of a grid over three decades, and relaxation, of `RELAXATIONS`, that certify `program` soonest.

    The search is not counted as time.
    """
    middle = natural_rho(program, initial)

    def score(pair: tuple[float, float]) -> tuple[bool, float]:
        told = PublishedAdmm(*pair, iterations).solve(program, 1e-4)
        reached = bool((told.accuracy <= 1e-4).all())
        return reached, -float(told.iterations if reached else told.accuracy.clamp(max=1e6).log().mean())

    grid = [(middle * 4.0**power, alpha) for alpha in RELAXATIONS for power in range(-2, 4)]
    return max(grid, key=score)


def _project(v: Tensor, lower: Tensor, upper: Tensor, hard: Tensor | None, epsilon: Tensor) -> Tensor:
    box = torch.clamp(v, lower, upper)
    gap = v - box
    if hard is not None:
        gap = gap.masked_fill(hard, 0.0)
    return box + gap * (epsilon / gap.norm(dim=1, keepdim=True).clamp(min=1e-30)).clamp(max=1.0)
