"""One row's lasso, one change of the support at a time: optimal at the tau that meets the budget, however it starts."""

from dataclasses import replace

import pytest
import torch

from nettrim.programs import Program
from nettrim.solvers import block, homotopy, solve
from nettrim.solvers.curvature import extended, nothing_known
from nettrim.solvers.design import make_design
from nettrim.solvers.homotopy import lead_rows, solve_rows
from nettrim.solvers.inner import Lassos
from nettrim.solvers.problem import make_problem

ONLY = torch.tensor([0])


def quadratic(samples, features=12, free=False, seed=0):
    """A row's model with all `samples` counting, and X, b, costs of its own."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, features, generator=generator, dtype=torch.float64)
    responses = torch.randn(samples, 1, generator=generator, dtype=torch.float64)
    program = Program.linear(inputs, responses, 0.1, "distance")
    problem = make_problem(program, make_design(inputs, torch.float64))
    every, all_samples = torch.ones(features, dtype=torch.bool), torch.ones(samples, dtype=torch.bool)
    (known,) = extended([nothing_known(problem.design)], problem.design, every[None], all_samples[None])
    costs = torch.rand(features, generator=generator, dtype=torch.float64) + 0.5
    if free:
        costs[0] = 0.0
    return Lassos(problem.design, [known], costs[None], 0.0), inputs * problem.design.factor, problem.lower[0]


def begin(lassos, x, b, start):
    """Set the row's linear term as an outer step does from `start`; the supports of the passes do not matter."""
    missing = b - x @ start
    zero = torch.zeros_like(start)[None]
    lassos.begin(start[None], start.sign()[None], (x.T @ missing)[None], (missing @ missing)[None], zero)


def solve_row(lassos, tau, square):
    """The tau of the only row, None where it is not found."""
    there, found = solve_rows(lassos, ONLY, one(tau), None if square is None else one(square))
    return float(there) if bool(found) else None


def one(value):
    return torch.tensor([value], dtype=torch.float64)


def check(lassos, x, b, tau):
    """KKT of |X v - b|^2 / 2 + tau costs |v|."""
    v = lassos.v[0]
    pull = x.T @ (b - x @ v)
    limit = tau * lassos.costs[0]
    inside = v.abs() > 1e-12
    assert torch.allclose(pull[inside], limit[inside] * v[inside].sign(), atol=1e-9)
    assert bool((pull.abs() <= limit * (1 + 1e-6) + 1e-9).all())


@pytest.mark.parametrize("samples", [5, 11, 40])
@pytest.mark.parametrize("free", [False, True], ids=["all penalised", "a free column"])
@pytest.mark.parametrize("start", ["zero", "dense", "sparse"])
def test_optimal_at_a_given_tau_and_at_a_given_distance(samples, free, start):
    """Also with fewer samples than weights, where the Gram matrix is singular."""
    for seed in range(6):
        lassos, x, b = quadratic(samples, free=free, seed=seed)
        from_here = torch.zeros(12, dtype=torch.float64)
        if start != "zero":
            from_here = torch.randn(12, dtype=torch.float64)
            from_here[: 9 if start == "sparse" else 0] = 0.0
        begin(lassos, x, b, from_here)
        largest = float(((x.T @ b).abs() / lassos.costs[0].clamp(min=0.5)).max())
        assert solve_row(lassos, 0.3 * largest, None) == 0.3 * largest
        check(lassos, x, b, 0.3 * largest)
        there, supported = float(((x @ lassos.v[0] - b) ** 2).sum()), bool(lassos.signs.any())
        for share in (0.6, 1.0, 1.3):
            begin(lassos, x, b, from_here)
            tau = solve_row(lassos, 0.3 * largest, share * there)
            if tau is None:  # as far as without a penalised weight or farther, or nearer than the least squares
                assert share != 1.0 or not supported
                continue
            check(lassos, x, b, tau)
            assert float(((x @ lassos.v[0] - b) ** 2).sum()) == pytest.approx(share * there, rel=1e-9)


@pytest.mark.parametrize("features", [5 + homotopy._TOO_MANY, 6 + homotopy._TOO_MANY])
def test_a_support_that_its_changes_cannot_mend_is_not_tried(monkeypatch, features):
    """A vertex of five samples has at most five weights, and a change drops one."""
    lassos, x, b = quadratic(5, features=features)
    begin(lassos, x, b, torch.ones(features, dtype=torch.float64))
    solved = []
    monkeypatch.setattr(lassos, "solve", lambda rows: solved.extend(rows.tolist()) or Lassos.solve(lassos, rows))
    assert (solve_row(lassos, 0.3, None) is None) == (features > 5 + homotopy._TOO_MANY) == (not solved)


@pytest.mark.parametrize("samples", [5, 40])
@pytest.mark.parametrize("share", [0.02, 0.5, 1.0, 1.7, 30.0])
def test_led_to_another_tau(samples, share):
    """Up or down, past the tau at which all weights vanish, too."""
    for seed in range(6):
        lassos, x, b = quadratic(samples, seed=seed)
        start = torch.zeros(12, dtype=torch.float64)
        begin(lassos, x, b, start)
        tau = 0.3 * float(((x.T @ b).abs() / lassos.costs[0]).max())
        assert bool(lead_rows(lassos, ONLY, one(tau), one(share * tau), anew=True))
        check(lassos, x, b, share * tau)


