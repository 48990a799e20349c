"""The interior-point method alone, on the programs it is there for, and on those it is not."""

from __future__ import annotations

import pytest
import torch

from nettrim.certificates import certify
from nettrim.programs import Program
from nettrim.programs.penalties import L1
from nettrim.solvers import solve
from nettrim.solvers.interior import Central, newton, solve_interior
from nettrim.solvers.interior import path as interior_path
from nettrim.solvers.interior import solve as interior_solve
from nettrim.solvers.interior.best import Best
from nettrim.solvers.interior.path import Path
from nettrim.solvers.polish import polish
from nettrim.solvers.problem import Problem, make_problem

TOLERANCE = 1e-5


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def program_of(
    constraint: str = "distance",
    budget: str | int = "neuron",
    penalty: L1 | None = None,
    relative: float = 0.1,
    **how: float,
) -> Program:
    inputs, weight = normal(80, 25, seed=1), normal(4, 25, seed=2)
    responses = torch.relu(inputs @ weight.T)
    how = how or {"epsilon": relative * float(responses.norm())}
    return Program.relu(inputs, responses, constraint=constraint, budget=budget, penalty=penalty or L1(), **how)


def ends(program: Program) -> tuple[Problem, Central]:
    problem = make_problem(program)
    return problem, solve_interior(problem, TOLERANCE)


def assert_certified(
    program: Program, problem: Problem, weight: torch.Tensor, dual: torch.Tensor, tolerance: float = TOLERANCE
) -> None:
    certificate = certify(
        program,
        (weight * problem.weight_scale).to(program.inputs),
        (dual * problem.dual_scale).to(program.inputs).T,
    )
    assert certificate.holds(tolerance, feasibility=1e-9)


@pytest.mark.parametrize("budget", ["layer", "neuron", 2])
@pytest.mark.parametrize("constraint", ["distance", "strict"])
def test_every_budget(constraint: str, budget: str | int) -> None:
    program = program_of(constraint, budget)
    problem, central = ends(program)
    assert_certified(program, problem, central.found.weight, central.found.dual)


@pytest.mark.parametrize("constraint", ["distance", "strict"])
def test_the_vertex_it_shows_is_optimal(constraint: str) -> None:
    program = program_of(constraint)
    problem, central = ends(program)
    vertex = polish(problem, central.guess, TOLERANCE)
    assert_certified(program, problem, vertex.weight, vertex.dual)
    assert int((vertex.weight != 0).sum()) < vertex.weight.numel()


@pytest.mark.parametrize("constraint", ["distance", "strict"])
def test_regularised(constraint: str) -> None:
    program = program_of(constraint, regularization=0.7)
    problem, central = ends(program)
    assert_certified(program, problem, central.found.weight, central.found.dual)


def test_costs_of_zero_and_infinity() -> None:
    costs = torch.linspace(0.2, 3, 25, dtype=torch.float64)
    costs[0], costs[5], costs[9] = 0.0, torch.inf, torch.inf
    program = program_of(penalty=L1(costs=costs), relative=0.3)
    problem, central = ends(program)
    assert_certified(program, problem, central.found.weight, central.found.dual)
    assert bool((central.found.weight[:, [5, 9]] == 0).all())


def test_rows_of_very_different_size_share_a_budget() -> None:
    inputs, weight = normal(60, 20, seed=3), normal(3, 20, seed=4)
    responses = torch.relu(inputs @ (weight * torch.tensor([[1.0], [1e-3], [1e-6]])).T)
    program = Program.relu(inputs, responses, 0.05 * float(responses.norm()), "strict")
    problem, central = ends(program)
    assert_certified(program, problem, central.found.weight, central.found.dual)


def test_a_nearly_dead_neuron_in_single_precision() -> None:
    """A response at 6 of 400 samples, the others bounded only from above."""
    inputs = normal(400, 40, seed=5).abs().float()
    weight = normal(1, 40, seed=6).float()
    product = inputs @ weight.T
    responses = torch.relu(product - product[:, 0].sort().values[-7])
    for constraint in ("distance", "strict"):
        program = Program.relu(inputs, responses, 0.05 * float(responses.norm()), constraint, budget="neuron")
        problem, central = ends(program)
        assert_certified(program, problem, central.found.weight, central.found.dual)


