"""Polish: a Newton active-set method in float64 that turns ADMM's guess into a vertex with a tiny gap.

Outer step: linearise which samples count (A, those at a distance from their box, and B, hard samples that bind). With A
fixed, the squared distance of a row is the quadratic |X_A u - b|^2, known on a working set of features by its Gram
matrix, which is kept between steps and updated by the samples and features that changed.

Inner passes: solve that quadratic's lasso by a primal-dual active set. With support S and signs s fixed,

    X_A,S' (b - X_A u) - X_B,S' nu = tau s costs,    X_B u = bound_B,        tau = 1 / (2 lambda),

is affine in tau and the squared distance of a budget group a quadratic in tau, so hitting eps exactly costs one scalar
equation; the rows of a joint budget share that tau and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nettrim.certificates.program import clip_multipliers
from nettrim.programs.penalties import L1
from nettrim.solvers.curvature import Curvature, Curvatures, Point, extended, nothing_known
from nettrim.solvers.guess import Guess, roughly_pulled
from nettrim.solvers.inner import Lassos
from nettrim.solvers.judge import Polished, judge, l1_of_rows, misses, relative_gap
from nettrim.solvers.padding import most, places
from nettrim.solvers.passes import solve_lassos
from nettrim.solvers.problem import Problem

FAR_STEPS = 20  # of a polish from a guess made elsewhere, which may be far
_GROWN = 1.5  # by how much Gram matrices may grow with their working sets
_ZERO = 1e-12  # relative to the largest weight
_FURTHER, _FURTHEST = 8.0, 1e-3  # growth and limit of the margin where a cast leaves the constraint
_AROUND, _MORE = 0.5, 20  # hard samples besides those that bind that inner passes watch: per feature, and on top of it
_DONE = 1e-3  # share of the tolerance at which a group stops
_PATIENCE = 4  # steps without progress
_LANDED = 0.1  # share of the tolerance at which a group on a vertex may stop
_UPHILL = 1e-9  # relative: what rounding adds
_SHARES = (0.7, 0.5, 0.35, 0.25, 0.12, 0.06, 0.03, 0.01)  # of a step that leads uphill, tried in its place
_BY_ROW = (  # of a state
    "rows", "costs", "u", "z", "outside", "signs", "gradient", "square", "t", "wanted", "binding", "nu", "unsettled",
    "strayed",
)  # fmt: skip
_BY_GROUP = ("groups", "tau", "margin", "stalled", "fewest")
_NEAR = 0.97  # features whose multiplier exceeds this share of its limit join the working set early
_NEAR_AT_FIRST = 0.8  # likewise for a guess, whose support is often a fifth of the vertex's
_WIDER, _BESIDES = 2, 32  # features that join the working set in a step, at most: per one of the support, and besides


@dataclass
class _State:
    """Where the rows still open are; budget groups are numbered anew among them."""

    problem: Problem  # of these rows
    rows: Tensor  # their places in the whole, (rows,)
    groups: Tensor  # likewise of their groups, (groups,)
    costs: Tensor  # (rows, in)
    u: Tensor  # (rows, in)
    z: Tensor  # X u, (rows, samples)
    outside: Tensor  # mask of the samples whose distance counts and is not zero, (rows, samples)
    signs: Tensor  # (rows, in)
    tau: Tensor  # (groups,)
    margin: Tensor  # by how much budgets are aimed at from inside, relative, (groups,)
    gradient: Tensor  # -X' of the distances counted, (rows, in)
    square: Tensor  # the sum of their squares, (rows,)
    t: Tensor  # X' of the multipliers, (rows, in)
    wanted: Tensor  # mask of the working set, (rows, in)
    binding: Tensor | None  # (rows, samples)
    nu: Tensor | None  # (rows, samples)
    stalled: Tensor  # steps without progress, (groups,)
    fewest: Tensor  # changes of signs and of what binds in a step, (groups,)
    unsettled: Tensor  # whether the last inner passes ended before a vertex, (rows,)
    strayed: Tensor  # whether a joint budget waited for the row in vain, or gave up on its account, (rows,)
    tiny: float  # weights below are zero to rounding
    waiting: bool  # whether a shared tau waits for its rows from the first pass on
    curvatures: list[Curvature] | None = None  # by row

    def point(self, row: int) -> Point:
        """Where a row is."""
        return Point(self.u[row].clone(), self.z[row].clone(), self.gradient[row].clone(), self.t[row].clone())

    def only(self, open_groups: Tensor) -> _State:
        """The rows of those groups alone that are in the mask `open_groups`."""
        rows = open_groups[self.problem.groups].nonzero()[:, 0]
        parts: dict[str, Any] = {name: getattr(self, name)[open_groups] for name in _BY_GROUP}
        for name in _BY_ROW:
            values = getattr(self, name)
            parts[name] = None if values is None else values[rows]
        curvatures = None if self.curvatures is None else [self.curvatures[row] for row in rows.tolist()]
        return replace(self, problem=self.problem.select(rows), curvatures=curvatures, **parts)


def polish(
    problem: Problem,
    guess: Guess,
    tolerance: float,
    max_steps: int = 10,
    curvatures: Curvatures | None = None,
    *,
    waiting: bool = False,
) -> Polished:
    """Run outer steps on as many rows at once as the memory budget has room for; budget groups stop one by one,
    certified or given back.

    `curvatures`: what is known of the rows; what the polish comes to know is left there. `waiting`: a tau that rows
    share is near, nearer than their weights, and moves only where these have settled.
    """
    objective = problem.lower.new_full((problem.group_count,), torch.inf)
    bound = torch.zeros_like(objective)
    strayed = torch.zeros(problem.rows, dtype=torch.bool, device=bound.device)
    found = Polished(guess.u.clone(), objective, guess.dual.clone(), bound, 0, guess.tau.clone(), strayed)
    steps = [_run(part, found, tolerance, max_steps, curvatures) for part in _parts(_begin(problem, guess, waiting))]
    return replace(found, steps=max(steps))


def _parts(state: _State) -> Iterator[_State]:
    """The rows in parts whose Gram matrices fit into their share of the memory budget; budget groups stay whole."""
    squares = state.wanted.sum(dim=1).to(torch.float64) ** 2
    hard = 1 if state.problem.soft is None else 2  # hard samples are watched on as many features
    sizes = state.problem.group_sum(8 * _GROWN * hard * squares)
    ends = sizes.cumsum(0)
    room = max(state.problem.design.matrix_bytes, 1)
    if float(ends[-1]) <= room:
        yield state
        return
    number = ((ends - sizes / 2) / room).floor()  # of the part that each group belongs to
    for part in number.unique().tolist():
        yield state.only(number == part)


def _run(state: _State, found: Polished, tolerance: float, max_steps: int, curvatures: Curvatures | None) -> int:
    """The outer steps of some rows; the best of them go into `found`. Returns how many there were."""
    weight, dual, tau = found.weight, found.dual, found.tau
    objective, bound, strayed = found.objective, found.bound, found.strayed
    assert tau is not None and strayed is not None
    steps = 0
    while steps < max_steps and len(state.rows):
        if steps:
            state.wanted = _wanted(state.signs, state.costs, state.t, _NEAR)
        steps += 1
        known = None if curvatures is None else curvatures.of(state.rows)
        hopeless, changed, soft = _advance(state, known, roughly=steps == 1)
        value, proved, present = _assess(state, soft)
        groups = state.groups
        before = relative_gap(objective[groups], bound[groups])
        better, tighter = (value < objective[groups]) & ~hopeless, (proved > bound[groups]) & ~hopeless
        objective[groups[better]], bound[groups[tighter]] = value[better], proved[tighter]
        tau[groups], strayed[state.rows] = state.tau, state.strayed
        rows_better, rows_tighter = better[state.problem.groups], tighter[state.problem.groups]
        weight[state.rows[rows_better]] = state.u[rows_better]
        dual[state.rows[rows_tighter]] = present[rows_tighter]
        gap = relative_gap(objective[groups], bound[groups])
        moved = state.problem.group_sum((_update_binding(state) + changed).to(gap))
        progress = ((gap < 0.3 * before) & (gap < torch.inf)) | (moved < state.fewest)
        state.stalled, state.fewest = torch.where(progress, 0, state.stalled + 1), torch.minimum(state.fewest, moved)
        at_vertex = ~_having(state.problem, state.unsettled)  # where the inner passes ended
        landed = (at_vertex | (moved == 0)) & (gap <= _LANDED * tolerance)
        done = hopeless | (gap <= _DONE * tolerance) | landed | (state.stalled >= _PATIENCE)
        if known is not None and state.curvatures is not None:
            ended = done[state.problem.groups].tolist()
            for row, curvature in enumerate(state.curvatures):
                if steps == max_steps or ended[row]:
                    known.keep(row, replace(curvature, point=state.point(row)))
        if bool(done.any()):
            state = state.only(~done)
    return steps


def _begin(problem: Problem, guess: Guess, waiting: bool) -> _State:
    assert isinstance(problem.penalty, L1)
    design = problem.design
    z = design.forward(guess.u) if guess.product is None else guess.product
    soft, _ = problem.distance(z)
    zero = torch.zeros_like(guess.tau)
    costs = problem.penalty.full(torch.zeros_like(guess.u)).expand(guess.u.shape)
    signs = guess.u.sign()
    t = roughly_pulled(problem, guess.dual) if guess.pull is None else guess.pull
    return _State(
        problem,
        rows=torch.arange(problem.rows, device=z.device),
        groups=torch.arange(problem.group_count, device=z.device),
        costs=costs,
        u=guess.u.clone(),
        z=z,
        outside=soft != 0,
        signs=signs,
        tau=guess.tau.clone(),
        margin=zero + problem.margin,
        gradient=design.back(-soft) if guess.gradient is None else guess.gradient,
        square=(soft**2).sum(dim=1),
        t=t,
        wanted=_wanted(signs, costs, t, _NEAR_AT_FIRST),
        binding=guess.binding,
        nu=None if problem.soft is None else torch.zeros_like(problem.lower),
        stalled=zero.to(torch.int64),
        fewest=zero + torch.inf,
        unsettled=torch.zeros(problem.rows, dtype=torch.bool, device=z.device),
        strayed=torch.zeros(problem.rows, dtype=torch.bool, device=z.device),
        tiny=_ZERO * float(guess.u.abs().max()),
        waiting=waiting,
    )


def _advance(state: _State, curvatures: Curvatures | None, *, roughly: bool) -> tuple[Tensor, Tensor, Tensor]:
    """One outer step: a mask of the groups that it gave up, how many signs of each row changed, and the distances that
    count where it ended (rows, samples)."""
    problem = state.problem
    signs, u, z = state.signs, state.u, state.z
    lassos = _lassos(state, curvatures)
    solve_lassos(problem, lassos, state.tau, state.margin, roughly=roughly, waiting=state.waiting)
    hopeless = _having(problem, lassos.hopeless)
    _take(state, lassos)
    state.z = problem.design.forward(state.u)
    soft, _ = problem.distance(state.z)
    square = (soft**2).sum(dim=1)
    if problem.soft is None:
        _shorten(state, u, z, soft, square)
    state.square = square
    return hopeless, (signs != state.signs).sum(dim=1), soft


def _having(problem: Problem, rows: Tensor) -> Tensor:
    """Mask of the groups with a row in the mask `rows`."""
    found = torch.zeros(problem.group_count, dtype=torch.bool, device=rows.device)
    found[problem.groups[rows]] = True
    return found


def _assess(state: _State, soft: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The objective of the present point after the cast and the bound that its multipliers prove, (groups,), and the
    multipliers. `soft` are its distances that count."""
    problem = state.problem
    state.outside = soft != 0
    state.gradient = problem.design.back(-soft)
    present, pushed = _multipliers(state, soft)
    state.t = state.gradient / state.tau[problem.groups][:, None].clamp(min=1e-300)
    if pushed is not None:
        state.t = state.t + problem.design.back(pushed)
    within = _within(problem, state.square)
    squares, worst = _after_cast(state, within)
    value, proved = judge(problem, state.u, squares, worst, present, state.t, state.costs)
    if problem.epsilon is not None:  # what the cast breaks is aimed further inside
        broken = within & ~_within(problem, squares)
        state.margin = torch.where(broken, (state.margin * _FURTHER).clamp(max=_FURTHEST), state.margin)
    return value, proved, present


