"""Solvers that one can install, on single neurons: CPU seconds in the solver itself, accuracy by our certificate.

Each gets the program in conic or quadratic form, scaled as ours is, through its own interface, since modelling layers
add variables and time. With u the weights, t >= |u|, A the samples whose responses are points y and I those with an
upper bound v only:

    minimise 1't   subject to   ||(A u - y, e)|| <= eps,  I u - e <= v     (distance; strict: without e)

and with lambda the sum of squares, as variables of its own, in the objective (N eq. 11).

Where A has more rows than columns, and one more, there is a second form: with [A, y] = Q [R, s], Q's columns
orthonormal, ||A u - y|| = ||R u - s||, so that R and s may stand for A and y ("compressed", beside "as stated"). Which
is faster depends on the solver, since R is dense where A may be sparse: both are run, and the faster is charged.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import clarabel
import numpy as np
import osqp
import scs
import torch
from measure import TOLERANCE, in_child
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from nettrim.certificates import certify
from nettrim.programs import Program
from nettrim.solvers import solve_lp
from nettrim.solvers.presolve import presolve
from nettrim.solvers.problem import Problem, make_design, make_problem
from nettrim.solvers.repair import make_feasible

Vector = NDArray[np.float64]
_CUTS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 0.0)  # entries below this share of the largest are tried as zeros
_ONE_NEURON = 0  # row of a program of one neuron


class Form:
    """One neuron's program in matrices, as stated or with its points compressed; `seconds` of CPU that this took."""

    def __init__(self, program: Program, *, compressed: bool = False) -> None:
        self.program = program
        reduced = presolve(program)
        assert reduced.program is not None, "a live neuron has something to solve"
        self.columns = reduced.columns
        self.problem: Problem = make_problem(reduced.program, make_design(reduced.program.inputs, torch.float64))
        lower, upper = self.problem.lower[0].numpy(), self.problem.upper[0].numpy()
        self.points = np.flatnonzero(lower == upper)
        self.sides = np.flatnonzero((lower != upper) & np.isfinite(upper))
        assert not np.isfinite(lower[self.sides]).any(), "ReLU and linear layers have no lower bounds but points"
        x = self.problem.design.dense().T.numpy()
        self.size = x.shape[1]
        at_points, self.target = x[self.points], upper[self.points]
        self.seconds, self._reflections = 0.0, ()
        if compressed:
            assert self.compressible
            began = time.process_time()
            factor, scales = torch.geqrf(torch.as_tensor(np.column_stack([at_points, self.target])))
            triangle = factor[: self.size + 1].triu().numpy()
            at_points, self.target = triangle[:, :-1], triangle[:, -1]
            self.seconds, self._reflections = time.process_time() - began, (factor, scales)
        self.at_points, self.at_sides = sparse.csc_matrix(at_points), sparse.csc_matrix(x[self.sides])
        self.bound = upper[self.sides]
        self.excess = len(self.sides) if self.problem.soft is None else 0  # variables e

    @property
    def compressible(self) -> bool:
        """Whether R and s, of N + 1 rows, are fewer than the points."""
        return len(self.points) > self.size + 1

    @cached_property
    def cone(self) -> tuple[sparse.csc_matrix, Vector, Vector, int, int]:
        """(A, b, c, nonnegative rows, rows of the second-order cone) of A x + s = b, x = (u, t, e)."""
        assert self.problem.epsilon is not None
        one = sparse.identity(self.size, format="csc")
        e = sparse.identity(self.excess, format="csc")
        side = [self.at_sides, None, -e] if self.excess else [self.at_sides, None]
        blocks = [[one, -one], [-one, -one], side, [sparse.csc_matrix((1, self.size)), None], [-self.at_points, None]]
        if self.excess:
            blocks = [[*row, None] if len(row) == 2 else row for row in blocks]
            blocks.append([None, None, -e])
        epsilon = float(self.problem.epsilon[_ONE_NEURON])
        right = [np.zeros(2 * self.size), self.bound, [epsilon], -self.target, np.zeros(self.excess)]
        linear = 2 * self.size + len(self.sides)
        costs = np.r_[np.zeros(self.size), np.ones(self.size), np.zeros(self.excess)]
        matrix = sparse.bmat(blocks, format="csc")
        return matrix, np.concatenate(right), costs, linear, matrix.shape[0] - linear

    @cached_property
    def quadratic(self) -> tuple[sparse.csc_matrix, Vector, sparse.csc_matrix, Vector, Vector]:
        """(P, q, A, l, u) of x'P x / 2 + q'x, l <= A x <= u, x = (u, t, residuals, e)."""
        assert self.problem.regularization is not None
        one, count = sparse.identity(self.size, format="csc"), len(self.target)
        residual, e = sparse.identity(count, format="csc"), sparse.identity(self.excess, format="csc")
        blocks = [[one, -one, None, None], [-one, -one, None, None], [self.at_points, None, -residual, None]]
        blocks.append([self.at_sides, None, None, -e if self.excess else sparse.csc_matrix((len(self.sides), 0))])
        matrix = sparse.bmat(blocks, format="csc")
        squares = 2 * self.problem.regularization * np.ones(count + self.excess)
        curvature = sparse.diags(np.r_[np.zeros(2 * self.size), squares], format="csc")
        costs = np.r_[np.zeros(self.size), np.ones(self.size), np.zeros(count + self.excess)]
        low = np.r_[np.full(2 * self.size, -np.inf), self.target, np.full(len(self.sides), -np.inf)]
        return curvature, costs, matrix, low, np.r_[np.zeros(2 * self.size), self.target, self.bound]

    def stated(self, at_points: Vector) -> Tensor:
        """Multipliers of the points; of the compressed rows' r they are Q r, as A u - y = Q (R u - s)."""
        r = torch.as_tensor(at_points)
        if not self._reflections:
            return r
        padded = torch.cat([r, r.new_zeros(len(self.points) - len(r))])
        return torch.ormqr(*self._reflections, padded[:, None])[:, 0]

    def judge(self, u: Vector, at_points: Vector, at_sides: Vector) -> dict[str, Any]:
        """Gap and violation of the weights as they came and of the best repair of them, and that repair's nonzeros."""
        r = torch.zeros(1, self.problem.design.samples, dtype=torch.float64)
        r[0, torch.as_tensor(self.points)] = self.stated(at_points)
        r[0, torch.as_tensor(self.sides)] = torch.as_tensor(at_sides)
        weight, dual = torch.as_tensor(u)[None], r.T * self.problem.dual_scale
        raw = certify(self.program, self._unscaled(weight), dual)
        best, nonzeros, inside = float("inf"), int((weight != 0).sum()), float("nan")
        for cut in _CUTS:
            point = make_feasible(self.problem, torch.where(weight.abs() <= cut * weight.abs().max(), 0.0, weight))
            if point is None:
                continue
            told = certify(self.program, self._unscaled(point), dual)
            if told.gap < 0.5 * best:
                best, nonzeros, inside = told.gap, int((point != 0).sum()), told.violation
        return {
            "objective": raw.objective,
            "raw_gap": raw.gap,
            "raw_violation": raw.violation,
            "repaired_gap": best,
            "repaired_violation": inside,
            "accuracy": min(max(abs(raw.gap), raw.violation), best),
            "nonzeros": nonzeros,
        }

    def _unscaled(self, weight: Tensor) -> Tensor:
        whole = weight.new_zeros(self.program.shape)
        whole[:, self.columns] = weight * self.problem.weight_scale
        return whole

    def read_cone(self, x: Vector, y: Vector) -> dict[str, Any]:
        start, cone = 2 * self.size, 2 * self.size + len(self.sides)
        points = y[cone + 1 : cone + 1 + len(self.target)]
        return self.judge(x[: self.size], points, -y[start:cone])

    def read_quadratic(self, x: Vector, y: Vector) -> dict[str, Any]:
        start = 2 * self.size
        middle = start + len(self.target)
        return self.judge(x[: self.size], -y[start:middle], -y[middle:])