def test_the_published_slack_of_a_cascade() -> None:
    """V = W xhat: the dense weights sit on every bound, and more bounds are tight than there are weights."""
    inputs, weight = normal(300, 30, seed=7).abs(), normal(6, 30, seed=8)
    responses = torch.relu(inputs @ weight.T)
    seen = inputs + 0.02 * normal(300, 30, seed=9)
    product = seen @ weight.T
    spent = torch.where(responses > 0, product - responses, 0.0).norm(dim=0)
    program = Program.relu(seen, responses, 1.1 * spent, "strict", slack=product, budget="neuron")
    problem, central = ends(program)
    assert_certified(program, problem, central.found.weight, central.found.dual)
    assert solve(program, TOLERANCE, initial=weight).certified


def test_nothing_is_claimed_of_an_infeasible_program() -> None:
    inputs = torch.cat([torch.ones(10, 1), torch.ones(10, 1)]).to(torch.float64)
    responses = torch.cat([torch.ones(10, 1), torch.zeros(10, 1)]).to(torch.float64)
    _, central = ends(Program.relu(inputs, responses, 1e-3, "strict"))
    assert bool((central.found.objective == torch.inf).all())


def nearly_dead(samples: int, seed: int) -> Program:
    """A response at few of many samples, the others bounded only from above."""
    inputs, weight = normal(samples, 20, seed=seed).abs(), normal(1, 20, seed=seed + 1)
    inputs[:, -1] = 1.0
    weight[0, -1] -= (inputs @ weight.T)[:, 0].sort().values[-9]
    responses = torch.relu(inputs @ weight.T)
    return Program.relu(inputs, responses, 0.1 * float(responses.norm()), "strict", budget="neuron")


@pytest.mark.parametrize("seed", [11, 13, 15])
def test_samples_left_out_of_a_path_change_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    program = nearly_dead(1500, seed)
    problem, some = ends(program)
    assert_certified(program, problem, some.found.weight, some.found.dual)
    assert int((some.found.dual != 0).sum()) < 500  # the path never looked at the others
    monkeypatch.setattr(interior_solve, "_STAGES", ((0.1, 1000),))
    _, every = ends(program)
    assert float(some.found.objective) == pytest.approx(float(every.found.objective), rel=2 * TOLERANCE)
    assert some.gemms < every.gemms


@pytest.mark.parametrize("seed", [11, 15, 17])
def test_what_a_path_found_is_kept_where_the_cast_ends_it(seed: int) -> None:
    """Inputs with a mean of three times their spread, in float32: rounding needs more room than is allowed."""
    inputs, responses = nearly_dead(1500, seed).inputs, nearly_dead(1500, seed).lower.clamp(min=0)
    epsilon = 0.02 * float(responses.norm())
    program = Program.relu((inputs + 3).float(), responses.float(), epsilon, "strict", budget="neuron")
    problem = make_problem(program)
    near, far = (solve_interior(problem, tolerance) for tolerance in (1e-5, 1e-6))
    for central in (near, far):
        assert 1e-5 < float(central.found.gap) <= 1e-4
        assert_certified(program, problem, central.found.weight, central.found.dual, 1e-4)
    assert near.gemms < far.gemms / 2  # no more paths, nor all samples, for what only the cast can give


def test_of_two_answers_the_better_is_taken() -> None:
    problem, central = ends(program_of())
    one, other = Best(problem), Best(problem)
    one.weight, one.objective, one.bound = central.found.weight, central.found.objective, central.found.bound
    other.objective, other.bound = one.objective.clone(), 0.9 * one.bound
    other.bound[2], other.vertex = one.objective[2], torch.ones_like(other.vertex)
    rows = torch.arange(4)
    one.take(other, rows, rows)
    assert torch.equal(one.weight != 0, (central.found.weight != 0) & (rows != 2)[:, None])
    assert torch.equal(one.vertex[:, 0] == 1, rows == 2)


def test_samples_that_an_answer_breaks_join_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """With too few samples at first, later ones go on from an early stage, on more."""
    program = nearly_dead(1500, 11)
    monkeypatch.setattr(interior_solve, "_STAGES", ((0.3, 0.1), (0.1, 0.2)))
    monkeypatch.setattr(interior_solve, "_SCREENS", (0.3, 0.6, 1.2, 2.4, 4.8))
    sizes: list[int] = []
    follow = Path.follow

    def seen(path: Path) -> tuple[Best, int]:
        sizes.append(path.problem.design.samples)
        return follow(path)

    monkeypatch.setattr(Path, "follow", seen)
    problem, central = ends(program)
    assert_certified(program, problem, central.found.weight, central.found.dual)
    assert len(sizes) > 1
    assert sizes == sorted(sizes)