def _within(problem: Problem, squares: Tensor) -> Tensor:
    """Mask of the groups whose squared distances `squares` (rows,) are within their budget."""
    sums = problem.group_sum(squares).sqrt()
    return torch.ones_like(sums, dtype=torch.bool) if problem.epsilon is None else sums <= problem.epsilon


def _after_cast(state: _State, within: Tensor) -> tuple[Tensor, Tensor]:
    """`misses` of the present point after the cast; of groups that are not `within` their budget before it, the squares
    that they have there."""
    problem = state.problem
    if bool(within.all()):
        return misses(problem, state.u, state.z)
    rows = within[problem.groups].nonzero()[:, 0]
    squares, worst = state.square, torch.zeros_like(state.square)
    if len(rows):
        there = misses(problem.select(rows), state.u[rows], state.z[rows])
        squares, worst = (old.index_copy(0, rows, new) for old, new in zip((squares, worst), there, strict=True))
    return squares, worst


def _lassos(state: _State, curvatures: Curvatures | None) -> Lassos:
    """The rows' quadratics as they are now: samples that count, working sets, gradients."""
    problem = state.problem
    active = state.outside | (problem.lower == problem.upper)
    if problem.soft is not None:
        active &= problem.soft
    known = state.curvatures or [_known(problem, curvatures, row, state.wanted[row]) for row in range(problem.rows)]
    state.curvatures = extended(known, problem.design, state.wanted, active)
    lassos = Lassos(problem.design, state.curvatures, state.costs, state.tiny)
    lassos.strayed |= state.strayed
    if state.binding is not None and problem.soft is not None:
        _watch(state, lassos, state.binding, problem.soft)
    lassos.begin(state.u, state.signs, state.gradient, state.square, state.t)
    return lassos