def run_scs(form: Form, eps: float) -> dict[str, Any]:
    """SCS with its Anderson acceleration, as it comes but for the tolerance."""
    matrix, right, costs, linear, cone = form.cone
    began = time.process_time()
    solver = scs.SCS(
        {"A": matrix, "b": right, "c": costs}, {"l": linear, "q": [cone]},
        eps_abs=eps, eps_rel=eps, max_iters=10**6, verbose=False,
    )  # fmt: skip
    told = solver.solve()
    spent = time.process_time() - began
    return {"seconds": spent, "iterations": told["info"]["iter"]} | form.read_cone(told["x"], told["y"])


def run_clarabel(form: Form, eps: float) -> dict[str, Any]:
    """Clarabel as it comes but for the tolerance, of gap and of residuals."""
    matrix, right, costs, linear, cone = form.cone
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = eps
    began = time.process_time()
    cones = [clarabel.NonnegativeConeT(linear), clarabel.SecondOrderConeT(cone)]
    nothing = sparse.csc_matrix((len(costs), len(costs)))
    told = clarabel.DefaultSolver(nothing, costs, matrix, right, cones, settings).solve()
    spent = time.process_time() - began
    return {"seconds": spent, "iterations": told.iterations} | form.read_cone(np.array(told.x), np.array(told.z))


