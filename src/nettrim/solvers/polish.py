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

from dataclasses import dataclass, field

import torch
from torch import Tensor

from nettrim.certificates.program import clip_multipliers
from nettrim.programs.penalties import L1
from nettrim.solvers.homotopy import solve_row
from nettrim.solvers.inner import RowModel, solve_passes
from nettrim.solvers.problem import Problem

AIM = 0.5  # share of the tolerance at which a group is finished, so that the cast keeps it there
FAR_STEPS = 20  # of a polish from a guess made elsewhere, which may be far
_ZERO = 1e-12  # relative to the largest weight
_FREE = 1e-7  # of a unit cost: what rounding leaves on free columns
_FURTHER, _FURTHEST = 8.0, 1e-3  # growth and limit of the margin where a cast leaves the constraint
_AROUND = 2  # hard samples besides those that bind, per feature of the working set, that inner passes watch
_SETTLED = 0.1  # share of the tolerance at which a group whose signs stay may stop
_UPHILL = 1e-9  # relative: what rounding adds
_SHARES = (0.7, 0.5, 0.35, 0.25, 0.12, 0.06, 0.03, 0.01)  # of a step that leads uphill, tried in its place
_NEAR = 0.97  # features whose multiplier exceeds this share of its limit join the working set early
_NEAR_AT_FIRST = 0.65  # likewise for a guess, whose support is often a fifth of the vertex's


@dataclass
class Guess:
    """Where a polish starts: weights, multipliers, hard samples that bind, tau per group."""

    u: Tensor  # (rows, in) float64, sparse
    dual: Tensor  # (rows, samples)
    binding: Tensor | None  # (rows, samples) bool
    tau: Tensor  # (groups,)


@dataclass(frozen=True)
class Polished:
    """The best weights and the best multipliers of each group that the polish saw; they need not come from one step."""

    weight: Tensor  # (rows, in)
    objective: Tensor  # (groups,) of `weight`, inf where no feasible point was seen
    dual: Tensor  # (rows, samples)
    bound: Tensor  # (groups,) that `dual` proves, at least 0
    steps: int
    tau: Tensor | None = None  # (groups,) of the last step

    @property
    def gap(self) -> Tensor:
        """(objective - bound) / objective of each group, inf without a feasible point."""
        return relative_gap(self.objective, self.bound)


def binding(problem: Problem, dual: Tensor, u: Tensor, least: float = 1e-6) -> Tensor | None:
    """Hard samples that bind (rows, samples), as multipliers tell: those above `least` times a row's largest, and fewer
    than the support can meet. None without hard samples. Far smaller ones are what a central path leaves."""
    if problem.soft is None:
        return None
    pressure = torch.where(problem.soft, 0.0, dual.abs())
    limit = pressure.sort(dim=1, descending=True).values
    support = ((u != 0).sum(dim=1, keepdim=True) - 1).clamp(min=0, max=limit.shape[1] - 1)
    bar = torch.maximum(limit.gather(1, support), least * limit[:, :1])
    return (pressure > bar) | (~problem.soft & (problem.lower == problem.upper))


def relative_gap(objective: Tensor, bound: Tensor) -> Tensor:
    """(objective - bound) / objective; 0 for an objective of zero, inf for an infinite one."""
    gap = (objective - bound) / objective.clamp(min=1e-300)
    return torch.where(objective == torch.inf, torch.inf, torch.where(objective > 0, gap, 0.0))


@dataclass
class _State:
    u: Tensor
    z: Tensor
    signs: Tensor  # (rows, in)
    tau: Tensor
    binding: Tensor | None
    nu: Tensor | None
    tiny: float = 0.0  # weights below are zero to rounding
    models: dict[int, RowModel] = field(default_factory=dict)


