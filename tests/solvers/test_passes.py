"""A tau that several rows share: one that never settles does not keep the others from theirs."""

import pytest
import torch

from nettrim import Program
from nettrim.solvers.curvature import extended, nothing_known
from nettrim.solvers.inner import Lassos
from nettrim.solvers.passes import _PASSES, _ROUGH_PASSES, choose_tau, solve_lassos
from nettrim.solvers.problem import make_problem


def joint(rows=6, samples=80, columns=12, seed=0, budget="layer"):
    """A joint budget of linear neurons, or budgets of their own, and the rows' lassos: every sample counts, whatever
    the weights."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, columns, generator=generator, dtype=torch.float64)
    responses = torch.randn(samples, rows, generator=generator, dtype=torch.float64)
    responses += inputs @ torch.randn(columns, rows, generator=generator, dtype=torch.float64)
    epsilon = 0.75 * float(responses.norm()) if budget == "layer" else 0.75 * responses.norm(dim=0)
    problem = make_problem(Program.linear(inputs, responses, epsilon, "distance", budget=budget))
    every, all_samples = torch.ones(columns, dtype=torch.bool), torch.ones(samples, dtype=torch.bool)
    (known,) = extended([nothing_known(problem.design)], problem.design, every[None], all_samples[None])
    lassos = Lassos(problem.design, [known] * rows, torch.ones(rows, columns, dtype=torch.float64), 0.0)
    gradient = problem.design.back(problem.lower)
    zero = torch.zeros_like(gradient)
    lassos.begin(zero, zero, gradient, (problem.lower**2).sum(dim=1), gradient / 0.5)
    return problem, lassos


def meets(problem, lassos, tau):
    """KKT of every row at tau, and the budget."""
    x = problem.design.forward(torch.eye(problem.design.width, dtype=torch.float64)).T
    square = 0.0
    for row, v in enumerate(lassos.v):
        missing = problem.lower[row] - x @ v
        pull, inside = x.T @ missing, v.abs() > 1e-12
        assert torch.allclose(pull[inside], tau * v[inside].sign(), atol=1e-9)
        assert bool((pull.abs() <= tau * (1 + 1e-6)).all())
        square += float(missing @ missing)
    assert square**0.5 == pytest.approx(float(problem.epsilon[0]), rel=1e-9)


def unsettled(monkeypatch, stray):
    """Let row `stray` never settle: every pass turns its signs. Returns the numbers of other rows solved."""
    settle, solve, solves = Lassos.settle, Lassos.solve, []

    def turned(self, rows, tau, cautious):
        settle(self, rows, tau, cautious)
        if bool((rows == stray).any()):
            self.signs[stray] *= -1
            self.dirty[stray] = True

    def counted(self, rows):
        solves.append(int((rows != stray).sum()))
        solve(self, rows)

    monkeypatch.setattr(Lassos, "settle", turned)
    monkeypatch.setattr(Lassos, "solve", counted)
    return solves


def test_all_rows_meet_one_budget():
    problem, lassos = joint()
    tau = torch.full((1,), 0.5, dtype=torch.float64)
    solve_lassos(problem, lassos, tau, torch.zeros(1, dtype=torch.float64))
    assert not bool(lassos.hopeless.any())
    meets(problem, lassos, float(tau))


def test_a_row_that_never_settles_is_led_and_the_budget_is_met(monkeypatch):
    problem, lassos = joint()
    tau = torch.full((1,), 0.5, dtype=torch.float64)
    solves = unsettled(monkeypatch, 3)
    solve_lassos(problem, lassos, tau, torch.zeros(1, dtype=torch.float64))
    assert not bool(lassos.hopeless.any())
    meets(problem, lassos, float(tau))
    assert sum(solves) <= 20 * 5  # of five other rows, though the passes were some forty


def test_a_row_that_cannot_be_led_is_given_up_the_second_time(monkeypatch):
    problem, lassos = joint()
    tau, margin = torch.full((1,), 0.5, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    unsettled(monkeypatch, 3)
    monkeypatch.setattr("nettrim.solvers.homotopy._begin", lambda lassos, rows, tau: torch.zeros_like(rows) > 0)
    solve_lassos(problem, lassos, tau, margin)
    assert not bool(lassos.hopeless[3]) and bool(lassos.strayed[3])
    first = float(tau)
    lassos.dirty[3] = True
    solve_lassos(problem, lassos, tau, margin)
    assert lassos.hopeless.nonzero().flatten().tolist() == [3]
    assert float(tau) == first  # where the others are, not where a stray point would have it


def test_no_row_asks_for_no_tau():
    problem, lassos = joint()
    tau = torch.full((1,), 0.5, dtype=torch.float64)
    assert choose_tau(problem, lassos.coefficients, tau, [], torch.zeros(1, dtype=torch.float64)) == set()
    assert float(tau) == 0.5


@pytest.mark.parametrize("most", [True, False], ids=["most rows move", "few rows move"])
def test_a_rough_solution_ends_early_only_while_most_rows_move(monkeypatch, most):
    """Rows whose signs are turned in every pass: what the passes came to stands, and nothing is given up."""
    problem, lassos = joint(budget="neuron")
    moving = torch.arange(6) < (4 if most else 3)
    settle, passes = Lassos.settle, []

    def turned(self, rows, tau, cautious):
        settle(self, rows, tau, cautious)
        passes.append(len(rows))
        self.signs[moving] *= -1
        self.dirty[moving] = True

    monkeypatch.setattr(Lassos, "settle", turned)
    tau = torch.full((6,), 0.5, dtype=torch.float64)
    solve_lassos(problem, lassos, tau, torch.zeros(6, dtype=torch.float64), roughly=True)
    assert len(passes) == (_ROUGH_PASSES if most else _PASSES)
    assert not bool(lassos.hopeless.any())
    if most:  # the signs are those of the points
        assert torch.equal(lassos.signs[moving], lassos.v[moving].sign())
