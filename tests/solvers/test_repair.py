"""Repaired points are judged as they will be cast: single precision may not push them out again."""

import pytest
import torch

from nettrim.programs import Program
from nettrim.solvers import solve
from nettrim.solvers.problem import make_problem
from nettrim.solvers.repair import is_feasible, make_feasible


@pytest.mark.parametrize("constraint", ["distance", "strict"])
@pytest.mark.parametrize("seed", range(6))
def test_a_repaired_point_survives_the_cast(constraint: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    inputs, weight = torch.randn(300, 40, generator=generator), torch.randn(1, 40, generator=generator)
    responses = torch.relu(inputs @ weight.T)
    program = Program.relu(inputs, responses, 0.1 * float(responses.norm()), constraint=constraint)
    problem = make_problem(program)
    optimal = solve(program, 1e-4).weight.to(torch.float64) / problem.weight_scale
    outside = 0.999 * optimal
    assert not is_feasible(problem, problem.cast(outside), margin=0.0)
    point = make_feasible(problem, outside, cast=True)
    assert point is not None
    assert is_feasible(problem, problem.cast(point), margin=0.0)
    assert bool(((point != 0) <= (outside != 0)).all())


def test_an_empty_support_cannot_be_repaired() -> None:
    inputs = torch.randn(30, 4, generator=torch.Generator().manual_seed(1))
    program = Program.relu(inputs, torch.relu(inputs @ torch.ones(1, 4).T), 0.1)
    assert make_feasible(make_problem(program), torch.zeros(1, 4, dtype=torch.float64)) is None