def polish(problem: Problem, guess: Guess, tolerance: float, max_steps: int = 10) -> Polished:
    """Run outer steps on all rows at once; budget groups stop one by one, certified or given back."""
    like = problem.lower.new_zeros(guess.u.shape)
    assert isinstance(problem.penalty, L1)
    costs = problem.penalty.full(like).expand(guess.u.shape)
    free = costs == 0
    state = _State(
        guess.u.clone(),
        problem.design.forward(guess.u),
        guess.u.sign(),
        guess.tau.clone(),
        guess.binding,
        None if problem.soft is None else torch.zeros_like(problem.lower),
        _ZERO * float(guess.u.abs().max()),
    )
    weight, dual = guess.u.clone(), guess.dual.clone()
    objective = problem.lower.new_full((problem.group_count,), torch.inf)
    bound = torch.zeros_like(objective)
    live = torch.ones(problem.group_count, dtype=torch.bool, device=objective.device)
    stalled = torch.zeros(problem.group_count, dtype=torch.int64, device=objective.device)
    fewest = torch.full_like(objective, torch.inf)  # changes of signs and of what binds in a step
    seen = state.z.clone()  # what the weights give after the cast
    soft, _ = problem.distance(state.z)
    gradient = problem.design.back(-soft)
    t = problem.design.back(guess.dual)
    margin = torch.full_like(objective, problem.margin)
    steps = 0
    while steps < max_steps:
        steps += 1
        rows = live[problem.groups].nonzero()[:, 0].tolist()
        before, u_before, z_before = state.signs.clone(), state.u[rows], state.z[rows]
        for row in rows:
            _refresh(problem, state, costs, free, gradient[row], float((soft[row] ** 2).sum()), t[row], row)
        _solve_inner(problem, state, rows, margin)
        hopeless = problem.groups[[row for row in rows if state.models[row].hopeless]]
        live[hopeless] = False
        for row in rows:
            _take(problem, state, row)
        state.z[rows] = problem.design.forward(state.u[rows])
        if problem.soft is None:
            _shorten(problem, state, rows, u_before, z_before, costs)
        soft, _ = problem.distance(state.z)
        exact = problem.group_sum((soft**2).sum(dim=1))
        seen[rows] = problem.design.forward(problem.cast(state.u[rows]))
        seen_soft, seen_hard = problem.distance(seen)
        gradient = problem.design.back(-soft)
        present, pushed = _multipliers(problem, state, soft)
        t = gradient / state.tau[problem.groups][:, None].clamp(min=1e-300)
        if pushed is not None:
            t = t + problem.design.back(pushed)
        before_gap = relative_gap(objective, bound)
        value, proved = judge(problem, state.u, seen_soft, seen_hard, present, t, costs)
        if problem.epsilon is not None:  # what the cast breaks is aimed further inside
            cast = problem.group_sum((seen_soft**2).sum(dim=1)).sqrt()
            broken = (cast > problem.epsilon) & (exact.sqrt() <= problem.epsilon)
            margin = torch.where(broken & live, (margin * _FURTHER).clamp(max=_FURTHEST), margin)
        better, tighter = live & (value < objective), live & (proved > bound)
        objective, bound = torch.where(better, value, objective), torch.where(tighter, proved, bound)
        rows_better, rows_tighter = better[problem.groups], tighter[problem.groups]
        weight[rows_better], dual[rows_tighter] = state.u[rows_better], present[rows_tighter]
        gap = relative_gap(objective, bound)
        moved = problem.group_sum((_update_binding(problem, state) + (before != state.signs).sum(dim=1)).to(gap))
        settled = moved == 0
        progress = ((gap < 0.3 * before_gap) & (gap < torch.inf)) | (moved < fewest)
        stalled, fewest = torch.where(progress, 0, stalled + 1), torch.minimum(fewest, moved)
        live &= ~((gap <= 1e-3 * tolerance) | (settled & (gap <= _SETTLED * tolerance)) | (stalled >= 4))
        if not bool(live.any()):
            break
    return Polished(weight, objective, dual, bound, steps, state.tau)


