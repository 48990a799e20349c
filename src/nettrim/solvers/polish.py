"""Polish: a primal-dual active-set method in float64 that turns ADMM's guess into a vertex with a tiny gap.

With support S, signs s, active samples A (those at a distance from their box) and binding hard samples B fixed, the
optimality conditions of a row are linear in its weights u and the hard multipliers nu, and affine in tau = 1 / (2 lambda):

    X_A,S' (b - X_A u) - X_B' nu = tau s * costs,      X_B u = bound_B .

The squared distance of a budget group is then a quadratic in tau, so hitting eps exactly costs one scalar equation; the
rows of a joint budget share that tau. After each step the sets are read off the new point again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nettrim.programs import group_sums
from nettrim.solvers.problem import Problem

_MARGIN = {torch.float32: 1e-6, torch.float64: 1e-10}


@dataclass
class Guess:
    """Rows of a polish: weights with signs on the support, hard samples that bind, and tau per group."""

    u: Tensor  # (rows, in) float64
    signs: Tensor  # (rows, in): -1, 0, +1; free columns are in the support without a sign
    binding: Tensor | None  # (rows, samples) bool
    tau: Tensor  # (groups,)


@dataclass(frozen=True)
class Polished:
    """The best point per row that the polish saw, judged by its group's gap."""

    weight: Tensor  # (rows, in)
    dual: Tensor  # (rows, samples)
    gap: Tensor  # (groups,) inf where no feasible point was seen
    steps: int


@dataclass
class _Row:
    """One row's linear system at the present sets."""

    support: Tensor
    features: Tensor  # (support, samples)
    d0: Tensor
    d1: Tensor
    nu0: Tensor | None
    nu1: Tensor | None
    binding: Tensor | None
    coefficients: tuple[float, float, float]  # squared distance = c0 + c1 tau + c2 tau^2


def polish(problem: Problem, guess: Guess, tolerance: float, max_steps: int = 12) -> Polished:
    """Run the active-set steps on all rows at once; groups stop one by one."""
    costs = problem.penalty.full(problem.inputs_t.new_zeros(guess.u.shape)).expand(guess.u.shape)
    free = costs == 0
    rows = problem.rows
    best = Polished(guess.u.clone(), torch.zeros_like(problem.lower), problem.inputs_t.new_full((problem.group_count,), torch.inf), 0)
    z = guess.u @ problem.inputs_t
    live = torch.ones(problem.group_count, dtype=torch.bool, device=z.device)
    stalled = torch.zeros(problem.group_count, dtype=torch.int64, device=z.device)
    nu = torch.zeros_like(problem.lower) if problem.soft is not None else None
    steps = 0
    for steps in range(1, max_steps + 1):
        index = live[problem.groups].nonzero()[:, 0].tolist()
        systems = {row: _solve_row(problem, guess, costs, free, z, row) for row in index}
        tau = _choose_tau(problem, systems, z, guess.tau, live)
        guess.tau = torch.where(live, tau, guess.tau)
        for row, system in systems.items():
            if system is None:
                continue
            t = guess.tau[problem.groups[row]]
            guess.u[row, system.support] += system.d0 - t * system.d1
            z[row] = guess.u[row, system.support] @ system.features
            if nu is not None:
                nu[row] = 0
                if system.binding is not None and system.nu0 is not None and system.nu1 is not None:
                    nu[row, system.binding] = system.nu0 - t * system.nu1
        gap, dual = _evaluate(problem, guess, costs, z, nu)
        better = live & (gap < best.gap)
        stalled = torch.where(better & (gap < 0.5 * best.gap), 0, stalled + 1)
        best.gap[better] = gap[better]
        improved = better[problem.groups]
        best.weight[improved] = guess.u[improved]
        best.dual[improved] = dual[improved]
        t = dual @ problem.inputs_t.T
        changed = _update_sets(problem, guess, costs, free, t, z, nu)
        settled = group_sums(changed.to(torch.float64), problem.groups, problem.group_count) == 0
        live &= ~((gap <= tolerance * 1e-3) | (settled & (gap < torch.inf)) | (stalled >= 5))
        if not bool(live.any()):
            break
    del rows
    return Polished(best.weight, best.dual, best.gap, steps)


