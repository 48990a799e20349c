"""A tau that several rows share: one that never settles does not keep the others from theirs."""

import pytest
import torch

from nettrim import Program
from nettrim.solvers.inner import RowModel
from nettrim.solvers.passes import choose_tau, solve_models
from nettrim.solvers.problem import make_problem


def joint(rows=6, samples=80, columns=12, seed=0):
    """A joint budget of linear neurons and its rows' models: every sample counts, whatever the weights."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, columns, generator=generator, dtype=torch.float64)
    responses = torch.randn(samples, rows, generator=generator, dtype=torch.float64)
    responses += inputs @ torch.randn(columns, rows, generator=generator, dtype=torch.float64)
    epsilon = 0.75 * float(responses.norm())
    problem = make_problem(Program.linear(inputs, responses, epsilon, "distance", budget="layer"))
    models = {}
    for row in range(rows):
        models[row] = RowModel(problem)
        models[row].update(torch.ones(columns, dtype=torch.bool), torch.ones(samples, dtype=torch.bool))
        models[row].costs = torch.ones(columns, dtype=torch.float64)
        models[row].free = torch.zeros(columns, dtype=torch.bool)
        b = problem.lower[row]
        gradient = problem.design.back(b[None])[0]
        zero = torch.zeros(columns, dtype=torch.float64)
        models[row].begin(zero, zero, gradient, float(b @ b), gradient / 0.5)
    return problem, models


def meets(problem, models, tau):
    """KKT of every row at tau, and the budget."""
    x = problem.design.forward(torch.eye(problem.design.width, dtype=torch.float64)).T
    square = 0.0
    for row, model in models.items():
        missing = problem.lower[row] - x @ model.v
        pull, inside = x.T @ missing, model.v.abs() > 1e-12
        assert torch.allclose(pull[inside], tau * model.v[inside].sign(), atol=1e-9)
        assert bool((pull.abs() <= tau * (1 + 1e-6)).all())
        square += float(missing @ missing)
    assert square**0.5 == pytest.approx(float(problem.epsilon[0]), rel=1e-9)


def unsettled(monkeypatch, model):
    """Let `model` never settle: every pass turns its signs. Returns the count of solves of other rows."""
    settle, solve, solves = RowModel.settle, RowModel.solve, []

    def turned(self, tau, cautious):
        settle(self, tau, cautious)
        if self is model:
            self.signs, self.dirty = -self.signs, True

    def counted(self):
        solves.append(self is not model)
        solve(self)

    monkeypatch.setattr(RowModel, "settle", turned)
    monkeypatch.setattr(RowModel, "solve", counted)
    return solves


def test_all_rows_meet_one_budget():
    problem, models = joint()
    tau = torch.full((1,), 0.5, dtype=torch.float64)
    solve_models(problem, models, tau, torch.zeros(1, dtype=torch.float64))
    assert not any(model.hopeless for model in models.values())
    meets(problem, models, float(tau))


def test_a_row_that_never_settles_is_led_and_the_budget_is_met(monkeypatch):
    problem, models = joint()
    tau = torch.full((1,), 0.5, dtype=torch.float64)
    solves = unsettled(monkeypatch, models[3])
    solve_models(problem, models, tau, torch.zeros(1, dtype=torch.float64))
    assert not any(model.hopeless for model in models.values())
    meets(problem, models, float(tau))
    assert sum(solves) <= 20 * 5  # of five other rows, though the passes were some forty


def test_a_row_that_cannot_be_led_is_given_up_the_second_time(monkeypatch):
    problem, models = joint()
    tau, margin = torch.full((1,), 0.5, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    unsettled(monkeypatch, models[3])
    monkeypatch.setattr("nettrim.solvers.homotopy._begin", lambda model, start, tau: False)
    solve_models(problem, models, tau, margin)
    assert not models[3].hopeless and models[3].strayed
    first = float(tau)
    models[3].dirty = True
    solve_models(problem, models, tau, margin)
    assert [row for row, model in models.items() if model.hopeless] == [3]
    assert float(tau) == first  # where the others are, not where a stray point would have it


def test_no_row_asks_for_no_tau():
    problem, models = joint()
    tau = torch.full((1,), 0.5, dtype=torch.float64)
    assert choose_tau(problem, models, tau, [], torch.zeros(1, dtype=torch.float64)) == set()
    assert float(tau) == 0.5
