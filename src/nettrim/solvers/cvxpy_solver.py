"""A general convex solver through CVXPY (extra `solvers`): the reference, and a choice for small programs.

The program is stated either as it is (`form="direct"`) or in the papers' standard forms (`form="qp"`, N eq. 14;
`form="qcqp"`, A eq. 28). The solver's multipliers become the r of our certificate: its answer is judged like any other.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from nettrim.certificates import certify
from nettrim.errors import InputError, MissingExtraError, near, should
from nettrim.programs import Program
from nettrim.programs.penalties import L1, ElasticNet, GroupL2Inputs, GroupL2Outputs, L1Frobenius, MaxNorm, Penalty
from nettrim.solvers.base import ABSURD, Solution
from nettrim.solvers.design import make_design
from nettrim.solvers.finish import Ending, finish
from nettrim.solvers.plain import as_program
from nettrim.solvers.presolve import presolve
from nettrim.solvers.problem import Problem, make_problem
from nettrim.solvers.repair import make_feasible
from nettrim.solvers.standard_forms import QCQP, QP, qcqp_of, qp_of

Form = Literal["direct", "qp", "qcqp"]
_STATED = (L1, ElasticNet, L1Frobenius, MaxNorm, GroupL2Inputs, GroupL2Outputs)
_NEGLIGIBLE = (1e-6, 1e-8, 0.0)  # entries below this share of the largest are tried as zeros
_MARGIN = 1e-8  # of responses of unit size


@dataclass(frozen=True, init=False)
class Cvxpy:
    """A solver installed with CVXPY, by its name there ("CLARABEL", "SCS", "GUROBI", "MOSEK", ...).

    `form`: "direct" takes every program; "qp" (N eq. 14) needs l1 and `regularization`; "qcqp" (A eq. 28) needs l1 and
    epsilon; both need the strict constraint, or preimages that are points. `options` go to the solver as they are.

    Raises MissingExtraError without CVXPY, InputError for an unknown form or a solver that is not installed.
    """

    name: str
    form: Form
    options: Mapping[str, Any]

    def __init__(self, name: str = "CLARABEL", form: Form = "direct", **options: Any) -> None:
        if form not in ("direct", "qp", "qcqp"):
            raise InputError(should("form", "'direct', 'qp' or 'qcqp'", repr(form)))
        installed = _cvxpy().installed_solvers()
        if name not in installed:
            raise InputError(should("name", "a solver that CVXPY finds installed", repr(name), near(name, installed)))
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "form", form)
        object.__setattr__(self, "options", MappingProxyType(dict(options)))

    def solve(self, program: Program, tolerance: float, initial: Tensor | None = None) -> Solution:
        """Solve `program` budget group by budget group; `initial` (out, in) is only the answer of last resort.

        CVXPY works on the CPU: a program elsewhere is brought there and its solution back. Raises InputError where the
        form cannot state the program.
        """
        began = time.perf_counter()
        home, program = program.inputs.device, program.to(torch.device("cpu"))
        initial = None if initial is None else initial.cpu()
        weight = program.inputs.new_zeros(program.shape, dtype=torch.float64)
        dual = program.inputs.new_zeros(program.upper.shape, dtype=torch.float64)
        ending = [Ending.ZERO] * program.shape[0]
        reduced = presolve(program)
        if reduced.program is not None:
            inner = reduced.program
            for block in _blocks(inner):
                part = inner.rows(block)
                u, r, infeasible = self._solve_block(part, tolerance)
                rows = reduced.rows[block]
                weight[rows[:, None], reduced.columns] = u.to(weight)
                dual[:, rows] = r.to(dual)
                for row in rows.tolist():
                    ending[row] = Ending.INFEASIBLE if infeasible else Ending.SOLVED
        solution = finish(program, weight, dual, initial, tolerance, ending)
        return replace(solution.to(home), seconds=time.perf_counter() - began)

    def _solve_block(self, program: Program, tolerance: float) -> tuple[Tensor, Tensor, bool]:
        """Weights (rows, in), multipliers (samples, rows), and whether these prove that nothing is feasible."""
        problem = make_problem(program, make_design(program.inputs, torch.float64))
        optimum = None
        for margin in (_MARGIN, 0.0):  # a little inside first, so that the answer is feasible; where there is an inside
            if optimum is None:
                statement = _direct if self.form == "direct" else _standard
                optimum = self._run(statement(problem, self.form, margin), tolerance)
        if optimum is not None:
            u, r = optimum
            return _tidy(problem, u, r, tolerance) * problem.weight_scale, r.T * problem.dual_scale, False
        zero = problem.lower.new_zeros(problem.rows, problem.design.width)
        phase = self._run(_least_violation(problem), tolerance)
        if phase is None:
            return zero, torch.zeros_like(problem.lower.T), False
        u, r = phase
        bound = certify(as_program(problem), u, r.T).bound
        infeasible = bound > ABSURD * (1 + float(problem.penalty.value(u).sum()))
        return u * problem.weight_scale, r.T * problem.dual_scale, infeasible

    def _run(self, statement: _Statement, tolerance: float) -> tuple[Tensor, Tensor] | None:
        """The optimum and its multipliers, or None where the solver found none."""
        cp = _cvxpy()
        problem = cp.Problem(cp.Minimize(statement.objective), statement.constraints)
        options = _precision(self.name, tolerance) | dict(self.options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an inaccurate answer is told by its certificate
            try:
                problem.solve(solver=self.name, **options)
            except cp.error.SolverError:
                return None
        if problem.status not in (cp.OPTIMAL, cp.OPTIMAL_INACCURATE):
            return None
        u, r = statement.read()
        return (u, r) if bool(torch.isfinite(u).all()) and bool(torch.isfinite(r).all()) else None


@dataclass(frozen=True)
class _Statement:
    objective: Any
    constraints: list[Any]
    read: Any  # () -> (weight (rows, in), multipliers (rows, samples))


def _cvxpy() -> Any:
    try:
        import cvxpy  # noqa: PLC0415  # an extra
    except ImportError as error:  # pragma: no cover - needs an installation without the extra
        raise MissingExtraError("cvxpy", "solvers") from error
    return cvxpy


def _precision(name: str, tolerance: float) -> dict[str, Any]:
    """Options under which a general solver reaches our tolerance; its own defaults where we know none."""
    eps = min(1e-8, 1e-3 * tolerance)
    known = {
        "CLARABEL": {"tol_gap_abs": eps, "tol_gap_rel": eps, "tol_feas": eps},
        "SCS": {"eps_abs": eps, "eps_rel": eps, "max_iters": 100_000},
        "OSQP": {"eps_abs": eps, "eps_rel": eps, "max_iter": 100_000, "polish": True},
    }
    return dict(known.get(name, {}))


def _blocks(program: Program) -> list[Tensor]:
    """Rows to be solved together: a budget group, a single row if regularised, all if the penalty couples them."""
    rows = torch.arange(program.shape[0])
    if program.penalty.couples_rows:
        return [rows]
    if program.regularization is not None:
        return list(rows[:, None])
    return [rows[program.groups == group] for group in range(program.group_count)]


def _direct(problem: Problem, form: Form, margin: float) -> _Statement:
    """penalty(U) over z = U X', distances e >= 0 outside the box, ||e||_g <= eps_g (or + lambda ||e||^2)."""
    cp = _cvxpy()
    u = cp.Variable((problem.rows, problem.design.width))
    z = u @ problem.design.dense().numpy()
    constraints = _fixed(problem, u)
    objective = _penalty(problem, u)
    soft = np.ones(tuple(problem.lower.shape), dtype=bool) if problem.soft is None else problem.soft.numpy()
    counted = problem.regularization is not None or bool((_epsilon(problem) > 0).any())
    e = cp.Variable(z.shape) if counted else None
    pieces = []
    for row in range(problem.rows):
        ball = soft[row] & counted
        if problem.epsilon is not None:
            ball = ball & (float(problem.epsilon[problem.groups[row]]) > 0)
        pieces += _sides(problem, row, ball, z[row], None if e is None else e[row], margin)
    constraints += [constraint for constraint, *_ in pieces]
    if e is not None:
        outside = [index for index in range(problem.rows) if soft[index].any()]
        if problem.regularization is not None:
            objective = objective + problem.regularization * sum(
                cp.sum_squares(e[row, np.flatnonzero(soft[row])]) for row in outside
            )
        else:
            for group in range(problem.group_count):
                parts = [e[row, np.flatnonzero(soft[row])] for row in outside if int(problem.groups[row]) == group]
                radius = float(_epsilon(problem)[group])
                if parts and radius > 0:
                    constraints.append(cp.norm(cp.hstack(parts), 2) <= radius * (1 - margin))

    return _Statement(objective, constraints, lambda: (_tensor(u.value), _gather(problem, pieces)))