def test_a_distance_that_no_weights_reach():
    lassos, x, b = quadratic(40)
    start = torch.zeros(12, dtype=torch.float64)
    solution = torch.linalg.lstsq(x, b[:, None]).solution[:, 0]
    least = float(((x @ solution - b) ** 2).sum())
    begin(lassos, x, b, start)
    assert solve_row(lassos, 1.0, 0.99 * least) is None
    begin(lassos, x, b, start)
    assert solve_row(lassos, 1.0, 1.01 * least) is not None


# of 60 neurons: what binds is not always told by the multipliers that end a central path, as the first solution's do
@pytest.mark.parametrize(("constraint", "most"), [("distance", 1), ("strict", 4)])
def test_nearly_dead_neurons_need_no_interior_point_method_on_a_path(monkeypatch, constraint, most):
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
    assert sum(called) <= most


def test_a_path_of_a_hundred_bends_is_followed_to_its_end():
    """A shared tau moves far in one go, and a support with it."""
    lassos, x, b = quadratic(200, features=120)
    begin(lassos, x, b, torch.zeros(120, dtype=torch.float64))
    tau = 0.99 * float(((x.T @ b).abs() / lassos.costs[0]).max())
    assert bool(lead_rows(lassos, ONLY, one(tau), one(1e-3 * tau), anew=True))
    assert int((lassos.v != 0).sum()) > 100
    check(lassos, x, b, 1e-3 * tau)


def test_a_row_that_cannot_be_led_stays_where_it_was(monkeypatch):
    """Weights, signs, the hard samples that bind and their multipliers: what one of them says, the others mean."""
    lassos, x, b = quadratic(40)
    start = torch.linalg.lstsq(x, b[:, None]).solution[:, 0]
    begin(lassos, x, b, start)
    near, zero = torch.arange(6)[None], torch.zeros(1, 6, dtype=torch.float64)
    held = torch.tensor([[True, True, False, False, False, False]])
    lassos.bind(near, torch.ones_like(held), held, zero, zero + 1, zero[:, 0])
    lassos.solve(ONLY)
    lassos.take(ONLY, one(1e-3))
    parts = (lassos.v, lassos.signs, lassos.held, lassos.nu)
    before = [part.clone() for part in parts]
    monkeypatch.setattr(homotopy, "_BENDS", 3)
    assert not bool(lead_rows(lassos, ONLY, one(1e-3), one(1e3)))
    assert all(torch.equal(one, other) for one, other in zip(before, parts, strict=True))
    assert torch.equal(lassos.nu != 0, lassos.held) and int(lassos.held.sum()) == 2


@pytest.mark.parametrize("samples", [5, 40])
def test_rows_change_side_by_side_as_each_would_alone(samples):
    """Among rows of other sizes, some of which have farther to go and some nowhere."""
    problems = [quadratic(samples, features=features, free=features == 9, seed=features) for features in (3, 9, 12, 5)]
    design = problems[2][0].design
    taus = torch.tensor([0.2, 0.4, 0.1, 0.3], dtype=torch.float64)
    squares = torch.tensor([0.5, 1.3, 0.0, 0.9], dtype=torch.float64)
    alone = []
    for (lassos, x, b), tau, share in zip(problems, taus, squares, strict=True):
        begin(lassos, x, b, torch.zeros(x.shape[1], dtype=torch.float64))
        solve_rows(lassos, ONLY, tau[None], None)
        missing = x @ lassos.v[0] - b
        begin(lassos, x, b, torch.zeros(x.shape[1], dtype=torch.float64))
        alone.append((*solve_rows(lassos, ONLY, tau[None], share * (missing @ missing)[None]), missing @ missing))
    costs = torch.ones(4, 12, dtype=torch.float64)
    for row, (lassos, x, _) in enumerate(problems):
        costs[row, : x.shape[1]] = lassos.costs[0]
    together = Lassos(design, [lassos.curvatures[0] for lassos, *_ in problems], costs, 0.0)
    gradient = torch.zeros_like(costs)
    for row, (_, x, b) in enumerate(problems):
        gradient[row, : x.shape[1]] = x.T @ b
    zero, square = torch.zeros_like(costs), torch.stack([b @ b for *_, b in problems])
    together.begin(zero, zero, gradient, square, zero)
    order = torch.tensor([3, 1, 0, 2])
    wanted = squares * torch.stack([missing for *_, missing in alone])
    there, found = solve_rows(together, order, taus[order], wanted[order])
    for place, row in enumerate(order.tolist()):
        tau, reached, _ = alone[row]
        assert bool(found[place]) == bool(reached)
        width = problems[row][1].shape[1]
        assert torch.allclose(together.v[row, :width], problems[row][0].v[0], atol=1e-9)
        if bool(reached):
            assert float(there[place]) == pytest.approx(float(tau), rel=1e-9)