def _wanted(signs: Tensor, costs: Tensor, t: Tensor, near: float) -> Tensor:
    """Mask of the working set, (rows, in): the support, and of what exceeds the share `near` of its limit the most."""
    wanted = ((signs != 0) | (costs == 0)) & ~torch.isinf(costs)
    excess = torch.where(wanted, 0.0, t.abs() - near * costs)
    return wanted | most(excess, _WIDER * wanted.sum(dim=1) + _BESIDES)


def _known(problem: Problem, curvatures: Curvatures | None, row: int, wanted: Tensor) -> Curvature:
    known = None if curvatures is None else curvatures.take(row)
    return nothing_known(problem.design) if known is None else known.only(wanted)


def _watch(state: _State, lassos: Lassos, held: Tensor, soft: Tensor) -> None:
    """Let each row hold the hard samples `held` (rows, samples), and watch those nearest to their bounds besides."""
    problem, z = state.problem, state.z
    slack = torch.where(soft | held, torch.inf, torch.minimum(problem.upper - z, z - problem.lower))
    counts = (_AROUND * lassos.real.sum(dim=1)).to(torch.int64) + _MORE
    near, watched = places(held | most(-slack, counts, above=-torch.inf))
    z, lower, upper = (values.gather(1, near) for values in (z, problem.lower, problem.upper))
    top = _at_upper(z, lower, upper)
    pull = torch.where(top, 1.0, -1.0).to(z.dtype).masked_fill(lower == upper, 0.0)
    margin = problem.hard_margin * state.u.norm(dim=1).clamp(min=1.0)
    inside = margin[:, None] * (lower != upper)
    edge = torch.where(top, upper - inside, lower + inside)
    edge, pull = (torch.where(watched, values, 0.0) for values in (edge, pull))
    lassos.bind(near, watched, watched & held.gather(1, near), edge, pull, margin)


