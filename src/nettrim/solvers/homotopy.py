"""A row's lasso where the primal-dual active set does not settle: one change of the support at a time, never uphill.

With the quadratic |X_A u - b|^2 of one row fixed (see `polish`), the weights at a given tau are found by the primal
active-set method: go towards the minimum on the present support, stop at the first weight that reaches zero and drop
it; at the minimum let the worst feature in. The objective falls in every step, so no support comes back. From there
tau is led to the value that meets epsilon along the weights' path, which is piecewise linear in tau: it bends where a
weight reaches zero or a feature its limit, a hard sample its bound or its multiplier zero. With hard samples the path
has to begin at optimal weights, as those of a neighbouring epsilon are: the samples that count are the same there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nettrim.solvers.inner import RowModel

_CHANGES = 30  # of the support in each part, after which a row is given up: from near by two or three do
_NEARLY = 1e-4  # relative: by how much weights at hand may miss the conditions of optimal ones
_RELEASES = 4  # rounds in which hard samples that do not push are let go
_EQUAL = 1e-9  # relative: limits and breaks that count as the same


def solve_row(model: RowModel, start: Tensor, tau: float, square: float | None) -> float | None:
    """Solve the lasso of `model` from the weights `start` at `tau`, then at the tau where the squared distance is
    `square` (None: stay there). Returns that tau, or None where there is none or too many changes are needed; the
    model's point is then what it was.

    With hard samples `start` has to be optimal at `tau`. The Gram matrix should be exact where few samples count:
    supports are then as large as its rank.
    """
    passed = model.state
    there = None
    if _begin(model, start, tau):
        there = tau if square is None else _follow(model, tau, square=square)
    if there is None:
        model.state = passed
    return there


def lead_row(model: RowModel, tau: float, to: float, start: Tensor | None = None) -> bool:
    """Follow the weights of a model solved at `tau`, or from the weights `start` solved there, to another tau; False
    where too many changes are needed: the model's point is then what it was."""
    passed = model.state
    if (start is None or _begin(model, start, tau)) and _follow(model, tau, to=to) is not None:
        return True
    model.state = passed
    return False


def _begin(model: RowModel, start: Tensor, tau: float) -> bool:
    """Solve the lasso of `model` at `tau`, from the weights `start`; False where it is not found."""
    if not len(start):
        return False
    model.v, model.signs = start, torch.where(model.free, 0.0, start.sign())
    return _descend(model, tau) if model.binding is None else _is_optimal(model, tau)


def _is_optimal(model: RowModel, tau: float) -> bool:
    """Whether the weights of the present signs are those at tau, with the hard samples of the start that push."""
    model.hold(model.began)
    if not _release(model, tau):
        return False
    outside = (model.around.T @ model.v - model.edge) * model.pull
    within = (model.q0 + tau * model.q1).abs() <= tau * model.costs * (1 + _NEARLY)
    return (
        bool((model.v * model.signs >= -_NEARLY * model.v.abs().sum()).all())
        and bool((within | (model.signs != 0) | model.free).all())
        and bool((outside <= _NEARLY).all())
    )


def _release(model: RowModel, tau: float) -> bool:
    """Let go of hard samples that do not push; False where that leads nowhere."""
    for _ in range(_RELEASES):
        model.solve()
        if model.hopeless:
            return False
        model.take(tau)
        pressure = model.nu * model.pull[model.held]
        wrong = pressure < -_NEARLY * pressure.abs().sum()
        if not bool(wrong.any()):
            return True
        model.hold(model.held.index_fill(0, model.held.nonzero()[wrong, 0], False))
    return False


