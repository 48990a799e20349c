"""Linear programs through SciPy's HiGHS (extra `solvers`): eps = 0 (N eq. 8), and the certificate of exact recovery.

With epsilon 0 distance and strict ask the same: lower <= X u <= upper, where ADMM recovers a sparse weight less often
than a simplex method. The multipliers of the constraints are the r of our certificate.
"""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nettrim.certificates.recovery import RecoveryCertificate, check_dual_certificate, split_samples
from nettrim.errors import InputError, MissingExtraError, should
from nettrim.programs import Program
from nettrim.programs.penalties import L1
from nettrim.solvers.design import make_design
from nettrim.solvers.problem import Problem, make_problem

_TIGHT = 1e-10  # tolerance of HiGHS
_LOOSER = (1e-9, 1e-8, 1e-7)  # tried in turn
_INFEASIBLE = 2  # SciPy's word for it
_APART = 1e-6  # scaled violation that no rounding leaves
_SMALLEST = 1e-12  # scaled weights under which an entry counts as zero


@dataclass(frozen=True, eq=False)
class LinearAnswer:
    """What `solve_lp` found; rows that are not `feasible` have zero weights, and multipliers that prove it where they
    are `decided`: of others HiGHS found neither weights nor a proof."""

    weight: Tensor  # (out, in) float64
    dual: Tensor  # (samples, out) float64
    feasible: Tensor  # (out,) bool
    decided: Tensor  # (out,) bool


def lp_available() -> bool:
    """Whether SciPy is installed, without importing it."""
    return importlib.util.find_spec("scipy") is not None


def solve_lp(program: Program) -> LinearAnswer:
    """minimise costs'|u| subject to lower <= inputs u <= upper, row by row (N eq. 8).

    Raises InputError unless the penalty is L1 and every epsilon is 0, MissingExtraError without SciPy.
    """
    if not isinstance(program.penalty, L1):
        raise InputError(should("penalty", "L1 for a linear program", type(program.penalty).__name__))
    if program.epsilon is None or bool((program.epsilon > 0).any()):
        got = "a regularization" if program.epsilon is None else f"{float(program.epsilon.max()):g}"
        raise InputError(should("epsilon", "0 for a linear program", got))
    problem = make_problem(program, make_design(program.inputs, torch.float64))
    weight, dual, feasible, decided = solve_rows(problem)
    return LinearAnswer(weight * problem.weight_scale, dual.T * problem.dual_scale, feasible, decided)


