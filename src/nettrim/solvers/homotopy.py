"""Rows' lassos where the primal-dual active set does not settle: one change of the support at a time, never uphill.

With the quadratic |X_A u - b|^2 of a row fixed (see `polish`), the weights at a given tau are found by the primal
active-set method: go towards the minimum on the present support, stop at the first weight that reaches zero and drop
it; at the minimum let the worst feature in. The objective falls in every step, so no support comes back. From there
tau is led to the value that meets epsilon along the weights' path, which is piecewise linear in tau: it bends where a
weight reaches zero or a feature its limit, a hard sample its bound or its multiplier zero. With hard samples the path
has to begin at optimal weights, as those of a neighbouring epsilon are: the samples that count are the same there.

Rows change side by side, each by itself; their systems are solved in batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nettrim.solvers.inner import Lassos, tau_at

_CHANGES = 30  # of the support on the way down, after which a row is given up: from near by two or three do
_BENDS = 200  # of a path, likewise: a shared tau may move by half, past every other weight's bend
_TOO_MANY = 20  # weights of a support more than a vertex can have, with more of which it is not tried
_NEARLY = 1e-4  # relative: by how much weights at hand may miss the conditions of optimal ones
_RELEASES = 4  # rounds in which hard samples that do not push are let go
_EQUAL = 1e-9  # relative: limits and breaks that count as the same


def solve_rows(lassos: Lassos, rows: Tensor, tau: Tensor, square: Tensor | None) -> tuple[Tensor, Tensor]:
    """Solve the lassos of some rows (index) from where they began at `tau` (rows,), then at the tau where the squared
    distance is `square` (rows,); None: stay there. Returns that tau, and a mask of the rows where it was found: there
    is none, or too many changes are needed, in the others, whose points are then what they were.

    With hard samples the beginning has to be optimal at `tau`. The Gram matrix should be exact where few samples count:
    supports are then as large as its rank.
    """
    passed, tau = _Points.of(lassos, rows), tau.clone()
    found = _begin(lassos, rows, tau)
    if square is not None:
        there = found.nonzero()[:, 0]
        tau[there], found[there] = _follow(lassos, rows[there], tau[there], square=square[there])
    passed.put_back(lassos, ~found)
    return tau, found


def lead_rows(lassos: Lassos, rows: Tensor, tau: Tensor, to: Tensor, *, anew: bool = False) -> Tensor:
    """Follow the weights of rows (index) solved at `tau` (rows,), `anew` from where they began, solved there, to other
    taus `to` (rows,). Returns a mask of the rows that came there; others need too many changes, and are where they
    were."""
    passed = _Points.of(lassos, rows)
    led = _begin(lassos, rows, tau) if anew else torch.ones_like(rows, dtype=torch.bool)
    there = led.nonzero()[:, 0]
    _, led[there] = _follow(lassos, rows[there], tau[there], to=to[there])
    passed.put_back(lassos, ~led)
    return led


@dataclass(frozen=True)
class _Points:
    """Where some rows (index) are: weights, their signs, the hard samples that are held, and the multipliers."""

    rows: Tensor
    parts: tuple[Tensor, ...]

    @classmethod
    def of(cls, lassos: Lassos, rows: Tensor) -> _Points:
        return cls(rows, tuple(part[rows] for part in (lassos.v, lassos.signs, lassos.held, lassos.nu)))

    def put_back(self, lassos: Lassos, chosen: Tensor) -> None:
        """Put those in a mask back there."""
        for values, there in zip((lassos.v, lassos.signs, lassos.held, lassos.nu), self.parts, strict=True):
            values[self.rows[chosen]] = there[chosen]


def _begin(lassos: Lassos, rows: Tensor, tau: Tensor) -> Tensor:
    """Solve the lassos of rows (index) at `tau`, from where they began; a mask of those that were."""
    if not lassos.start.shape[1]:
        return torch.zeros_like(rows, dtype=torch.bool)
    start = lassos.start[rows]
    lassos.v[rows] = start
    lassos.signs[rows] = torch.where(lassos.free[rows], 0.0, start.sign())
    found = _is_optimal(lassos, rows, tau) if lassos.watching else _descend(lassos, rows, tau)
    return found & lassos.real[rows].any(dim=1)


def _is_optimal(lassos: Lassos, rows: Tensor, tau: Tensor) -> Tensor:
    """Whether the weights of the present signs are those at tau, with the hard samples of the start that push."""
    lassos.held[rows] = lassos.began[rows]
    released = _release(lassos, rows, tau)
    v, signs, closed = lassos.v[rows], lassos.signs[rows], ~lassos.real[rows] | lassos.free[rows]
    q, limit = _pull(lassos, rows, tau), tau[:, None] * lassos.costs[rows] * (1 + _NEARLY)
    agree = (v * signs >= -_NEARLY * v.abs().sum(dim=1, keepdim=True)).all(dim=1)
    within = ((q.abs() <= limit) | (signs != 0) | closed).all(dim=1)
    return released & agree & within & (lassos.outside(rows) <= _NEARLY).all(dim=1)


def _release(lassos: Lassos, rows: Tensor, tau: Tensor) -> Tensor:
    """Let go of hard samples that do not push; a mask of the rows where that leads somewhere."""
    found = torch.zeros_like(rows, dtype=torch.bool)
    still = torch.arange(len(rows), device=rows.device)
    for _ in range(_RELEASES):
        still = still[_solved(lassos, rows[still])]
        if not len(still):
            break
        some = rows[still]
        lassos.take(some, tau[still])
        held = lassos.held[some]
        pressure = torch.where(held, lassos.nu[some] * lassos.pull[some], 0.0)
        wrong = pressure < -_NEARLY * pressure.abs().sum(dim=1, keepdim=True)
        lassos.held[some] = held & ~wrong
        again = wrong.any(dim=1)
        found[still[~again]] = True
        still = still[again]
    return found


def _descend(lassos: Lassos, rows: Tensor, tau: Tensor) -> Tensor:
    """The weights at tau of rows (index); a mask of those that were found."""
    found = torch.zeros_like(rows, dtype=torch.bool)
    still = ((lassos.v[rows] != 0).sum(dim=1) <= lassos.rank[rows] + _TOO_MANY).nonzero()[:, 0]
    v = lassos.v[rows[still]]
    for _ in range(_CHANGES):
        open_rows = _solved(lassos, rows[still])
        still, v = still[open_rows], v[open_rows]
        if not len(still):
            break
        some = rows[still]
        signs = lassos.signs[some]
        target = lassos.v0[some] - tau[still, None] * lassos.v1[some]
        step = target - v
        crossing = torch.where(target * signs < 0, (v / -step).clamp(min=0), torch.inf)
        least, first = crossing.min(dim=1, keepdim=True)
        stops = least <= 1
        v = torch.where(stops, v + least.clamp(max=1.0) * step, target)
        reached = torch.zeros_like(stops.expand_as(v)).scatter(1, first, stops)
        q, limit = _pull(lassos, some, tau[still]), tau[still, None] * lassos.costs[some] * (1 + _EQUAL)
        closed = (signs != 0) | lassos.free[some] | ~lassos.real[some]
        most, worst = torch.where(closed, -1.0, q.abs() - limit).max(dim=1, keepdim=True)
        enters = ~stops & (most > 0)
        entered = torch.zeros_like(reached).scatter(1, worst, enters)
        v = torch.where(reached, 0.0, v)
        lassos.signs[some] = torch.where(reached, 0.0, torch.where(entered, q.sign(), signs))
        done = ~(stops | enters)[:, 0]
        lassos.take(some[done], tau[still[done]])
        found[still[done]] = True
        still, v = still[~done], v[~done]
    return found


def _follow(
    lassos: Lassos, rows: Tensor, tau: Tensor, *, square: Tensor | None = None, to: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Lead rows (index) along their paths from the weights at tau: to the squared distance `square`, or to a tau `to`,
    (rows,). Returns the taus that were reached, and a mask of the rows where they were."""
    tau, found = tau.clone(), torch.zeros_like(rows, dtype=torch.bool)
    goal = square if to is None else to
    assert goal is not None
    c0, c1, c2 = lassos.coefficients[rows].unbind(dim=1)
    lower = goal < (c0 + (c1 + c2 * tau) * tau if to is None else tau)  # the distance grows with tau
    changed = torch.full_like(rows, -1)
    still = torch.arange(len(rows), device=rows.device)
    for _ in range(_BENDS):
        if to is None:  # farther than zero weights are is nothing
            still = still[lower[still] | lassos.signs[rows[still]].any(dim=1)]
        if not len(still):
            break
        some = rows[still]
        end = tau_at(lassos.coefficients[some], goal[still]) if to is None else goal[still]
        place, bend = _next_bend(lassos, some, tau[still], lower[still], changed[still])
        arrived = torch.where(lower[still], bend <= end, bend >= end)
        lassos.take(some[arrived], end[arrived])
        tau[still] = torch.where(arrived, end, bend)
        found[still[arrived]] = end[arrived] > 0
        changed[still] = place
        still, place = still[~arrived], place[~arrived]
        _change(lassos, rows[still], place, tau[still])
        still = still[_solved(lassos, rows[still])]
    return tau, found