def _refresh(
    problem: Problem, state: _State, costs: Tensor, free: Tensor, gradient: Tensor, square: float, t: Tensor, row: int
) -> None:
    """Bring a row's quadratic up to date: samples that count, working set, gradient."""
    z, lower, upper = state.z[row], problem.lower[row], problem.upper[row]
    active = (z > upper) | (z < lower) | (lower == upper)
    if problem.soft is not None:
        active &= problem.soft[row]
    cost = costs[row]
    model = state.models.get(row)
    near = _NEAR_AT_FIRST if model is None else _NEAR
    wanted = (state.signs[row] != 0) | free[row] | (t.abs() > near * cost)
    wanted &= ~torch.isinf(cost)
    if model is None:
        model = state.models[row] = RowModel(problem)
    model.update(wanted, active)
    model.tiny = state.tiny
    w = model.features
    model.costs, model.free = cost[w], free[row, w]
    model.begin(state.u[row, w], state.signs[row, w], gradient[w], square, t[w])
    if state.binding is not None and problem.soft is not None:
        held = state.binding[row]
        slack = torch.where(problem.soft[row] | held, torch.inf, torch.minimum(upper - z, z - lower))
        close = slack.topk(min(len(slack), _AROUND * (len(w) + 1)), largest=False).indices
        near = held.index_fill(0, close[slack[close] < torch.inf], True).nonzero()[:, 0]
        z, lower, upper = z[near], lower[near], upper[near]
        top = _at_upper(z, lower, upper)
        pull = torch.where(lower == upper, 0.0, torch.where(top, 1.0, -1.0).to(z.dtype))
        margin = problem.hard_margin * max(1.0, float(state.u[row].norm()))
        inside = margin * (lower != upper)
        model.bind(near, held[near], torch.where(top, upper - inside, lower + inside), pull, margin)


def _solve_inner(problem: Problem, state: _State, rows: list[int], margin: Tensor) -> None:
    """Inner passes; rows whose supports do not settle are solved once more from where they were, change by change."""
    before = state.tau.tolist()
    for row in solve_passes(problem, state.models, state.tau, rows, margin):
        model, group = state.models[row], int(problem.groups[row])
        passed, lost = model.state, model.hopeless or model.beyond
        square = None if problem.epsilon is None else float((problem.epsilon[group] * (1 - margin[group])) ** 2)
        model.hopeless = False
        tau = solve_row(model, state.u[row, model.features], before[group], square)
        if tau is not None:
            state.tau[group] = tau
        else:
            model.state, model.hopeless = passed, lost


def _shorten(problem: Problem, state: _State, rows: list[int], u: Tensor, z: Tensor, costs: Tensor) -> None:
    """Go back towards the weights `u` and responses `z` of before where the whole step leads uphill.

    Other samples count at its end than in the quadratic, so half the squared distance plus tau |u| may grow; from the
    start towards the minimum of the quadratic it falls at first.
    """
    where = torch.tensor(rows, device=u.device)
    tau = state.tau[problem.groups[where]]
    lower, upper, cost = problem.lower[where], problem.upper[where], costs[where]
    whole_u, whole_z = state.u[where], state.z[where]

    def value(share: float) -> Tensor:
        response = torch.lerp(z, whole_z, share)
        outside = response - response.clamp(lower, upper)
        return 0.5 * (outside**2).sum(dim=1) + tau * _penalty(torch.lerp(u, whole_u, share), cost)

    best = value(1.0)
    uphill = best > value(0.0) * (1 + _UPHILL)
    if not bool(uphill.any()):
        return
    best, share = torch.where(uphill, torch.inf, best), torch.ones_like(best)
    for part in _SHARES:
        there = value(part)
        share, best = torch.where(there < best, part, share), torch.minimum(there, best)
    rows_up, share = where[uphill], share[uphill, None]
    state.u[rows_up] = torch.lerp(u[uphill], whole_u[uphill], share)
    state.z[rows_up] = torch.lerp(z[uphill], whole_z[uphill], share)
    state.signs[rows_up] = torch.where(cost[uphill] == 0, 0.0, state.u[rows_up].sign())