def _solve_row(problem: Problem, guess: Guess, costs: Tensor, free: Tensor, z: Tensor, row: int) -> _Row | None:
    support = ((guess.signs[row] != 0) | free[row]).nonzero()[:, 0]
    if not len(support):
        return None
    features = problem.inputs_t[support]
    box = z[row].clamp(problem.lower[row], problem.upper[row])
    residual = box - z[row]
    active = (residual != 0) | (problem.lower[row] == problem.upper[row])
    if problem.soft is not None:
        active &= problem.soft[row]
    picked = active.nonzero()[:, 0]
    part = features[:, picked]
    residual = residual[picked]
    gram = part @ part.T
    size = float(gram.diagonal().mean()) + 1e-300
    gram.diagonal().add_(1e-13 * size)
    rhs = torch.stack([part @ residual, costs[row, support] * guess.signs[row, support]], dim=1)
    nu = None
    binding = None if guess.binding is None else guess.binding[row].nonzero()[:, 0]
    if binding is not None and len(binding):
        hard = features[:, binding]
        bound = z[row, binding].clamp(problem.lower[row, binding], problem.upper[row, binding])
        edge = torch.where(z[row, binding] > bound, bound, _nearest(z[row, binding], problem.lower[row, binding], problem.upper[row, binding]))
        edge = torch.where(bound != z[row, binding], bound, edge)
        count = len(binding)
        gram.diagonal().add_(1e-10 * size)
        weight = float(hard.norm()) / max(count, 1) ** 0.5
        system = torch.zeros(len(support) + count, len(support) + count, dtype=gram.dtype, device=gram.device)
        system[: len(support), : len(support)] = gram
        system[: len(support), len(support) :] = hard
        system[len(support) :, : len(support)] = hard.T
        system[len(support) :, len(support) :].diagonal().add_(-1e-12 * weight**2 / size)
        right = torch.zeros(len(support) + count, 2, dtype=gram.dtype, device=gram.device)
        right[: len(support)] = rhs
        right[len(support) :, 0] = edge - z[row, binding]
        solution, info = torch.linalg.solve_ex(system, right)
        if int(info):
            return None
        step, nu = solution[: len(support)], solution[len(support) :]
    else:
        binding = None
        step = _spd_solve(gram, rhs)
    d0, d1 = step[:, 0], step[:, 1]
    r0 = residual - d0 @ part
    r1 = d1 @ part
    coefficients = (float(r0 @ r0), float(2 * (r0 @ r1)), float(r1 @ r1))
    return _Row(support, features, d0, d1, None if nu is None else nu[:, 0], None if nu is None else nu[:, 1], binding, coefficients)