def _shorten(state: _State, u: Tensor, z: Tensor, soft: Tensor, square: Tensor) -> None:
    """Go back towards the weights `u` and responses `z` of before where the whole step leads uphill; the distances
    `soft` (rows, samples) and the sums of their squares, `square` (rows,), with it.

    Other samples count at its end than in the quadratic, so half the squared distance plus tau |u| may grow; from the
    start towards the minimum of the quadratic it falls at first.
    """
    problem, tau = state.problem, state.tau[state.problem.groups]
    whole = 0.5 * square + tau * l1_of_rows(state.u, state.costs)
    start = 0.5 * state.square + tau * l1_of_rows(u, state.costs)
    rows = (whole > start * (1 + _UPHILL)).nonzero()[:, 0]
    if not len(rows):
        return
    weights, responses = ((before[rows], after[rows]) for before, after in ((u, state.u), (z, state.z)))
    lower, upper, tau, costs = (values[rows] for values in (problem.lower, problem.upper, tau, state.costs))

    def at(share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight, response = torch.lerp(*weights, share), torch.lerp(*responses, share)
        return weight, response, response - response.clamp(lower, upper)

    best, share = torch.full_like(tau, torch.inf), torch.ones_like(tau)
    for part in _SHARES:
        weight, _, distance = at(tau.new_tensor(part))
        there = 0.5 * (distance**2).sum(dim=1) + tau * l1_of_rows(weight, costs)
        share, best = torch.where(there < best, part, share), torch.minimum(there, best)
    state.u, state.z = state.u.clone(), state.z.clone()
    state.u[rows], state.z[rows], soft[rows] = at(share[:, None])
    square[rows] = (soft[rows] ** 2).sum(dim=1)
    state.signs[rows] = torch.where(costs == 0, 0.0, state.u[rows].sign())


def _take(state: _State, lassos: Lassos) -> None:
    """Put the inner solutions into the state."""
    zero = torch.zeros_like(state.u)
    v = torch.where(lassos.v.abs() <= state.tiny, 0.0, lassos.v)
    state.u = zero.scatter_add(1, lassos.features, v)  # padding adds zero
    state.signs = zero.scatter_add(1, lassos.features, lassos.signs)
    if state.nu is not None:
        state.nu = torch.zeros_like(state.nu).scatter_add(1, lassos.near, lassos.nu)
    state.unsettled, state.strayed = lassos.dirty, lassos.strayed | lassos.hopeless
    state.curvatures = [lassos.curvature(row) for row in range(lassos.rows)]


def _multipliers(state: _State, soft: Tensor) -> tuple[Tensor, Tensor | None]:
    """The multipliers of the present point, and their part on hard samples."""
    problem = state.problem
    tau = state.tau[problem.groups][:, None].clamp(min=1e-300)
    dual = -soft / tau
    if state.nu is not None:
        part = clip_multipliers(-state.nu / tau, problem.lower, problem.upper)
        return dual + part, part
    return dual, None


def _at_upper(z: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    return (z - upper).abs() <= (z - lower).abs()


def _update_binding(state: _State) -> Tensor:
    """Hard samples bind where the point is outside their box or their multiplier pushes inwards; how many of each row
    came or went."""
    problem = state.problem
    if state.binding is None or state.nu is None or problem.soft is None:
        return torch.zeros(problem.rows, dtype=torch.int64, device=state.u.device)
    z = state.z
    outside = ~problem.soft & ((z > problem.upper + 1e-12) | (z < problem.lower - 1e-12))
    equal = problem.lower == problem.upper
    binding = outside | (state.nu != 0) | (state.binding & equal)
    changed = (binding != state.binding).sum(dim=1)
    state.binding = binding
    return changed
