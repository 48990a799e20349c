"""A joint budget, row by row: for a given multiplier of the budget its rows are programs of their own.

With tau fixed the joint program is the sum of regularised ones, lambda = 1 / (2 tau), one a row. Rows on whose account
a joint polish gave up are solved there by the interior-point method, and the others are polished without them. Where
that is not enough all are solved at one tau after another, those on which the polish fails by the interior-point
method alone, and not with all the others on its back. The distance of all rows together grows with tau, so the tau at
which it is the budget is the root of one scalar equation. Near it the joint polish, from the vertices of all rows, hits
it exactly. Rows without a vertex that it could keep to stay out of it, with what they need of the budget; the answer is
off by the square of how far tau moved meanwhile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nettrim.solvers.curvature import Curvatures
from nettrim.solvers.guess import Guess, binding
from nettrim.solvers.interior import Central, solve_interior
from nettrim.solvers.judge import AIM, MET, Polished, judged
from nettrim.solvers.polish import FAR_STEPS, polish
from nettrim.solvers.problem import Problem

_WITHOUT = 0.125  # share of the rows, if more than one strayed, without which a joint polish is tried once more
_ROUNDS = 14  # values of tau that are tried
_BETTER, _STALE = 0.5, 6  # a gap that falls by less so many times is that of a degenerate group
_POLISHED = 2  # of these, how many are followed by a joint polish
_TOGETHER = 4  # times that the joint polish moves tau and the rows that stay out of it follow
_APART = 8.0  # the most that tau changes between two rounds
_FINE = 0.1  # share of the tolerance at which a row is done, at one tau
_INSIDE = 4.0  # margins inside the budget at which the root is looked for


def solve_apart(
    problem: Problem,
    guess: Guess,
    tolerance: float,
    curvatures: Curvatures | None = None,
    strayed: Tensor | None = None,
) -> tuple[Polished, float]:
    """Solve one budget group of an l1 `problem` with an epsilon; and the work in products of the inputs with all rows.

    `guess` is where its rows may be near, and its tau the first that is tried. `curvatures` is as in `polish`;
    `strayed` (rows,) bool are the rows on whose account a joint polish gave up.
    """
    assert problem.epsilon is not None
    aim = float(problem.epsilon[0]) * (1 - _INSIDE * problem.margin)
    root, gemms, found, stale = _Root(), 0.0, None, 0
    count, few = 0 if strayed is None else int(strayed.sum()), max(1, _WITHOUT * problem.rows)
    if strayed is not None and 0 < count <= few < problem.rows:
        found, gemms = _without(problem, guess, strayed.nonzero()[:, 0], tolerance, curvatures)
        if bool(found.gap <= AIM * tolerance):
            return found, gemms
    for number in range(_ROUNDS):
        before = torch.inf if found is None else float(found.gap)
        solved = _rows(problem, guess, tolerance, curvatures)
        guess, gemms = solved.guess, gemms + solved.gemms
        found = _better(found, _judged(problem, guess))
        if bool(found.gap <= AIM * tolerance) or not solved.all:
            break
        tau = root.next(float(guess.tau[0]), math.log(max(solved.square, 1e-300) / aim**2))
        if number < _POLISHED:
            found, work = _together(problem, guess, solved.alone, found, tolerance, curvatures)
            gemms += work
            if bool(found.gap <= AIM * tolerance):
                break
        stale = 0 if float(found.gap) < _BETTER * before else stale + 1
        if stale == _STALE:
            break
        guess = replace(guess, tau=torch.full_like(guess.tau, tau))
    assert found is not None
    return found, gemms


@dataclass
class _Root:
    """The zero of an increasing function of tau: the secant in log tau, kept between the ends that are known."""

    low: tuple[float, float] = (-math.inf, -math.inf)  # log tau and the value there
    high: tuple[float, float] = (math.inf, math.inf)
    slope: float = 2.0

    def next(self, tau: float, value: float) -> float:
        """Where to look after `value` was found at `tau`."""
        place = math.log(tau)
        other = self.high if value < 0 else self.low
        last = self.low if value < 0 else self.high
        if value < 0:
            self.low = (place, value)
        else:
            self.high = (place, value)
        known = last if math.isfinite(last[0]) and last[0] != place else other
        if math.isfinite(known[0]) and (known[1] - value) * (known[0] - place) > 0:
            self.slope = (known[1] - value) / (known[0] - place)
        step = -value / self.slope
        step = max(-math.log(_APART), min(math.log(_APART), step))
        there = place + step
        if math.isfinite(self.low[0]) and math.isfinite(self.high[0]) and not self.low[0] < there < self.high[0]:
            there = (self.low[0] + self.high[0]) / 2
        return math.exp(there)


def _without(
    problem: Problem, guess: Guess, strayed: Tensor, tolerance: float, curvatures: Curvatures | None
) -> tuple[Polished, float]:
    """The joint polish once more, from `guess`, without the rows (index) that were in its way; and the work."""
    central = _on_paths(_at(problem.select(strayed), guess.tau), guess.u[strayed], tolerance)
    near = _with(problem, guess, strayed, central.guess.u, central.guess.dual)
    found, gemms = _together(problem, near, strayed, _judged(problem, near), tolerance, curvatures)
    return found, gemms + central.gemms * len(strayed) / problem.rows


def _together(
    problem: Problem, guess: Guess, alone: Tensor, found: Polished, tolerance: float, curvatures: Curvatures | None
) -> tuple[Polished, float]:
    """The joint polish of all rows from those of `guess`, solved at its tau; the rows `alone` (index) stay out of it
    and are solved anew at each tau that it finds. Returns the best answer, `found` among them, and the work."""
    assert problem.epsilon is not None
    if not len(alone):
        landed = polish(problem, guess, tolerance, max_steps=FAR_STEPS, curvatures=curvatures)
        return _better(found, landed), 4.0 * landed.steps
    among = torch.ones(problem.rows, dtype=torch.bool, device=problem.groups.device).index_fill(0, alone, False)
    others = among.nonzero()[:, 0]
    if not len(others):
        return found, 0.0
    lone, rest = problem.select(alone), problem.select(others)
    known, known_alone = _known(curvatures, others), _known(curvatures, alone)
    gemms, tau = 0.0, guess.tau  # where the rows that stay out are
    for number in range(_TOGETHER):
        if number:
            near = replace(_of(guess, alone), tau=tau)
            solved = _rows(lone, near, tolerance, known_alone)
            gemms += solved.gemms * len(alone) / problem.rows
            guess = _with(problem, guess, alone, solved.guess.u, solved.guess.dual)
        soft, _ = lone.distance(lone.design.forward(lone.cast(guess.u[alone])))
        taken = (soft**2).sum()
        left = (problem.epsilon**2 - taken).clamp(min=0)
        rest = replace(rest, epsilon=left.sqrt())
        landed = polish(rest, _of(guess, others), tolerance, max_steps=FAR_STEPS, curvatures=known)
        gemms += 4.0 * landed.steps * len(others) / problem.rows
        if landed.tau is None or not bool(landed.gap <= tolerance):
            break
        guess = _with(problem, replace(guess, tau=landed.tau), others, landed.weight, landed.dual)
        found = _better(found, _judged(problem, guess))
        if bool(found.gap <= AIM * tolerance):
            break
        # squared distances grow about as tau squared: there both parts together come to the budget
        tau = problem.epsilon / (taken / tau**2 + left / landed.tau**2).sqrt()
    return found, gemms


def _known(curvatures: Curvatures | None, rows: Tensor) -> Curvatures | None:
    """What is known of some rows (index)."""
    return None if curvatures is None else curvatures.of(rows)


def _of(guess: Guess, rows: Tensor) -> Guess:
    """That of some rows (index) of its one group."""
    return guess.select(rows, torch.ones_like(guess.tau, dtype=torch.bool))


def _with(problem: Problem, guess: Guess, rows: Tensor, u: Tensor, dual: Tensor) -> Guess:
    """`guess` with other weights and multipliers in some rows (index)."""
    u, dual = guess.u.index_copy(0, rows, u), guess.dual.index_copy(0, rows, dual)
    return Guess(u, dual, binding(problem, dual, u), guess.tau)


def _at(problem: Problem, tau: Tensor) -> Problem:
    """The rows of a joint budget, each for itself, where the budget's multiplier gives `tau` (1,)."""
    groups = torch.arange(problem.rows, device=problem.groups.device)
    return replace(problem, epsilon=None, regularization=1 / (2 * float(tau[0])), groups=groups)