def solve_rows(problem: Problem) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scaled weights (rows, in) and multipliers (rows, samples) of every row of an exact problem, whether it is
    feasible, and whether that is decided."""
    assert isinstance(problem.penalty, L1)
    inputs_t = problem.design.dense().cpu()
    shape = problem.rows, inputs_t.shape[0]
    costs = problem.penalty.full(problem.lower.new_zeros(shape)).expand(shape).cpu()
    weight, dual = torch.zeros(shape, dtype=torch.float64), torch.zeros_like(problem.lower, device="cpu")
    feasible, decided = (torch.ones(problem.rows, dtype=torch.bool) for _ in range(2))
    for row in range(problem.rows):
        weight[row], dual[row], feasible[row], decided[row] = _row(inputs_t, problem, costs[row], row)
    home = problem.lower.device
    return weight.to(home), dual.to(home), feasible, decided


def find_dual_certificate(inputs: Tensor, weight: Tensor) -> RecoveryCertificate:
    """The best dual certificate of exact recovery of one neuron's `weight` (in,) from `inputs` (samples, in), by an LP.

    Minimises the largest |Lambda| off the support among all vectors of the range with the right signs on it, so it
    holds whenever any does, but for kinks (samples with pre-activation zero), which get equal room. Prop. 2 (N), 3 (A).
    Warns where HiGHS could not decide. Raises MissingExtraError without SciPy.
    """
    inputs, weight = inputs.to(torch.float64), weight.to(torch.float64)
    active, kinks = split_samples(inputs, weight)
    used = (active | kinks).nonzero()[:, 0]
    support = weight != 0
    multipliers = weight.new_zeros(len(inputs))
    if bool(support.any()) and len(used):
        scale = float(inputs.abs().max()) or 1.0
        x = (inputs[used] / scale).cpu().numpy()
        on = support.cpu().numpy()
        off = ~on
        count = len(used)
        # variables: nu (scaled) and the largest |Lambda| off the support, tau
        objective = np.r_[np.zeros(count), 1.0]
        equal = np.c_[x[:, on].T, np.zeros(on.sum())]
        outside = x[:, off].T
        tied = -np.ones((off.sum(), 1))
        kink = kinks[used].cpu().numpy()
        below = np.zeros((kink.sum(), count + 1))  # nu on a kink <= (tau - 1) * size: strictly negative once tau < 1
        below[np.arange(kink.sum()), np.flatnonzero(kink)] = 1.0
        below[:, -1] = -1.0
        limits = np.r_[np.zeros(2 * off.sum()), -np.ones(kink.sum())]
        rows = np.r_[np.c_[outside, tied], np.c_[-outside, tied], below]
        bounds = [(None, None)] * count + [(0.0, None)]
        problem = (
            objective,
            rows if len(rows) else None,
            limits if len(rows) else None,
            equal,
            np.sign(weight[support].cpu().numpy()),
            bounds,
        )
        result = _decided(*problem)
        if result.status == 0:
            multipliers[used] = torch.as_tensor(result.x[:-1]).to(multipliers) / scale
        elif result.status != _INFEASIBLE:
            warnings.warn(
                f"HiGHS neither found a dual certificate nor proved that there is none: {result.message}", stacklevel=2
            )
    return check_dual_certificate(inputs, weight, multipliers)


def _row(inputs_t: Tensor, problem: Problem, costs: Tensor, row: int) -> tuple[Tensor, Tensor, bool, bool]:
    """Weights, multipliers, feasible, decided: of one row, scaled."""
    lower, upper = problem.lower[row].cpu().numpy(), problem.upper[row].cpu().numpy()
    allowed = np.flatnonzero(np.isfinite(costs.numpy()))
    x = inputs_t.T.numpy()[:, allowed]
    points = np.flatnonzero(lower == upper)
    above = np.flatnonzero((lower != upper) & np.isfinite(upper))
    below = np.flatnonzero((lower != upper) & np.isfinite(lower))
    sides = np.r_[x[above], -x[below]]
    limits = np.r_[upper[above], -lower[below]]
    cost = costs.numpy()[allowed]
    u, r = inputs_t.new_zeros(len(inputs_t)), inputs_t.new_zeros(inputs_t.shape[1])
    if not len(allowed):
        return u, r, bool((np.maximum(lower, -upper) <= 0).all()), True
    result = _decided(
        np.r_[cost, cost],
        np.c_[sides, -sides] if len(sides) else None,
        limits if len(sides) else None,
        np.c_[x[points], -x[points]] if len(points) else None,
        upper[points] if len(points) else None,
        (0, None),
    )
    found, decided = result.status == 0, True
    if not found:
        decided = result.status == _INFEASIBLE
        result = _least_violation(x, points, upper, sides, limits)
        decided |= result.status == 0 and result.fun > _APART
    if result.status == 0:
        if len(points):
            r[torch.as_tensor(points)] = torch.as_tensor(result.eqlin.marginals[: len(points)].copy())
        if len(sides):
            marginals = torch.as_tensor(result.ineqlin.marginals[: len(sides)].copy())
            r[torch.as_tensor(above)] += marginals[: len(above)]
            r[torch.as_tensor(below)] -= marginals[len(above) :]
    if found:
        split = torch.as_tensor(result.x[: len(allowed)] - result.x[len(allowed) :])
        split = torch.where(split.abs() < _SMALLEST, 0.0, split)
        u[torch.as_tensor(allowed)] = _refine(split, x, points, sides, limits, upper)
    return u, r, found, decided


def _least_violation(
    x: np.ndarray, points: np.ndarray, upper: np.ndarray, sides: np.ndarray, limits: np.ndarray
) -> Any:
    """Phase one: the least l1 norm of violations; its multipliers have X'r = 0 and prove infeasibility."""
    size, p, s = x.shape[1], len(points), len(sides)
    objective = np.r_[np.zeros(size), np.ones(2 * p + s)]
    equal = np.c_[x[points], np.eye(p), -np.eye(p), np.zeros((p, s))] if p else None
    inequal = np.c_[sides, np.zeros((s, 2 * p)), -np.eye(s)] if s else None
    bounds = [(None, None)] * size + [(0, None)] * (2 * p + s)
    return _linprog(objective, inequal, limits if s else None, equal, upper[points] if p else None, bounds)


def _refine(
    u: Tensor, x: np.ndarray, points: np.ndarray, sides: np.ndarray, limits: np.ndarray, upper: np.ndarray
) -> Tensor:
    """The vertex again, from the equations it satisfies, to the last digits."""
    support = u.nonzero()[:, 0]
    if not len(support):
        return u
    room = limits - sides @ u.numpy() if len(sides) else limits
    binding = np.flatnonzero(room <= 1e-9)
    system = torch.as_tensor(np.r_[x[points], sides[binding]])[:, support]
    target = torch.as_tensor(np.r_[upper[points], limits[binding]])
    if not len(target):
        return u
    correction = torch.linalg.lstsq(system, (target - system @ u[support])[:, None], driver="gelsd").solution[:, 0]
    if float(correction.abs().max()) > 1e-6 * float(u.abs().max()):
        return u
    refined = u.clone()
    refined[support] += correction
    return refined


def _decided(*program: Any) -> Any:
    """What HiGHS finds, to looser tolerances where it stops undecided, which it does where rounding decides."""
    result = _linprog(*program)
    for tolerance in _LOOSER:
        if result.status in (0, _INFEASIBLE):
            break
        result = _linprog(*program, tolerance=tolerance)
    return result


def _linprog(
    objective: np.ndarray,
    rows: np.ndarray | None,
    limits: np.ndarray | None,
    equal: np.ndarray | None,
    target: np.ndarray | None,
    bounds: Any,
    tolerance: float = _TIGHT,
) -> Any:
    try:
        from scipy.optimize import linprog  # noqa: PLC0415  # an extra
    except ImportError as error:  # pragma: no cover - needs an installation without the extra
        raise MissingExtraError("scipy", "solvers") from error
    options = {"primal_feasibility_tolerance": tolerance, "dual_feasibility_tolerance": tolerance}
    return linprog(objective, rows, limits, equal, target, bounds, method="highs", options=options)