def run_osqp(form: Form, eps: float) -> dict[str, Any]:
    """OSQP as it comes but for the tolerance."""
    curvature, costs, matrix, low, high = form.quadratic
    began = time.process_time()
    solver = osqp.OSQP()
    solver.setup(curvature, costs, matrix, low, high, eps_abs=eps, eps_rel=eps, max_iter=10**6, verbose=False)
    told = solver.solve(raise_error=False)
    spent = time.process_time() - began
    return {"seconds": spent, "iterations": told.info.iter} | form.read_quadratic(told.x, told.y)


@dataclass(frozen=True)
class Rival:
    """How a solver is run, and its tolerances from loose to tight."""

    run: Callable[[Form, float], dict[str, Any]]
    ladder: tuple[float, ...]


_STEPS = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 1e-6, 1e-7)
RIVALS = {
    "SCS": Rival(run_scs, _STEPS),
    "Clarabel": Rival(run_clarabel, (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8)),  # the last: its default
    "OSQP": Rival(run_osqp, _STEPS),
}


def race(name: str, program: Program, neurons: list[int], limit: float) -> dict[str, Any]:
    """Each neuron in the faster of its forms, at the loosest setting that our certificate finds within the tolerance.

    Only that run is charged, with the compression where there is one. In each form the first neuron finds the setting,
    from the loosest on, the others start from it and are tightened where they need it. A run of more than `limit` CPU
    seconds is stopped and charged with these. A neuron that no form solves is charged with the least that one took.
    """
    rival, first, runs = RIVALS[name], dict[str, int](), []
    for neuron in neurons:
        part = program.rows(torch.tensor([neuron]))
        forms = {"as stated": Form(part)}
        if forms["as stated"].compressible:
            forms["compressed"] = Form(part, compressed=True)
        tried = []
        for kind, form in forms.items():
            rung, told = _climb(rival, form, first.get(kind, 0), limit)
            first.setdefault(kind, rung)
            tried.append({"form": kind, "compression": form.seconds} | told)
        best = min(tried, key=lambda told: (not told["reached"], told["seconds"]))
        others = [told for told in tried if told is not best]
        runs.append({"neuron": neuron} | best | {"others": others})
    return _summary(runs)


def _climb(rival: Rival, form: Form, rung: int, limit: float) -> tuple[int, dict[str, Any]]:
    """The first rung, from this one to tighter ones, that reaches the tolerance, or the last tried, and its run."""
    while True:
        eps = rival.ladder[rung]
        answer = in_child(lambda eps=eps: rival.run(form, eps), limit)
        if answer.value is None:
            told = {"seconds": limit, "accuracy": float("inf"), "nonzeros": 0}
            told |= {"exceeded": answer.exceeded, "error": answer.error}
        else:
            told = answer.value | {"exceeded": False}
            told["seconds"] += form.seconds
        told |= {"setting": eps, "reached": told["accuracy"] <= TOLERANCE}
        if told["reached"] or told["exceeded"] or rung + 1 == len(rival.ladder):
            return rung, told
        rung += 1


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "runs": runs,
        "neurons": [run["neuron"] for run in runs],
        "seconds": sum(run["seconds"] for run in runs) / len(runs),
        "at_least": not all(run["reached"] for run in runs),
        "accuracy": max(run["accuracy"] for run in runs),
        "reached": sum(run["reached"] for run in runs),
    }


def race_lp(program: Program, neurons: list[int], limit: float) -> dict[str, Any]:
    """HiGHS on the program with epsilon zero."""

    def run(neuron: int) -> dict[str, Any]:
        part = program.rows(torch.tensor([neuron]))
        began = time.process_time()
        answer = solve_lp(part)
        spent = time.process_time() - began
        told = certify(part, answer.weight, answer.dual)
        accuracy = max(abs(told.gap), told.violation)
        return {"seconds": spent, "accuracy": accuracy, "nonzeros": int((answer.weight != 0).sum())}

    runs = []
    for neuron in neurons:
        told = in_child(lambda neuron=neuron: run(neuron), limit)
        entry = told.value or {"seconds": limit, "accuracy": float("inf"), "nonzeros": 0}
        runs.append({"neuron": neuron, "reached": entry["accuracy"] <= TOLERANCE, "exceeded": told.exceeded} | entry)
    return _summary(runs)