def _nearest(z: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    return torch.where((upper - z) <= (z - lower), upper, lower)


def _spd_solve(gram: Tensor, rhs: Tensor) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(gram)
    if not int(info):
        return torch.cholesky_solve(rhs, factor)
    values, vectors = torch.linalg.eigh(gram)
    inverse = torch.where(values > 1e-11 * values[-1], 1 / values, 0.0)
    return vectors @ (inverse[:, None] * (vectors.T @ rhs))


def _choose_tau(problem: Problem, systems: dict[int, _Row | None], z: Tensor, tau: Tensor, live: Tensor) -> Tensor:
    """The scalar equation per group: squared distance = (eps (1 - margin))^2."""
    if problem.regularization is not None:
        return torch.full_like(tau, 1 / (2 * problem.regularization))
    assert problem.epsilon is not None
    sums = z.new_zeros(3, problem.rows)
    for row, system in systems.items():
        if system is None:
            soft, _ = problem.select(torch.tensor([row], device=z.device)).distance(z[row : row + 1])
            sums[0, row] = (soft**2).sum()
        else:
            sums[:, row] = torch.tensor(system.coefficients, dtype=z.dtype)
    c0, c1, c2 = (problem.group_sum(values) for values in sums)
    target = (problem.epsilon * (1 - _MARGIN[problem.inputs.dtype])) ** 2
    room = target - c0
    root = (c1**2 / 4 + c2 * room).clamp(min=0).sqrt() - c1 / 2
    # no room: the support cannot reach eps; keep a small tau, which lets the sets grow
    return torch.where((room > 0) & (c2 > 0), root / c2.clamp(min=1e-300), tau * 0.3)


def _evaluate(problem: Problem, guess: Guess, costs: Tensor, z: Tensor, nu: Tensor | None) -> tuple[Tensor, Tensor]:
    """The gap of each group at the present point (inf where it is infeasible), and the multipliers."""
    soft, hard = problem.distance(z)
    tau = guess.tau[problem.groups][:, None].clamp(min=1e-300)
    dual = -soft / tau
    if nu is not None:
        part = torch.where(problem.lower == -torch.inf, -nu.clamp(min=0), -nu)
        dual = dual + torch.where(problem.upper == torch.inf, part.clamp(min=0), part) / tau
    return evaluate_gap(problem, guess.u, soft, hard, dual, costs), dual


def evaluate_gap(problem: Problem, u: Tensor, soft: Tensor, hard: Tensor, dual: Tensor, costs: Tensor) -> Tensor:
    """(objective - bound) / objective of each group for l1, inf where the point is infeasible; a quick inner certificate."""
    squares = problem.group_sum((soft**2).sum(dim=1))
    value = torch.where(u == 0, 0.0, u.abs() * costs).sum(dim=1)
    transposed = dual @ problem.inputs_t.T
    lower = torch.where(dual > 0, dual * problem.lower, 0.0) + torch.where(dual < 0, dual * problem.upper, 0.0)
    support = lower.sum(dim=1)
    gauge = torch.where(costs == 0, 0.0, transposed.abs() / costs).amax(dim=1).clamp(min=1e-300)
    scale = (1 / gauge).clamp(max=1.0)
    counted = dual if problem.soft is None else torch.where(problem.soft, dual, 0.0)
    ball = counted.norm(dim=1)
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
        feasible &= worst <= 1e-9
    gap = (objective - bound.clamp(min=0)) / objective.clamp(min=1e-300)
    return torch.where(feasible, torch.where(objective > 0, gap, 0.0), torch.inf)


def _update_sets(
    problem: Problem, guess: Guess, costs: Tensor, free: Tensor, t: Tensor, z: Tensor, nu: Tensor | None
) -> Tensor:
    """Read support and binding sets off the new point; returns how many entries changed in each row."""
    old = guess.signs
    kept = torch.where(guess.u * old < 0, 0.0, old)
    entering = (old == 0) & (t.abs() > costs * (1 + 1e-7)) & ~free
    signs = torch.where(entering, t.sign(), kept)
    signs = torch.where(torch.isinf(costs) | free, 0.0, signs)
    dropped = (signs == 0) & ~free
    changed = (signs != old).sum(dim=1)
    guess.u[dropped] = 0.0
    guess.signs = signs
    touched = (dropped & (old != 0)).any(dim=1).nonzero()[:, 0]
    if len(touched):
        z[touched] = guess.u[touched] @ problem.inputs_t
    if guess.binding is not None and nu is not None and problem.soft is not None:
        hard = ~problem.soft
        outside = hard & ((z > problem.upper + 1e-12) | (z < problem.lower - 1e-12))
        at_upper = (z - problem.upper).abs() <= (z - problem.lower).abs()
        right_sign = torch.where(at_upper, nu > 0, nu < 0)
        binding = outside | (guess.binding & right_sign)
        changed = changed + (binding != guess.binding).sum(dim=1)
        guess.binding = binding
    return changed