def _take(problem: Problem, state: _State, row: int) -> None:
    """Copy a row's inner solution into the state."""
    model = state.models[row]
    state.u[row] = 0.0
    state.u[row, model.features] = torch.where(model.v.abs() <= state.tiny, 0.0, model.v)
    state.signs[row] = 0.0
    state.signs[row, model.features] = model.signs
    if state.nu is not None:
        state.nu[row] = 0.0
        if model.binding is not None and len(model.binding):
            state.nu[row, model.binding] = model.nu


def _multipliers(problem: Problem, state: _State, soft: Tensor) -> tuple[Tensor, Tensor | None]:
    """The multipliers of the present point, and their part on hard samples."""
    tau = state.tau[problem.groups][:, None].clamp(min=1e-300)
    dual = -soft / tau
    if state.nu is not None:
        part = clip_multipliers(-state.nu / tau, problem.lower, problem.upper)
        return dual + part, part
    return dual, None


def judge(
    problem: Problem, u: Tensor, soft: Tensor, hard: Tensor, dual: Tensor, t: Tensor, costs: Tensor
) -> tuple[Tensor, Tensor]:
    """Each group's l1 objective, inf where infeasible, and dual bound, from sums at hand: the inner certificate."""
    squares = problem.group_sum((soft**2).sum(dim=1))
    value = _penalty(u, costs)
    support = (torch.where(dual > 0, dual * problem.lower, 0.0) + torch.where(dual < 0, dual * problem.upper, 0.0)).sum(
        dim=1
    )
    gauge = torch.where(costs == 0, 0.0, t.abs() / costs).amax(dim=1).clamp(min=1e-300)
    # multipliers that push on a column without a cost prove nothing
    valid = (torch.where(costs == 0, t.abs(), 0.0) <= _FREE).all(dim=1)
    scale = torch.where(valid & (support > 0), (1 / gauge).clamp(max=1.0), 0.0)
    ball = (dual if problem.soft is None else torch.where(problem.soft, dual, 0.0)).norm(dim=1)
    if problem.regularization is not None:
        lam = problem.regularization
        objective = problem.group_sum(value) + lam * squares
        bound = problem.group_sum(scale * support - (scale * ball) ** 2 / (4 * lam))
        feasible = torch.ones_like(objective, dtype=torch.bool)
    else:
        assert problem.epsilon is not None
        objective = problem.group_sum(value)
        bound = problem.group_sum(scale * support) - problem.epsilon * problem.group_sum((scale * ball) ** 2).sqrt()
        feasible = squares.sqrt() <= problem.epsilon * (1 + 1e-12)
    if problem.soft is not None:
        worst = torch.zeros_like(objective).scatter_reduce(0, problem.groups, hard.abs().amax(dim=1), "amax")
        feasible &= worst <= 1e-10
    return torch.where(feasible, objective, torch.inf), bound.clamp(min=0)


def _penalty(u: Tensor, costs: Tensor) -> Tensor:
    """The l1 norm with costs of each row; an infinite cost of a zero weight is none."""
    return torch.where(u == 0, 0.0, u.abs() * costs).sum(dim=1)


def _at_upper(z: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    return (z - upper).abs() <= (z - lower).abs()


def _update_binding(problem: Problem, state: _State) -> Tensor:
    """Hard samples bind where the point is outside their box, or where their multiplier pushes inwards."""
    if state.binding is None or state.nu is None or problem.soft is None:
        return torch.zeros(problem.rows, dtype=torch.int64, device=state.u.device)
    z = state.z
    outside = ~problem.soft & ((z > problem.upper + 1e-12) | (z < problem.lower - 1e-12))
    equal = problem.lower == problem.upper
    binding = outside | (state.nu != 0) | (state.binding & equal)
    changed = (binding != state.binding).sum(dim=1)
    state.binding = binding
    return changed