def _least_violation(problem: Problem) -> _Statement:
    """Phase one: the least s with ||e||_g <= eps_g + s and every hard entry within s; multipliers with X'r = 0."""
    cp = _cvxpy()
    u = cp.Variable((problem.rows, problem.design.width))
    e, s = cp.Variable((problem.rows, problem.design.samples)), cp.Variable(nonneg=True)
    z = u @ problem.design.dense().numpy()
    soft = np.ones(tuple(problem.lower.shape), dtype=bool) if problem.soft is None else problem.soft.numpy()
    pieces = []
    constraints = _fixed(problem, u)
    for row in range(problem.rows):
        pieces += _sides(problem, row, np.ones_like(soft[row]), z[row], e[row], 0.0)
        hard = np.flatnonzero(~soft[row])
        if len(hard):
            constraints.append(cp.abs(e[row, hard]) <= s)
    for group in range(problem.group_count if problem.epsilon is not None else 0):
        members = [row for row in range(problem.rows) if int(problem.groups[row]) == group and soft[row].any()]
        if members:
            parts = cp.hstack([e[row, np.flatnonzero(soft[row])] for row in members])
            constraints.append(cp.norm(parts, 2) <= float(_epsilon(problem)[group]) + s)
    constraints += [constraint for constraint, *_ in pieces]
    return _Statement(s, constraints, lambda: (_tensor(u.value), _gather(problem, pieces)))


