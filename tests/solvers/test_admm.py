"""ADMM's penalty parameter: what the first depends on, and what mends it."""

from dataclasses import replace

import pytest
import torch

from nettrim import L1, Program, solve
from nettrim.solvers import admm
from nettrim.solvers.design import make_design
from nettrim.solvers.problem import Problem, make_problem


def layer(rank: int, constraint: str, samples: int = 80, columns: int = 60):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, rank, generator=generator) @ torch.randn(rank, columns, generator=generator)
    weight = torch.randn(10, columns, generator=generator)
    responses = (inputs @ weight.T).relu()
    unseen = torch.linalg.qr(inputs.T.double(), "complete").Q[:, rank:].float()
    moved = weight + 30 * torch.randn(10, columns - rank, generator=generator) @ unseen.T
    return Program.relu(inputs, responses, 0.1 * responses.norm(dim=0), constraint, budget="neuron"), weight, moved


def problem_of(program: Program) -> Problem:
    return make_problem(program, make_design(program.inputs, torch.float32, 1 << 30))


def first_rho(program: Program) -> float:
    return float(admm.start(problem_of(program)).rho[0])


@pytest.mark.parametrize("constraint", ["distance", "strict"])
def test_what_the_dense_weights_have_elsewhere_does_not_matter(constraint: str) -> None:
    """What weights have in the inputs' null space changes no response, so it must not change a step either."""
    program, weight, moved = layer(8, constraint)
    one, other, none = (solve(program, 1e-4, initial=initial) for initial in (weight, moved, None))
    assert all(status.certified for status in one.status)
    for solution in (other, none):
        assert one.iterations == solution.iterations and torch.equal(one.weight, solution.weight)


@pytest.mark.parametrize("constraint", ["distance", "strict"])
def test_it_turns_responses_into_penalties(constraint: str) -> None:
    """Twice the cost of all weights is twice the penalty at the same responses, and means twice the rho."""
    program, *_ = layer(60, constraint, samples=400)
    dear = replace(program, penalty=L1(torch.full((1, 60), 2.0)))
    assert first_rho(dear) == pytest.approx(2 * first_rho(program), rel=1e-6)


def biased(constraint: str) -> Program:
    """Inputs of one sign that mostly rise and fall together, and a bias that costs nothing."""
    generator = torch.Generator().manual_seed(0)
    common = torch.rand(2000, 1, generator=generator) + 2
    inputs = (common + 0.3 * torch.randn(2000, 40, generator=generator)).clamp(min=0)
    inputs = torch.cat([inputs, torch.ones(2000, 1)], dim=1)
    weight = torch.randn(12, 41, generator=generator)
    weight[:, :40] -= weight[:, :40].mean(dim=1, keepdim=True)
    responses = (inputs @ weight.T).relu()
    penalty = L1().with_free_columns(torch.arange(41) == 40)
    return Program.relu(
        inputs, responses, 0.06 * responses.norm(dim=0), constraint, budget="neuron", penalty=penalty
    )


@pytest.mark.parametrize("constraint", ["distance", "strict"])
def test_a_first_rho_that_is_far_too_small_is_raised(monkeypatch: pytest.MonkeyPatch, constraint: str) -> None:
    """Too small by any factor, it moves the penalised weights as soon, and is tuned to much the same."""
    problem = problem_of(biased(constraint))

    def run(share: float) -> admm.Admm:
        state = admm.start(problem)
        state.set_rho(share * state.rho)
        for _ in range(60):
            state.step()
        return state

    good, *small = [run(share) for share in (1.0, 1e-2, 1e-4, 1e-8)]
    for state in (good, *small):
        assert bool((state.w[:, :40] != 0).any(dim=1).all())
        assert 0.2 < float((state.rho / good.rho).median()) < 5
    monkeypatch.setattr(admm, "_RAMP_AT", 0)
    assert not bool((run(1e-4).w[:, :40] != 0).any())
