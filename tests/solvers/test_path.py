"""Warm starts: the same answers as cold ones, with less work."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nettrim.errors import DataError, InputError
from nettrim.programs import Program
from nettrim.solvers import Hybrid, Solution, solve, solve_path
from nettrim.solvers.curvature import Curvatures
from nettrim.solvers.guess import guess_from
from nettrim.solvers.hybrid import Carried
from nettrim.solvers.problem import make_problem


def program_of(constraint: str = "distance", budget: str = "neuron", relative: float = 0.05, rows: int = 6) -> Program:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, 40, generator=generator, dtype=torch.float64)
    weight = torch.randn(rows, 40, generator=generator, dtype=torch.float64)
    responses = torch.relu(inputs @ weight.T)
    norms = responses.norm(dim=0)
    return Program.relu(
        inputs, responses, relative * (norms if budget == "neuron" else norms.norm()), constraint, budget=budget
    )


@pytest.mark.parametrize("budget", ["neuron", "layer"])
@pytest.mark.parametrize("constraint", ["distance", "strict"])
def test_a_path_ends_where_cold_starts_do(constraint: str, budget: str) -> None:
    program = program_of(constraint, budget)
    assert program.epsilon is not None
    epsilons = [program.epsilon * factor for factor in (1.0, 1.3, 1.7, 2.2, 1.7, 1.0)]
    solutions = solve_path(program, epsilons, 1e-5)
    assert all(solution.certified for solution in solutions)
    for epsilon, solution in zip(epsilons, solutions, strict=True):
        norms = program_of(constraint, budget, 1.0).epsilon
        cold = solve(program_of(constraint, budget, float((epsilon / norms).mean())), 1e-5)
        assert solution.certificate.objective == pytest.approx(cold.certificate.objective, rel=2e-5)
    values = [solution.certificate.objective for solution in solutions]
    assert values[0] > values[1] > values[2] > values[3]  # a larger ball costs less
    assert values[0] == pytest.approx(values[5], rel=2e-5)


def test_a_warm_start_needs_no_iterations_where_it_is_near() -> None:
    program = program_of()
    assert program.epsilon is not None
    first, second = solve_path(program, [program.epsilon, program.epsilon * 1.1])
    assert first.iterations > 0 and second.iterations == 0
    assert second.gemms < first.gemms


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("constraint", ["distance", "strict"])
def test_a_row_goes_on_where_it_was_left_if_it_has_the_same_weights(constraint: str, dtype: torch.dtype) -> None:
    program = program_of(constraint)
    program = Program.relu(
        program.inputs.to(dtype), program.upper.clamp(min=0).to(dtype), program.epsilon, constraint, budget="neuron"
    )
    carried = Carried()
    solution = Hybrid().solve(program, 1e-4, carried=carried)
    assert carried.design is not None and carried.curvatures is not None
    problem = make_problem(program, carried.design)
    weight = solution.weight.to(torch.float64) / problem.weight_scale
    dual = solution.dual.T.to(torch.float64) / problem.dual_scale
    weight[0] *= 2.0  # of another origin
    rows = range(program.shape[0])
    left = [row for row in rows if carried.curvatures.point(row) is not None]
    assert left[:2] == [0, 1]
    found = guess_from(problem, weight, dual, carried.curvatures)
    anew = guess_from(problem, weight, dual, Curvatures(0))
    for name in ("u", "product", "gradient", "pull", "tau"):
        torch.testing.assert_close(getattr(found, name), getattr(anew, name), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.product, problem.design.forward(found.u))
    torch.testing.assert_close(found.gradient, problem.design.back(-problem.distance(found.product)[0]))
    assert torch.equal(found.u[0], weight[0])
    if dtype == torch.float32:
        assert not torch.equal(found.u[1], weight[1])  # as it was before the cast
        assert torch.equal(problem.cast(found.u[1]), weight[1])


def test_what_does_not_fit_is_refused() -> None:
    program = program_of()
    with pytest.raises(DataError, match="warm"):
        solve(program, warm=solve(program_of(rows=3)))
    regularised = Program.relu(program.inputs, torch.relu(program.inputs[:, :2]), regularization=1.0)
    with pytest.raises(InputError, match="epsilon"):
        solve_path(regularised, [0.1])


@pytest.mark.parametrize("memory", [None, 1 << 16], ids=["roomy", "tight"])
@pytest.mark.parametrize("budget", ["neuron", "layer"])
def test_inputs_that_are_zero_and_rows_that_come_and_go_change_nothing(budget: str, memory: int | None) -> None:
    program = program_of("distance", budget)
    inputs = program.inputs.clone()
    inputs[:, [3, 17]] = 0.0
    program = replace(program, inputs=inputs, upper=program.upper, lower=program.lower)
    norms = program_of("distance", budget, 1.0).epsilon
    factors = torch.tensor([[0.9, 1.1, 0.9]]).T * torch.linspace(0.6, 1.2, len(norms))  # some rows end at zero
    epsilons = [factor * norms for factor in factors.to(torch.float64)]
    for epsilon, solution in zip(epsilons, solve_path(program, epsilons, 1e-5, memory_budget=memory), strict=True):
        cold = solve(replace(program, epsilon=epsilon), 1e-5)
        assert solution.certified and cold.certified
        assert solution.certificate.objective == pytest.approx(cold.certificate.objective, rel=2e-5, abs=1e-9)
        assert not solution.weight[:, [3, 17]].any()


def test_other_solvers_walk_the_path_too() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.seen: list[float] = []

        def solve(self, program: Program, tolerance: float, initial: Tensor | None) -> Solution:
            assert program.epsilon is not None and initial is not None
            self.seen.append(float(program.epsilon.mean()))
            return Hybrid().solve(program, tolerance, initial)

    program, solver = program_of(), Recorder()
    initial = torch.zeros(program.shape, dtype=torch.float64)
    solutions = solve_path(program, [3.0, 4.0], solver=solver, initial=initial)
    assert solver.seen == [3.0, 4.0]
    assert len(solutions) == 2
