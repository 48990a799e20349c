"""ADMM's first penalty parameter: what the dense weights say about it, and where they say nothing."""

import pytest
import torch

from nettrim import Program, solve
from nettrim.solvers import admm
from nettrim.solvers.design import make_design
from nettrim.solvers.problem import make_problem


def layer(rank: int, constraint: str, samples: int = 80, columns: int = 60):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, rank, generator=generator) @ torch.randn(rank, columns, generator=generator)
    weight = torch.randn(10, columns, generator=generator)
    responses = (inputs @ weight.T).relu()
    unseen = torch.linalg.qr(inputs.T.double(), "complete").Q[:, rank:].float()
    moved = weight + 30 * torch.randn(10, columns - rank, generator=generator) @ unseen.T
    return Program.relu(inputs, responses, 0.1 * responses.norm(dim=0), constraint, budget="neuron"), weight, moved


def first_rho(program: Program, initial: torch.Tensor) -> float:
    problem = make_problem(program, make_design(program.inputs, torch.float32, 1 << 30))
    return float(admm.start(problem, initial.double() / problem.weight_scale).rho[0])


@pytest.mark.parametrize("constraint", ["distance", "strict"])
def test_directions_that_no_sample_sees_do_not_matter(constraint: str) -> None:
    """What weights have in the inputs' null space changes no response, so it must not change a step either."""
    program, weight, moved = layer(8, constraint)
    assert first_rho(program, weight) == first_rho(program, moved)
    one, other = (solve(program, 1e-4, initial=initial) for initial in (weight, moved))
    assert all(status.certified for status in one.status)
    assert one.iterations == other.iterations and torch.equal(one.weight, other.weight)


def test_elsewhere_it_follows_the_weights() -> None:
    """rho turns responses into penalties, so twice the penalty at the same responses means twice the rho."""
    program, weight, _ = layer(60, "distance", samples=400)
    assert first_rho(program, 2 * weight) == pytest.approx(2 * first_rho(program, weight), rel=1e-6)
