"""Newton's equations of the central path, one factor a row.

Without the scalar that couples a group they read, for right-hand sides a and b,

    E^-1 (w - a) = X' r,    X w + D^-1 r = b,

and are solved for w, by the factor of X'DX + E^-1 (in x in), or for r, by that of X E X' + D^-1 (samples x samples),
whichever is less work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from nettrim.solvers.cholesky import solve_factored

if TYPE_CHECKING:
    from nettrim.solvers.interior.path import Path

_TINY = 1e-13  # regularises entries that must be met exactly
_ROUNDED = 1e-4  # relative to epsilon: what rounding may add to responses where they are solved for the multipliers
_FREE_COLUMNS = 16  # without a cost, with more of which the equations are solved for the weights


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
    bend: Tensor  # (rows, samples): tau of entries in the ball, else 0
    inside: Tensor  # (rows, samples): r of entries in the ball, else 0
    rate: Tensor  # (rows, 1): k of the ball
    ease: Tensor  # (rows, samples): 1 / theta, 0 at points
    misfit: Tensor  # (rows, samples): y less the point it should meet
    residuals: tuple[Tensor, ...]  # of the four pairs
    factors: _Factors
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
        kept = path.counting(curvature, tau[:, 0])
        of = _Samples if _narrow(path, kept, stiffness) else _Weights
        factors = of(path, curvature, stiffness, kept, rough[groups].tolist())
        nothing = torch.zeros_like(pull)
        turn, echo = factors.solve(nothing, rate * inside, nothing, refine=False)
        damping = 1 - path.sum((inside * echo).sum(dim=1))
        return cls(
            path, pull, bend, inside, rate, ease, y - path.lower, residuals, factors, turn, echo, damping
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
        weight, dual = self.factors.solve(drift, push, self.pull)
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


class _Factors(Protocol):
    def __init__(self, path: Path, curvature: Tensor, stiffness: Tensor, kept: list[Tensor], rough: list[bool]) -> None:
        """Of D = `curvature` (rows, samples) and E^-1 = `stiffness` (rows, in); `kept` are the samples that count and
        `rough` whether matrices may be rounded, of each row."""
        ...

    def solve(self, drift: Tensor, push: Tensor, pull: Tensor, *, refine: bool = True) -> tuple[Tensor, Tensor]:
        """w and r of a = `drift` and b = `push`; weights without a cost have X'r = -`pull` for their equation."""
        ...


class _Weights:
    """The equations solved for w."""

    def __init__(self, path: Path, curvature: Tensor, stiffness: Tensor, kept: list[Tensor], rough: list[bool]) -> None:
        self.path, self.curvature, self.stiffness = path, curvature, stiffness
        self.factors = []
        for row, samples in enumerate(kept):
            gram = path.gram(row, curvature[row], samples, rough[row])
            gram.diagonal().add_(stiffness[row])
            self.factors.append(_factor(gram))

    def solve(self, drift: Tensor, push: Tensor, pull: Tensor, *, refine: bool = True) -> tuple[Tensor, Tensor]:
        path = self.path
        right = torch.where(path.free, pull, drift * self.stiffness) + path.back(self.curvature * push)
        right = torch.where(path.banned, 0.0, right)
        weight = _solve(self.factors, right)
        if refine:
            missing = right - self.stiffness * weight - path.back(self.curvature * path.forward(weight))
            weight = weight + _solve(self.factors, torch.where(path.banned, 0.0, missing))
        return weight, self.curvature * (push - path.forward(weight))


class _Samples:
    """The equations solved for r, on the samples that count; the few weights without a cost by a Schur complement."""

    def __init__(self, path: Path, curvature: Tensor, stiffness: Tensor, kept: list[Tensor], rough: list[bool]) -> None:
        self.path, self.curvature, self.kept = path, curvature, kept
        self.give = torch.where(path.banned | path.free, 0.0, 1 / stiffness)
        self.factors = []
        self.borders = []  # columns of the weights without a cost, what r they call forth, and the complement's factor
        for row, samples in enumerate(kept):
            gram = path.sample_gram(self.give[row], samples, rough[row])
            gram.diagonal().add_(1 / curvature[row, samples])
            factor = _factor(gram)
            free = path.free[row].nonzero()[:, 0]
            columns = path.problem.design.take(samples, free)
            answer = solve_factored(factor, columns)
            self.factors.append(factor)
            self.borders.append((free, columns, answer, _factor(columns.T @ answer)))

    def solve(self, drift: Tensor, push: Tensor, pull: Tensor, *, refine: bool = True) -> tuple[Tensor, Tensor]:
        path, dual, weight, free = self.path, torch.zeros_like(push), drift, torch.zeros_like(drift)
        for _ in range(1 + refine):
            missing = push - path.forward(weight) - dual / self.curvature
            change, moved = self._solved(missing, -pull - path.back(dual))
            dual, free = dual + change, free + moved
            weight = drift + self.give * path.back(dual) + free
        rest = self.curvature * (push - path.forward(weight))  # of the samples that do not count for the factor
        for row, samples in enumerate(self.kept):
            rest[row, samples] = dual[row, samples]
        return weight, rest

    def _solved(self, right: Tensor, pull: Tensor) -> tuple[Tensor, Tensor]:
        """r of the samples that count, and the weights without a cost, where X'r of these is to be `pull`."""
        dual, weight = torch.zeros_like(right), torch.zeros_like(pull)
        for row, (samples, factor, border) in enumerate(zip(self.kept, self.factors, self.borders, strict=True)):
            part = solve_factored(factor, right[row, samples, None])[:, 0]
            free, columns, answer, complement = border
            if len(free):
                weight[row, free] = solve_factored(complement, (columns.T @ part - pull[row, free])[:, None])[:, 0]
                part = part - answer @ weight[row, free]
            dual[row, samples] = part
        return dual, weight


def _narrow(path: Path, kept: list[Tensor], stiffness: Tensor) -> bool:
    """Whether the equations of the samples are less work than those of the weights, and exact enough: w = a + E X'r
    blows up what is rounded in X'r, towards the end of the path ever more."""
    if int(path.free.sum(dim=1).amax()) > _FREE_COLUMNS:
        return False
    width, points = path.weight.shape[1], path.point.sum(dim=1).tolist()
    weights = samples = 0.0
    for index, count in zip(kept, points, strict=True):
        weights += width**2 * (len(index) - count + width / 3)
        samples += len(index) ** 2 * (width + len(index) / 3)
    if samples >= weights:
        return False
    give = torch.where(path.free | path.banned, 0.0, path.problem.design.squares / stiffness).amax(dim=1)
    rounded = torch.finfo(give.dtype).eps * give * path.dual.norm(dim=1)
    allowed = _ROUNDED * (torch.ones_like(path.size) if path.epsilon is None else path.epsilon)
    return bool((rounded <= allowed[path.groups]).all())


def _factor(matrix: Tensor) -> Tensor:
    """Cholesky's factor, with as little added to the diagonal as it takes."""
    for ridge in (1e-13, 1e-11, 1e-9, 1e-6):
        matrix.diagonal().mul_(1 + ridge)
        factor, info = torch.linalg.cholesky_ex(matrix)
        if not int(info):
            break
    return factor


def _solve(factors: list[Tensor], right: Tensor) -> Tensor:
    return torch.stack([solve_factored(factor, right[row, :, None])[:, 0] for row, factor in enumerate(factors)])
