"""The polish: what bounds that must hold ask of it, and rows of very different sizes side by side."""

import pytest
import torch

import nettrim.solvers.block as block
from nettrim import Program
from nettrim.solvers import solve
from nettrim.solvers.judge import relative_gap
from nettrim.solvers.polish import polish


def problem_of(scales, constraint, dtype=torch.float64, epsilon=0.15):
    """A layer whose neurons' responses are `scales` times those of a common size."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(400, 40, generator=generator, dtype=torch.float64).relu()
    inputs[:, -1] = 1.0
    weight = torch.randn(len(scales), 40, generator=generator, dtype=torch.float64)
    responses = (inputs @ weight.T).relu() * torch.tensor(scales, dtype=torch.float64)
    budgets = epsilon * responses.norm(dim=0)
    return Program.relu(inputs.to(dtype), responses.to(dtype), budgets.to(dtype), constraint, budget="neuron")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("constraint", ["distance", "strict"])
def test_neurons_of_any_size_are_solved_as_well_as_of_one(constraint, dtype):
    """Small neurons beside large ones: certified all, and the objectives in the ratio of the sizes."""
    scales = [1.0, 2.0**-10, 2.0**-20, 2.0**10]
    single = solve(problem_of([1.0] * 4, constraint, dtype), 1e-4)
    mixed = solve(problem_of(scales, constraint, dtype), 1e-4)
    assert all(state.certified for state in mixed.status)
    one, other = (solution.weight.to(torch.float64).abs().sum(dim=1) for solution in (single, mixed))
    torch.testing.assert_close(other / torch.tensor(scales, dtype=torch.float64), one, rtol=2e-4, atol=0.0)


@pytest.mark.parametrize("epsilon", [0.05, 0.15, 0.4])
def test_the_first_polish_of_strict_neurons_lands(monkeypatch, epsilon):
    """Bounds that are broken on the way cost no budget, and those that come to bind do not throw the point far away:
    from ADMM's first guess most neurons reach a gap far below the tolerance."""
    gaps = []

    def watched(problem, guess, tolerance, **options):
        found = polish(problem, guess, tolerance, **options)
        gaps.append(relative_gap(found.objective, found.bound))
        return found

    monkeypatch.setattr(block, "polish", watched)
    solution = solve(problem_of([1.0] * 12, "strict", epsilon=epsilon), 1e-4)
    assert all(state.certified for state in solution.status)
    assert int((gaps[0] <= 1e-5).sum()) >= 10


def test_a_polish_leaves_its_guess_alone(monkeypatch):
    guesses = []

    def watched(problem, guess, tolerance, **options):
        before = (guess.u.clone(), guess.dual.clone(), guess.tau.clone())
        found = polish(problem, guess, tolerance, **options)
        guesses.append(all(torch.equal(a, b) for a, b in zip(before, (guess.u, guess.dual, guess.tau), strict=True)))
        return found

    monkeypatch.setattr(block, "polish", watched)
    solve(problem_of([1.0] * 3, "distance"), 1e-4)
    assert guesses
    assert all(guesses)
