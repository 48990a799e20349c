"""Newton's equations of the central path, one factor a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from nettrim.solvers.interior.path import Path

_TINY = 1e-13  # regularises entries that must be met exactly


class Pair(NamedTuple):
    """A positive variable and its multiplier, where `mask` says so; anything positive elsewhere."""

    value: Tensor
    dual: Tensor
    mask: Tensor


class Direction(NamedTuple):
    """A step of the weights (rows, in), of the multipliers (rows, samples), and of each pair's two sides."""

    weight: Tensor
    dual: Tensor
    pairs: tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True)
class System:
    """Newton's equations at one iterate, factored; `direction` solves them for any right-hand side."""

    path: Path
    pull: Tensor  # (rows, in): X'r
    curvature: Tensor  # (rows, samples): D
    bend: Tensor  # (rows, samples): tau of entries in the ball, else 0
    inside: Tensor  # (rows, samples): r of entries in the ball, else 0
    rate: Tensor  # (rows, 1): k of the ball
    ease: Tensor  # (rows, samples): 1 / theta, 0 at points
    stiffness: Tensor  # (rows, in): 1 / E
    misfit: Tensor  # (rows, samples): y less the point it should meet
    residuals: tuple[Tensor, ...]  # of the four pairs
    factors: list[Tensor]
    turn: Tensor  # (rows, in): what a unit of the scalar coupling does to the weights
    echo: Tensor  # (rows, samples): and to the multipliers
    damping: Tensor  # (groups,)

    @classmethod
    def make(cls, path: Path, mu: Tensor, rough: Tensor) -> System:
        """Factor the equations of every row."""
        up, down, low, high = path.pairs
        product, pull = path.forward(path.weight), path.back(path.dual)
        groups = path.groups
        inside = torch.where(path.in_ball, path.dual, 0.0)
        tau, rate = path.ball(0.1 * mu, path.sum((inside**2).sum(dim=1)).sqrt())
        tau, rate = tau[groups][:, None], rate[groups][:, None]
        bend = torch.where(path.in_ball, tau, 0.0)
        y = product + bend * path.dual
        residuals = (
            path.costs - pull - up.dual,
            path.costs + pull - down.dual,
            y - path.lower - low.value,
            path.upper - y - high.value,
        )
        theta = torch.where(low.mask, low.dual / low.value, 0.0) + torch.where(high.mask, high.dual / high.value, 0.0)
        ease = torch.where(path.point, 0.0, 1 / theta.clamp(min=1e-300))
        curvature = 1 / (ease + bend + _TINY)
        stiffness = 1 / (up.value / up.dual + down.value / down.dual)
        stiffness = torch.where(path.free, 0.0, torch.where(path.banned, 1e30, stiffness))
        factors = []
        rounded = rough[groups].tolist()
        for row in range(len(path.rows)):
            gram = path.gram(row, curvature[row], float(tau[row]), rounded[row])
            gram.diagonal().add_(stiffness[row])
            factors.append(_factor(gram))
        turn = _solve(factors, path.back(curvature * rate * inside))
        echo = curvature * (rate * inside - path.forward(turn))
        damping = 1 - path.sum((inside * echo).sum(dim=1))
        return cls(
            path, pull, curvature, bend, inside, rate, ease, stiffness, y - path.lower, residuals, factors, turn, echo,
            damping,
        )  # fmt: skip

    @property
    def missed(self) -> Tensor:
        """The largest difference of a row between a bound's distance and its slack, (rows,)."""
        sides = zip(self.path.pairs[2:], self.residuals[2:], strict=True)
        return torch.stack([torch.where(pair.mask, part.abs(), 0.0).amax(dim=1) for pair, part in sides]).amax(dim=0)

    def direction(self, mu: Tensor, bends: tuple[Tensor, ...]) -> Direction:
        """Towards products of size `mu` (groups,), less the second-order terms `bends`."""
        path = self.path
        groups = path.groups
        aims = tuple(
            torch.where(pair.mask, (mu[groups][:, None] - bend) / pair.value - pair.dual, 0.0)
            for pair, bend in zip(path.pairs[2:], bends[2:], strict=True)
        )
        low, high = path.pairs[2:]
        push = aims[0] - torch.where(low.mask, low.dual / low.value * self.residuals[2], 0.0)
        push = push - aims[1] + torch.where(high.mask, high.dual / high.value * self.residuals[3], 0.0)
        push = torch.where(path.point, -self.misfit, push * self.ease)
        drift = torch.zeros_like(self.pull)
        for sign, pair, residual, bend in zip((1, -1), path.pairs[:2], self.residuals[:2], bends[:2], strict=True):
            aim = (mu[groups][:, None] - bend) / pair.dual - pair.value - pair.value / pair.dual * residual
            drift = drift + sign * torch.where(pair.mask, aim, 0.0)
        right = torch.where(path.free, self.pull, drift * self.stiffness) + path.back(self.curvature * push)
        right = torch.where(path.banned, 0.0, right)
        weight = _solve(self.factors, right)
        missing = right - self.stiffness * weight - path.back(self.curvature * path.forward(weight))
        weight = weight + _solve(self.factors, torch.where(path.banned, 0.0, missing))
        dual = self.curvature * (push - path.forward(weight))
        coupling = path.sum((self.inside * dual).sum(dim=1)) / self.damping
        coupling = coupling[groups][:, None]
        weight, dual = weight + coupling * self.turn, dual + coupling * self.echo
        pull = path.back(dual)
        moved = path.forward(weight) + self.bend * dual - self.rate * self.inside * coupling
        changes = []
        for sign, pair, residual, bend in zip((-1, 1), path.pairs[:2], self.residuals[:2], bends[:2], strict=True):
            turn = residual + sign * pull
            change = (mu[groups][:, None] - bend) / pair.dual - pair.value - pair.value / pair.dual * turn
            changes.append((torch.where(pair.mask, change, 0.0), torch.where(pair.mask, turn, 0.0)))
        changes = self._consistent(weight, changes, mu, bends)
        for sign, pair, residual, bend in zip((1, -1), path.pairs[2:], self.residuals[2:], bends[2:], strict=True):
            change = torch.where(pair.mask, sign * moved + residual, 0.0)
            turn = (mu[groups][:, None] - bend) / pair.value - pair.dual - pair.dual / pair.value * change
            changes.append((change, torch.where(pair.mask, turn, 0.0)))
        return Direction(weight, dual, tuple(changes))

    def _consistent(
        self, weight: Tensor, changes: list[tuple[Tensor, Tensor]], mu: Tensor, bends: tuple[Tensor, ...]
    ) -> list[tuple[Tensor, Tensor]]:
        """The larger of p and q follows the weight, and its multiplier their product: their own equations have lost
        their digits to cancellation."""
        up, down = self.path.pairs[:2]
        (rise, rise_dual), (fall, fall_dual) = changes
        larger = up.value > down.value
        rise = torch.where(larger & up.mask, weight + fall, rise)
        fall = torch.where(~larger & up.mask, rise - weight, fall)
        aim = mu[self.path.groups][:, None]
        rise_dual = torch.where(
            larger & up.mask & (up.value > up.dual), (aim - bends[0] - up.dual * rise) / up.value - up.dual, rise_dual
        )
        fall_dual = torch.where(
            ~larger & up.mask & (down.value > down.dual),
            (aim - bends[1] - down.dual * fall) / down.value - down.dual,
            fall_dual,
        )
        return [(rise, rise_dual), (fall, fall_dual)]


def _factor(matrix: Tensor) -> Tensor:
    """Cholesky's factor, with as little added to the diagonal as it takes."""
    for ridge in (1e-13, 1e-11, 1e-9, 1e-6):
        matrix.diagonal().mul_(1 + ridge)
        factor, info = torch.linalg.cholesky_ex(matrix)
        if not int(info):
            break
    return factor


def _solve(factors: list[Tensor], right: Tensor) -> Tensor:
    return torch.stack([torch.cholesky_solve(right[row][:, None], factor)[:, 0] for row, factor in enumerate(factors)])