def _sides(
    problem: Problem, row: int, ball: np.ndarray, z: Any, e: Any, margin: float
) -> list[tuple[Any, int, np.ndarray, float]]:
    """The constraints that tie z to its box, with the row, samples and sign that turn their multipliers into r."""
    lower, upper = problem.lower[row].numpy(), problem.upper[row].numpy()
    pieces = []
    for mask, relaxed in ((ball, True), (~ball, False)):
        points = np.flatnonzero(mask & (lower == upper))
        above = np.flatnonzero(mask & (lower != upper) & np.isfinite(upper))
        below = np.flatnonzero(mask & (lower != upper) & np.isfinite(lower))
        if len(points):
            pieces.append((z[points] - (e[points] if relaxed else 0) == lower[points], row, points, -1.0))
        if len(above):
            inside = 0.0 if relaxed else margin
            pieces.append((z[above] - (e[above] if relaxed else 0) <= upper[above] - inside, row, above, -1.0))
        if len(below):
            inside = 0.0 if relaxed else margin
            pieces.append((lower[below] - z[below] - (e[below] if relaxed else 0) <= -inside, row, below, 1.0))
    return pieces


def _gather(problem: Problem, pieces: list[tuple[Any, int, np.ndarray, float]]) -> Tensor:
    r = torch.zeros_like(problem.lower)
    for constraint, row, samples, sign in pieces:
        if constraint.dual_value is not None:
            r[row, torch.as_tensor(samples)] += sign * _tensor(constraint.dual_value).flatten()
    return r


def can_state(penalty: Penalty) -> bool:
    """Whether CVXPY can be told a penalty here."""
    return isinstance(penalty, _STATED)


def _penalty(problem: Problem, u: Any) -> Any:
    """The penalty as CVXPY states it."""
    cp = _cvxpy()
    penalty, shape = problem.penalty, u.shape
    if isinstance(penalty, L1 | ElasticNet):
        costs = _costs(problem)
        costs = np.where(np.isinf(costs), 0.0, costs)  # forbidden entries are fixed at zero
        value = cp.sum(cp.multiply(costs, cp.abs(u)))
        if isinstance(penalty, ElasticNet):
            value = value + penalty.ridge / 2 * cp.sum(cp.multiply(costs, cp.square(u)))
        return value
    free = penalty.free(shape)
    kept = np.arange(shape[1]) if free is None else np.flatnonzero(~free[0].numpy())
    if not len(kept):
        return 0
    part = u[:, kept]
    if isinstance(penalty, L1Frobenius):
        return cp.sum(cp.abs(part)) + penalty.frobenius * cp.norm(part, "fro")
    if isinstance(penalty, MaxNorm):
        return cp.sum(cp.max(cp.abs(part), axis=1))
    if isinstance(penalty, GroupL2Inputs):
        return cp.sum(cp.norm(part, 2, axis=0))
    if isinstance(penalty, GroupL2Outputs):
        return cp.sum(cp.norm(part, 2, axis=1))
    raise InputError(should("penalty", "one that CVXPY can state", type(penalty).__name__))