def _descend(model: RowModel, tau: float) -> bool:
    """The weights at tau; False where they are not found."""
    v = model.v
    for _ in range(_CHANGES):
        model.solve()
        if model.hopeless:
            return False
        target = model.v0 - tau * model.v1
        step = target - v
        crossing = torch.where(target * model.signs < 0, (v / -step).clamp(min=0), torch.inf)
        least, place = crossing.min(dim=0)
        if float(least) <= 1:
            v = v + float(least) * step
            v[place] = 0.0
            model.signs = model.signs.index_fill(0, place, 0.0)
            continue
        v = target
        q = model.q0 + tau * model.q1
        excess = torch.where((model.signs == 0) & ~model.free, q.abs() - tau * model.costs * (1 + _EQUAL), -1.0)
        most, place = excess.max(dim=0)
        if float(most) <= 0:
            model.take(tau)
            return True
        model.signs = model.signs.index_put((place,), q[place].sign())
    return False


def _follow(model: RowModel, tau: float, *, square: float | None = None, to: float = 0.0) -> float | None:
    """Lead tau along the path from the weights at tau: to the squared distance `square`, or without one `to` a tau."""
    changed = -1
    c0, c1, c2 = model.coefficients
    # the distance grows with tau
    lower = to < tau if square is None else c0 + (c1 + c2 * tau) * tau > square
    for _ in range(_CHANGES):
        if square is not None and not lower and not bool(model.signs.any()):  # farther than zero weights are
            return None
        end = to if square is None else _root(model.coefficients, square)
        place, bend = _next_bend(model, tau, lower, changed)
        if (bend <= end) if lower else (bend >= end):
            model.take(end)
            return end or None
        tau, changed = bend, place
        _change(model, place, tau)
        model.solve()
        if model.hopeless:
            return None
    return None


def _change(model: RowModel, place: int, tau: float) -> None:
    """Let a feature in or out, or, counted from the last feature on, hold a hard sample or let it go."""
    if place >= len(model.signs):
        held = model.held.clone()
        held[place - len(model.signs)] ^= True
        model.hold(held)
        return
    sign = 0.0 if float(model.signs[place]) else float((model.q0[place] + tau * model.q1[place]).sign())
    model.signs = model.signs.index_fill(0, torch.tensor(place, device=model.signs.device), sign)


def _root(coefficients: tuple[float, float, float], square: float) -> float:
    """The tau of a squared distance on the present piece; 0 where the piece does not come that near."""
    c0, c1, c2 = coefficients
    if square <= c0 or c2 <= 0:
        return 0.0
    return max((max(c1**2 / 4 + c2 * (square - c0), 0.0) ** 0.5 - c1 / 2) / c2, 0.0)


def _next_bend(model: RowModel, tau: float, lower: bool, changed: int) -> tuple[int, float]:
    """What changes first below or above tau, as `_change` counts, and where; `changed` just did at tau."""
    inside = model.signs != 0
    zero = torch.where(inside, model.v0 / model.v1, torch.nan)
    limits = torch.where(
        inside | model.free,
        torch.nan,
        torch.stack([model.q0 / (model.costs - model.q1), -model.q0 / (model.costs + model.q1)]),
    )
    bends = torch.cat([zero[None], limits])
    if model.binding is not None:
        bends = torch.cat([bends, _hard_bends(model).expand(3, -1)], dim=1)
    usable = (bends < tau) & (bends > 0) if lower else bends > tau
    if changed >= 0:
        usable[:, changed] &= (bends[:, changed] - tau).abs() > _EQUAL * tau
    bends = torch.where(usable, bends, 0.0 if lower else torch.inf)
    where = int(bends.argmax() if lower else bends.argmin())
    return where % bends.shape[1], float(bends.flatten()[where])


def _hard_bends(model: RowModel) -> Tensor:
    """Where a held sample's multiplier is zero, and where a watched one reaches its bound, (near,)."""
    reached = (model.around.T @ model.v0 - model.edge) / (model.around.T @ model.v1)
    bends = torch.where(model.held, torch.nan, reached)
    bends[model.held] = torch.where(model.pull[model.held] == 0, torch.nan, model.nu0 / model.nu1)
    return bends
