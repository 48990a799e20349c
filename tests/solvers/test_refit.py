"""The refit: the least squared distance to the preimages on a support, by its optimality conditions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nettrim.certificates import certify
from nettrim.errors import DataError, InputError
from nettrim.programs import Program
from nettrim.solvers import refit, solve
from nettrim.solvers.design import make_design
from nettrim.solvers.problem import make_problem
from nettrim.solvers.refit import _Row


def layer(scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = scale * torch.randn(80, 12, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, 12, generator=generator, dtype=torch.float64) / scale
    return inputs, weight, torch.relu(inputs @ weight.T)


def selected(constraint: str = "distance", activation: str = "relu", scale: float = 1.0) -> tuple[Program, Tensor]:
    inputs, weight, responses = layer(scale)
    if activation == "relu6":
        responses = (inputs @ weight.T).clamp(0, 2)
        activation = "hardtanh:0:2"
    program = Program.of(activation, inputs, responses, 0.3 * float(responses.norm()), constraint)  # type: ignore[arg-type]
    return program, solve(program).weight


def gaps(program: Program, weight: Tensor) -> Tensor:
    product = program.inputs @ weight.T
    return product - product.clamp(program.lower, program.upper)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_optimality(activation: str, scale: float) -> None:
    """On the support the gradient of the squared distance vanishes; off it nothing moves."""
    program, weight = selected(activation=activation, scale=scale)
    fitted = refit(program, weight, strength=0.0)
    assert not fitted[weight == 0].any()
    gap = gaps(program, fitted)
    gradient = gap.T @ program.inputs
    size = gap.norm() * program.inputs.norm() + 1e-300
    assert float((gradient * (weight != 0)).abs().max() / size) < 1e-8


def test_ridge_optimality() -> None:
    """With a strength the gradient balances the pull of D = diag of the Gram matrix on the support."""
    program, weight = selected()
    strength = 0.3
    fitted = refit(program, weight, strength=strength)
    gradient = gaps(program, fitted).T @ program.inputs
    pull = strength * (program.inputs**2).sum(dim=0) * (fitted - weight)
    balance = (gradient + pull) * (weight != 0)
    assert float(balance.abs().max() / gradient.abs().max()) < 1e-6


@pytest.mark.parametrize("constraint", ["distance", "strict"])
@pytest.mark.parametrize("strength", [None, 0.0, 1e-3, 0.1, 10.0])
def test_never_worse(strength: float | None, constraint: str) -> None:
    program, weight = selected(constraint)
    before, after = certify(program, weight), certify(program, refit(program, weight, strength=strength))
    assert after.discrepancy <= before.discrepancy
    assert after.violation <= max(before.violation, 1e-9)


def test_strength_pulls_towards_the_start() -> None:
    program, weight = selected()
    moved = [float((refit(program, weight, strength=s) - weight).norm()) for s in (0.0, 1e-2, 1.0, 1e3)]
    assert moved == sorted(moved, reverse=True)
    assert moved[-1] < 1e-2 * moved[0]
    distance = [certify(program, refit(program, weight, strength=s)).discrepancy for s in (0.0, 1e-2, 1.0, 1e3)]
    assert distance == sorted(distance)


def test_the_dense_support_recovers_the_responses() -> None:
    inputs, weight, responses = layer()
    program = Program.relu(inputs, responses, 1.0)
    fitted = refit(program, weight + 0.1 * torch.randn(4, 12, dtype=torch.float64), strength=0.0)
    assert certify(program, fitted).discrepancy < 1e-6 * float(responses.norm())


def test_nothing_to_fit() -> None:
    program, _ = selected()
    zero = torch.zeros(4, 12, dtype=torch.float64)
    assert torch.equal(refit(program, zero), zero)


def test_deterministic_and_seeded() -> None:
    program, weight = selected()
    assert torch.equal(refit(program, weight, seed=3), refit(program, weight, seed=3))


def test_float32() -> None:
    program, weight = selected()
    program = Program.relu(program.inputs.float(), program.upper.float(), 1.0)
    fitted = refit(program, weight.float(), strength=0.0)
    assert fitted.dtype == torch.float32
    assert certify(program, fitted).discrepancy <= certify(program, weight.float()).discrepancy


def test_refusals() -> None:
    program, weight = selected()
    with pytest.raises(InputError, match="`strength` should be"):
        refit(program, weight, strength=-1.0)
    with pytest.raises(DataError, match="`weight` should be"):
        refit(program, weight.T)


@pytest.mark.parametrize("memory", [None, 1 << 16], ids=["held", "streamed"])
@pytest.mark.parametrize("constraint", ["distance", "strict"])
def test_the_gram_matrix_follows_the_samples_that_count(constraint, memory):
    """Updated, taken from the complement, or made anew: always that of the present samples."""
    generator = torch.Generator().manual_seed(4)
    inputs = torch.randn(3000, 9, generator=generator, dtype=torch.float64)
    program = Program.relu(inputs, (inputs[:, :2] @ torch.ones(2, 1, dtype=torch.float64)).relu(), 0.1, constraint)
    problem = make_problem(program, make_design(inputs, torch.float64, memory))
    support = torch.tensor([0, 2, 3, 8])
    row = _Row(problem, 0, torch.zeros(9, dtype=torch.float64).index_fill(0, support, 1.0))
    mask = torch.zeros(3000, dtype=torch.bool)
    for share in (0.9, 0.01, 0.02, 0.7, 0.01, 1.0, 0.5):
        mask = mask ^ (torch.rand(3000, generator=generator) < share)
        columns = (inputs / problem.design.scale)[mask][:, support] * row.weights[mask].sqrt()[:, None]
        torch.testing.assert_close(row.count(mask), columns.T @ columns, rtol=1e-10, atol=1e-8)