def _fixed(problem: Problem, u: Any) -> list[Any]:
    forbidden = (
        np.isinf(_costs(problem)) if isinstance(problem.penalty, L1 | ElasticNet) else np.zeros(u.shape, dtype=bool)
    )
    return [u[np.nonzero(forbidden)] == 0] if forbidden.any() else []


def _costs(problem: Problem) -> np.ndarray:
    assert isinstance(problem.penalty, L1 | ElasticNet)
    like = problem.lower.new_zeros(problem.rows, problem.design.width)
    return problem.penalty.full(like).expand(like.shape).numpy()


def _standard(problem: Problem, form: Form, margin: float) -> _Statement:
    """The papers' matrices, with u = [I, -I] u~ and u~ >= 0."""
    cp, program = _cvxpy(), as_program(problem)
    if form == "qp":
        blocks: list[QP | QCQP] = [qp_of(program, row) for row in range(program.shape[0])]
    else:
        if program.group_count > 1:
            raise InputError(should("budget", "one group at a time for form 'qcqp'", f"{program.group_count} groups"))
        blocks = [qcqp_of(program)]
    objective, constraints, parts = 0, [], []
    for block in blocks:
        tilde = block.tilde()
        x = cp.Variable(len(tilde.linear), nonneg=True)
        objective = objective + tilde.linear.numpy() @ x
        quadratic = cp.quad_form(x, cp.psd_wrap(tilde.quadratic.numpy()))
        ball = None
        if isinstance(block, QP):
            objective = objective + quadratic
        else:
            ball = (
                quadratic + 2 * tilde.ball.numpy() @ x <= block.room - 100 * margin * float(_epsilon(problem)[0]) ** 2
            )
            constraints.append(ball)
        sides = tilde.rows.numpy() @ x <= tilde.bounds.numpy() - margin if len(tilde.bounds) else None
        if sides is not None:
            constraints.append(sides)
        parts.append((block, x, ball, sides))

    def read() -> tuple[Tensor, Tensor]:
        weights, duals = [], []
        for block, x, ball, sides in parts:
            size = len(x.value) // 2
            u = _tensor(x.value[:size] - x.value[size:])
            nu = _tensor(sides.dual_value) if sides is not None else u.new_zeros(0)
            weights.append(block.weight(u))
            duals.append(block.multipliers(u, nu, 1.0 if ball is None else float(np.squeeze(ball.dual_value))))
        return torch.cat(weights), torch.cat(duals, dim=1).T

    return _Statement(objective, constraints, read)


def _tidy(problem: Problem, u: Tensor, r: Tensor, tolerance: float) -> Tensor:
    """The solver's answer without its negligible entries and exactly feasible, if that keeps the gap; else as it is."""
    program, best, judged = as_program(problem), u, torch.inf
    for share in _NEGLIGIBLE:
        trial = torch.where(u.abs() <= share * u.abs().amax(dim=1, keepdim=True), 0.0, u)
        points = []
        for group in range(problem.group_count):
            rows = (problem.groups == group).nonzero()[:, 0]
            points.append((rows, make_feasible(problem.select(rows), trial[rows])))
        if any(point is None for _, point in points):
            continue
        for rows, point in points:
            trial[rows] = point
        gap = certify(program, trial, r.T).gap
        if gap < 0.5 * judged:
            best, judged = trial, gap
        if judged <= 0.1 * tolerance:
            break
    return best


def _epsilon(problem: Problem) -> Tensor:
    return problem.lower.new_zeros(problem.group_count) if problem.epsilon is None else problem.epsilon


def _tensor(array: Any) -> Tensor:
    return torch.as_tensor(np.asarray(array), dtype=torch.float64)