@dataclass(frozen=True)
class _Rows:
    """All rows at one tau."""

    guess: Guess  # their weights and multipliers
    all: bool  # whether every one was solved
    square: float  # their squared distance
    gemms: float
    alone: Tensor  # the rows that the polish could not solve (index)


def _rows(problem: Problem, guess: Guess, tolerance: float, curvatures: Curvatures | None) -> _Rows:
    """Every row solved at the guess's tau."""
    alone = _at(problem, guess.tau)
    start = replace(guess, tau=guess.tau.expand(problem.rows))
    found = polish(alone, start, tolerance, max_steps=FAR_STEPS, curvatures=curvatures)
    weight, dual, gemms = found.weight, found.dual, 4.0 * found.steps
    solved = True
    missed = (found.gap > _FINE * tolerance).nonzero()[:, 0]
    if len(missed):
        central = _on_paths(alone.select(missed), guess.u[missed], tolerance)
        weight = weight.index_copy(0, missed, central.guess.u)
        dual = dual.index_copy(0, missed, central.guess.dual)
        gemms += central.gemms * len(missed) / problem.rows
        solved = bool((central.found.gap <= tolerance).all())
    soft, _ = problem.distance(problem.design.forward(weight))
    near = Guess(weight, dual, binding(problem, dual, weight), guess.tau)
    return _Rows(near, solved, float((soft**2).sum()), gemms, missed)


def _on_paths(problem: Problem, near: Tensor, tolerance: float) -> Central:
    """Rows of a regularised problem by the interior-point method; `guess` holds their vertices where these keep the
    bounds that must hold, else the path's own weights."""
    central = solve_interior(problem, _FINE * tolerance, near)
    vertex, found = central.guess.u, central.found
    soft, hard = problem.distance(problem.design.forward(problem.cast(vertex)))
    sparser = (vertex != 0).sum(dim=1) < (found.weight != 0).sum(dim=1)
    # what vanishes on the path may yet hold a bound
    kept = sparser & (hard.abs() <= MET).expand_as(soft).all(dim=1)
    weight = torch.where(kept[:, None], vertex, found.weight)
    return replace(central, guess=replace(central.guess, u=weight, dual=found.dual))


def _judged(problem: Problem, guess: Guess) -> Polished:
    """The rows' weights and multipliers as an answer of the whole."""
    value, bound = judged(problem, guess.u, guess.dual, problem.design.back(guess.dual))
    return Polished(guess.u, value, guess.dual, bound, 0)


def _better(one: Polished | None, other: Polished) -> Polished:
    """The lesser objective and the larger bound of two answers for one group."""
    if one is None:
        return other
    primal = one if bool(one.objective <= other.objective) else other
    dual = one if bool(one.bound >= other.bound) else other
    return Polished(primal.weight, primal.objective, dual.dual, dual.bound, one.steps + other.steps)
