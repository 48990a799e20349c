"""Warm starts: the same answers as cold ones, with less work."""

from __future__ import annotations

import pytest
import torch

from nettrim.errors import DataError, InputError
from nettrim.programs import Program
from nettrim.solvers import solve, solve_path


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


def test_what_does_not_fit_is_refused() -> None:
    program = program_of()
    with pytest.raises(DataError, match="warm"):
        solve(program, warm=solve(program_of(rows=3)))
    regularised = Program.relu(program.inputs, torch.relu(program.inputs[:, :2]), regularization=1.0)
    with pytest.raises(InputError, match="epsilon"):
        solve_path(regularised, [0.1])