def _solved(lassos: Lassos, rows: Tensor) -> Tensor:
    """Solve rows (index) for their present signs; a mask of those with a solution."""
    if len(rows):
        lassos.solve(rows)
    return ~lassos.hopeless[rows]


def _pull(lassos: Lassos, rows: Tensor, tau: Tensor) -> Tensor:
    """X_A' (b - X_A u) less the multipliers' part, of rows (index) at tau (rows,)."""
    return lassos.q0[rows] + tau[:, None] * lassos.q1[rows]


def _change(lassos: Lassos, rows: Tensor, places: Tensor, tau: Tensor) -> None:
    """Let a feature of each row (index) in or out, or, counted from the last feature on, hold a hard sample or let it
    go."""
    width = lassos.v.shape[1]
    hard = places >= width
    lassos.held[rows[hard], places[hard] - width] ^= True
    rows, places, tau = rows[~hard], places[~hard], tau[~hard]
    q = lassos.q0[rows, places] + tau * lassos.q1[rows, places]
    lassos.signs[rows, places] = torch.where(lassos.signs[rows, places] != 0, 0.0, q.sign())


def _next_bend(lassos: Lassos, rows: Tensor, tau: Tensor, lower: Tensor, changed: Tensor) -> tuple[Tensor, Tensor]:
    """What changes first in each row (index) below or above its tau, as `_change` counts, and where; `changed` just
    did at tau."""
    signs, costs, q0, q1 = (part[rows] for part in (lassos.signs, lassos.costs, lassos.q0, lassos.q1))
    inside = signs != 0
    zero = torch.where(inside, lassos.v0[rows] / lassos.v1[rows], torch.nan)
    limits = torch.stack([q0 / (costs - q1), -q0 / (costs + q1)])
    bends = torch.cat([zero[None], torch.where(inside | lassos.free[rows], torch.nan, limits)])
    if lassos.watching:
        bends = torch.cat([bends, _hard_bends(lassos, rows).expand(3, -1, -1)], dim=2)
    usable = torch.where(lower[:, None], (bends < tau[:, None]) & (bends > 0), bends > tau[:, None])
    here = torch.zeros_like(usable[0]).scatter(1, changed.clamp(min=0)[:, None], (changed >= 0)[:, None])
    usable &= ~here | ((bends - tau[:, None]).abs() > _EQUAL * tau[:, None])
    away = torch.where(usable, torch.where(lower[:, None], tau[:, None] - bends, bends - tau[:, None]), torch.inf)
    nearest, kind = away.min(dim=0)
    _, place = nearest.min(dim=1)
    bend = bends.gather(0, kind[None])[0].gather(1, place[:, None])[:, 0]
    nowhere = nearest.gather(1, place[:, None])[:, 0] == torch.inf
    return place, torch.where(nowhere, torch.where(lower, 0.0, torch.inf), bend)


def _hard_bends(lassos: Lassos, rows: Tensor) -> Tensor:
    """Where a held sample's multiplier is zero, and where a watched one reaches its bound, (rows, near)."""
    reached = (lassos.product(rows, lassos.v0[rows]) - lassos.edge[rows]) / lassos.product(rows, lassos.v1[rows])
    released = torch.where(lassos.pull[rows] == 0, torch.nan, lassos.nu0[rows] / lassos.nu1[rows])
    return torch.where(lassos.held[rows], released, reached)
