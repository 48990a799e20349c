"""A joint budget solved row by row: the scalar equation, and the joint program's own optimum and certificate."""

import math
from dataclasses import replace

import pytest
import torch

from nettrim import Program
from nettrim.solvers import block, solve
from nettrim.solvers.apart import _judged, _Root, _rows, _together, solve_apart
from nettrim.solvers.guess import Guess, binding
from nettrim.solvers.interior import solve_interior
from nettrim.solvers.problem import make_problem


def program(constraint, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(120, 12, generator=generator, dtype=torch.float64)
    weight = torch.randn(5, 12, generator=generator, dtype=torch.float64) * torch.rand(5, 1, generator=generator)
    inputs[:, -1] = 1.0
    responses = (inputs @ weight.T).relu()
    epsilon = 0.2 * float(responses.norm())
    return Program.relu(inputs, responses, epsilon, constraint, budget="layer")


def assert_optimal(problem, found, objective, gap):
    """Within the gap of optimal, as its bound and an answer at hand say, and within the constraint."""
    assert float(found.gap) <= gap
    assert float((found.weight * problem.weight_scale).abs().sum()) == pytest.approx(objective, rel=3 * gap)
    soft, hard = problem.distance(problem.design.forward(found.weight))
    assert float(soft.norm()) <= float(problem.epsilon[0])
    assert float(hard.abs().max()) <= 1e-10


@pytest.mark.parametrize("constraint", ["distance", "strict"])
@pytest.mark.parametrize("tau", [0.01, 1.0, 100.0], ids=str)
def test_any_first_multiplier_leads_to_the_joint_optimum(constraint, tau):
    given = program(constraint)
    expected = solve(given, 1e-6)
    problem = make_problem(given)
    zero = torch.zeros(5, 12, dtype=torch.float64)
    dual = torch.zeros_like(problem.lower)
    start = Guess(zero, dual, binding(problem, dual, zero), torch.full((1,), tau, dtype=torch.float64))
    found, work = solve_apart(problem, start, 1e-6)
    assert expected.certificate.gap <= 1e-6
    assert work > 0
    assert_optimal(problem, found, expected.certificate.objective, 1e-6)


@pytest.mark.parametrize("zero", [1e-6, 0.3, 1.0, 40.0, 1e7], ids=str)
@pytest.mark.parametrize(
    "function",
    [lambda t: 2 * t, lambda t: t**3 + t, lambda t: math.atan(3 * t), lambda t: -1.0 if t < 0 else 0.5 * t],
    ids=["line", "cubic", "flat ends", "jump"],
)
def test_the_root_is_found_from_far_away(function, zero):
    root, tau = _Root(), 1.0
    for _ in range(60):
        tau = root.next(tau, function(math.log(tau / zero)))
    assert tau == pytest.approx(zero, rel=1e-6)


@pytest.mark.parametrize("tau", [0.01, 0.1, 10.0], ids=str)
def test_the_central_path_solves_rows_at_any_multiplier(tau):
    """Zero weights stay the best feasible point for long, which is no reason to give a path up."""
    problem = make_problem(program("strict"))
    rows = replace(problem, epsilon=None, regularization=1 / (2 * tau), groups=torch.arange(5))
    assert bool((solve_interior(rows, 1e-5).found.gap <= 1e-5).all())


@pytest.mark.parametrize("alone", [[], [2], [0, 3], [0, 1, 2, 3, 4]], ids=str)
@pytest.mark.parametrize("constraint", ["distance", "strict"])
@pytest.mark.parametrize("off", [0.95, 1.05], ids=str)
def test_rows_that_stay_out_of_the_joint_polish(constraint, alone, off):
    """They follow the tau that the others find; where all stay out there is nothing to polish."""
    given = program(constraint)
    problem = make_problem(given)
    right = solve(given, 1e-8)
    zero, dual = torch.zeros(5, 12, dtype=torch.float64), torch.zeros_like(problem.lower)
    found, _ = solve_apart(problem, Guess(zero, dual, binding(problem, dual, zero), torch.ones(1).double()), 1e-6)
    assert float(found.gap) <= 1e-6
    soft, _ = problem.distance(problem.design.forward(found.weight))
    counted = found.dual if problem.soft is None else torch.where(problem.soft, found.dual, 0.0)
    tau = float(soft.norm() / counted.norm())
    start = Guess(zero, dual, binding(problem, dual, zero), torch.full((1,), off * tau, dtype=torch.float64))
    near = _rows(problem, start, 1e-6, None).guess
    out = torch.tensor(alone, dtype=torch.int64)
    answer, work = _together(problem, near, out, _judged(problem, near), 1e-5, None)
    if len(alone) == 5:
        assert work == 0
        return
    assert_optimal(problem, answer, right.certificate.objective, 1e-5)


@pytest.mark.parametrize("strayed", [[], [2], [0, 3], [0, 1, 2, 3, 4]], ids=str)
@pytest.mark.parametrize("constraint", ["distance", "strict"])
@pytest.mark.parametrize("tau", [0.01, 1.0, 100.0], ids=str)
def test_whichever_rows_strayed_the_joint_optimum_is_found(constraint, strayed, tau):
    given = program(constraint, seed=1)
    problem = make_problem(given)
    expected = solve(given, 1e-7).certificate.objective
    before = solve(replace(given, epsilon=1.1 * given.epsilon), 1e-7)
    u, dual = (before.weight / problem.weight_scale, before.dual.T / problem.dual_scale)
    start = Guess(u, dual, binding(problem, dual, u), torch.full((1,), tau, dtype=torch.float64))
    mask = torch.zeros(5, dtype=torch.bool)
    mask[strayed] = True
    found, work = solve_apart(problem, start, 1e-5, strayed=mask)
    assert work > 0
    assert_optimal(problem, found, expected, 1e-5)


@pytest.mark.parametrize("constraint", ["distance", "strict"])
def test_rows_apart_begin_near_the_multiplier_also_where_the_polish_lost_it(constraint, monkeypatch):
    given = program(constraint)
    right = solve(given, 1e-7)
    problem = make_problem(given)
    u, dual = right.weight / problem.weight_scale, right.dual.T / problem.dual_scale
    soft, _ = problem.distance(problem.design.forward(u))
    counted = dual if problem.soft is None else torch.where(problem.soft, dual, 0.0)
    seen = []
    polished, apart = block.polish, block.solve_apart

    def lost(*args, **how):
        found = polished(*args, **how)
        return replace(found, objective=torch.full_like(found.objective, torch.inf), tau=1e-6 * found.tau)

    def watched(part, guess, *args):
        seen.append(float(guess.tau))
        return apart(part, guess, *args)

    monkeypatch.setattr(block, "polish", lost)
    monkeypatch.setattr(block, "solve_apart", watched)
    assert solve(given, 1e-5).certified
    assert 0.25 < seen[0] / float(soft.norm() / counted.norm()) < 4