def test_a_path_goes_on_where_it_was_when_samples_join() -> None:
    program = nearly_dead(300, 17)
    problem = make_problem(program)
    few = torch.cat([(problem.lower == problem.upper)[0].nonzero()[:, 0], torch.arange(0, 300, 3)]).unique()
    many = torch.cat([few, torch.arange(0, 300, 2)]).unique()
    path = Path(problem.restrict(few), TOLERANCE, 300.0)
    early = path.approach(0.1)
    before, mu = (path.weight * path.size).clone(), path._complementarity()
    wider = path.extended(problem.restrict(many), torch.searchsorted(many, few), TOLERANCE)
    assert torch.allclose(wider.weight * wider.size, before, rtol=1e-12)
    scale = float(path.size / wider.size)
    assert float(wider._complementarity()) == pytest.approx(scale * float(mu), rel=1e-9)  # of old and new pairs alike
    for pair in wider.pairs:
        assert bool((pair.value[pair.mask] > 0).all())
        assert bool((pair.dual[pair.mask] > 0).all())
    best, _ = wider.follow()
    alone, _ = Path(problem.restrict(many), TOLERANCE, 300.0).follow()
    assert float(best.gap) <= TOLERANCE
    assert float(best.objective) == pytest.approx(float(alone.objective), rel=2 * TOLERANCE)
    same, later = path.extended(problem.restrict(few), torch.arange(len(few)), TOLERANCE).follow()
    never, steps = Path(problem.restrict(few), TOLERANCE, 300.0).follow()
    assert early + later == steps  # where none joins nothing changes
    assert float(same.objective) == pytest.approx(float(never.objective), rel=1e-9)


@pytest.mark.parametrize("constraint", ["distance", "strict"])
def test_correctors_lengthen_steps_and_lead_to_the_same_end(constraint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, values = [], []
    monkeypatch.setattr(interior_path, "_WIDE", 1)
    for correctors in (0, 2):
        monkeypatch.setattr(interior_path, "_CORRECTORS", correctors)
        _, central = ends(program_of(constraint))
        steps.append(central.found.steps)
        values.append(central.found.objective)
        assert bool((central.found.gap <= TOLERANCE).all())
    assert torch.allclose(*values, rtol=2 * TOLERANCE)
    assert steps[1] <= steps[0]


@pytest.mark.parametrize("costs", ["all", "two without a cost", "two forbidden"])
@pytest.mark.parametrize("constraint", ["distance", "strict"])
def test_equations_solved_for_weights_or_for_samples_give_one_step(
    constraint: str, costs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer samples than inputs, at several points of the path; the right-hand sides of predictor and corrector."""
    inputs, weight = normal(30, 45, seed=3), normal(3, 45, seed=4)
    responses = torch.relu(inputs @ weight.T)
    priced = torch.ones(45, dtype=torch.float64)
    if costs != "all":
        priced[:2] = 0.0 if costs == "two without a cost" else torch.inf
    epsilon = 0.1 * float(responses.norm())
    program = Program.relu(inputs, responses, epsilon, constraint, budget="layer", penalty=L1(costs=priced))
    path = Path(make_problem(program), TOLERANCE, 3.0)
    for _ in range(4):
        mu = path._complementarity()
        steps = []
        for narrow in (False, True):
            monkeypatch.setattr(newton, "_narrow", lambda *_, narrow=narrow: narrow)
            system = newton.System.make(path, mu, mu < 0)
            assert type(system.factors) is (newton._Samples if narrow else newton._Weights)
            nothing = tuple(torch.zeros_like(pair.value) for pair in path.pairs)
            steps.append(system.direction(0.3 * mu, nothing))
        for one, other in zip(steps[0][:2], steps[1][:2], strict=True):
            assert torch.allclose(one, other, rtol=1e-6, atol=1e-8 * float(one.abs().max()))
        path._step(mu)


def test_few_samples_are_solved_for_by_themselves() -> None:
    """Where they are fewer than the inputs, and only as long as rounding allows."""
    problem = make_problem(program_of("strict"))
    path, stiffness = Path(problem, TOLERANCE, 3.0), torch.ones(4, 25, dtype=torch.float64)
    assert not newton._narrow(path, [torch.arange(80)] * 4, stiffness)
    few = Path(problem.restrict(torch.arange(10)), TOLERANCE, 3.0)
    assert newton._narrow(few, [torch.arange(10)] * 4, stiffness)
    assert not newton._narrow(few, [torch.arange(10)] * 4, 1e-12 * stiffness)


def test_few_samples_end_certified() -> None:
    inputs, weight = normal(20, 60, seed=5), normal(6, 60, seed=6)
    responses = torch.relu(inputs @ weight.T)
    program = Program.relu(inputs, responses, 0.1 * responses.norm(dim=0), "strict", budget="neuron")
    problem, central = ends(program)
    assert_certified(program, problem, central.found.weight, central.found.dual)
