"""One row's lasso, one change of the support at a time: optimal at the tau that meets the budget, however it starts."""

from dataclasses import replace

import pytest
import torch

from nettrim.programs import Program
from nettrim.solvers import block, homotopy, solve
from nettrim.solvers.design import make_design
from nettrim.solvers.homotopy import lead_row, solve_row
from nettrim.solvers.inner import RowModel
from nettrim.solvers.problem import make_problem


def quadratic(samples, features=12, free=False, seed=0):
    """A row's model with all `samples` counting, and X, b, costs of its own."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, features, generator=generator, dtype=torch.float64)
    responses = torch.randn(samples, 1, generator=generator, dtype=torch.float64)
    program = Program.linear(inputs, responses, 0.1, "distance")
    problem = make_problem(program, make_design(inputs, torch.float64))
    model = RowModel(problem)
    model.update(torch.ones(features, dtype=torch.bool), torch.ones(samples, dtype=torch.bool))
    model.costs = torch.rand(features, generator=generator, dtype=torch.float64) + 0.5
    model.free = torch.zeros(features, dtype=torch.bool)
    if free:
        model.costs[0], model.free[0] = 0.0, True
    return model, inputs * problem.design.factor, problem.lower[0]


def begin(model, x, b, start):
    """Set the model's linear term as an outer step does from `start`; the supports of the passes do not matter."""
    missing = b - x @ start
    model.begin(start, start.sign(), x.T @ missing, float(missing @ missing), torch.zeros_like(start))


def check(model, x, b, tau):
    """KKT of |X v - b|^2 / 2 + tau costs |v|."""
    pull = x.T @ (b - x @ model.v)
    limit = tau * model.costs
    inside = model.v.abs() > 1e-12
    assert torch.allclose(pull[inside], limit[inside] * model.v[inside].sign(), atol=1e-9)
    assert bool((pull.abs() <= limit * (1 + 1e-6) + 1e-9).all())


@pytest.mark.parametrize("samples", [5, 11, 40])
@pytest.mark.parametrize("free", [False, True], ids=["all penalised", "a free column"])
@pytest.mark.parametrize("start", ["zero", "dense", "sparse"])
def test_optimal_at_a_given_tau_and_at_a_given_distance(samples, free, start):
    """Also with fewer samples than weights, where the Gram matrix is singular."""
    for seed in range(6):
        model, x, b = quadratic(samples, free=free, seed=seed)
        from_here = torch.zeros(12, dtype=torch.float64)
        if start != "zero":
            from_here = torch.randn(12, dtype=torch.float64)
            from_here[: 9 if start == "sparse" else 0] = 0.0
        begin(model, x, b, from_here)
        largest = float(((x.T @ b).abs() / model.costs.clamp(min=0.5)).max())
        assert solve_row(model, from_here, 0.3 * largest, None) == 0.3 * largest
        check(model, x, b, 0.3 * largest)
        there, supported = float(((x @ model.v - b) ** 2).sum()), bool(model.signs.any())
        for share in (0.6, 1.0, 1.3):
            begin(model, x, b, from_here)
            tau = solve_row(model, from_here, 0.3 * largest, share * there)
            if tau is None:  # as far as without a penalised weight or farther, or nearer than the least squares
                assert share != 1.0 or not supported
                continue
            check(model, x, b, tau)
            assert float(((x @ model.v - b) ** 2).sum()) == pytest.approx(share * there, rel=1e-9)


@pytest.mark.parametrize("samples", [5, 40])
@pytest.mark.parametrize("share", [0.02, 0.5, 1.0, 1.7, 30.0])
def test_led_to_another_tau(samples, share):
    """Up or down, past the tau at which all weights vanish, too."""
    for seed in range(6):
        model, x, b = quadratic(samples, seed=seed)
        start = torch.zeros(12, dtype=torch.float64)
        begin(model, x, b, start)
        tau = 0.3 * float(((x.T @ b).abs() / model.costs).max())
        assert lead_row(model, tau, share * tau, start)
        check(model, x, b, share * tau)


def test_a_distance_that_no_weights_reach():
    model, x, b = quadratic(40)
    start = torch.zeros(12, dtype=torch.float64)
    solution = torch.linalg.lstsq(x, b[:, None]).solution[:, 0]
    least = float(((x @ solution - b) ** 2).sum())
    begin(model, x, b, start)
    assert solve_row(model, start, 1.0, 0.99 * least) is None
    begin(model, x, b, start)
    assert solve_row(model, start, 1.0, 1.01 * least) is not None


@pytest.mark.parametrize("constraint", ["distance", "strict"])
def test_nearly_dead_neurons_need_no_interior_point_method_on_a_path(monkeypatch, constraint):
    """Few samples count, and the support is nearly as large as the number of those that count or bind: full Newton
    steps and passes that change many signs at once diverge from the next epsilon's solution."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(3000, 60, generator=generator).relu()
    weight = torch.randn(60, 12, generator=generator)
    raw = inputs @ weight
    responses = (raw - raw.topk(10, dim=0).values[-1]).relu()
    program = Program.relu(inputs, responses, 0.02 * responses.norm(dim=0), constraint, budget="neuron")
    solution, called = solve(program, 1e-4), []
    inner = block.solve_interior

    def counted(problem, *rest):
        called.append(problem.rows)
        return inner(problem, *rest)

    monkeypatch.setattr(block, "solve_interior", counted)
    for share in (0.026, 0.034, 0.044, 0.057, 0.074):
        solution = solve(replace(program, epsilon=share * responses.norm(dim=0).double()), 1e-4, warm=solution)
        assert solution.certified
    assert sum(called) <= 1  # what binds is not always told by the multipliers that end a central path, as the first do


def test_a_row_that_cannot_be_led_stays_where_it_was(monkeypatch):
    """Weights, signs, the hard samples that bind and their multipliers: what one of them says, the others mean."""
    model, x, b = quadratic(40)
    start = torch.linalg.lstsq(x, b[:, None]).solution[:, 0]
    begin(model, x, b, start)
    near, free = torch.arange(6), torch.zeros(6, dtype=torch.float64)
    model.bind(near, torch.tensor([True, True, False, False, False, False]), free, free + 1, 0.0)
    model.solve()
    model.take(1e-3)
    before = [part.clone() for part in model.state]
    monkeypatch.setattr(homotopy, "_CHANGES", 3)
    assert not lead_row(model, 1e-3, 1e3)
    assert all(torch.equal(one, other) for one, other in zip(before, model.state, strict=True))
    assert len(model.nu) == len(model.binding) == 2
