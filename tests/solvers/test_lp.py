"""Epsilon 0 as a linear program: optimal, certified by its multipliers, infeasibility proved."""

from __future__ import annotations

import math

import pytest
import torch

from nettrim.certificates import certify
from nettrim.errors import InputError
from nettrim.programs import Program
from nettrim.programs.penalties import L1, MaxNorm
from nettrim.solvers.lp import lp_available, solve_lp


def test_available() -> None:
    assert lp_available()


@pytest.mark.parametrize("activation", ["relu", "linear", "relu6", "leaky_relu"])
@pytest.mark.parametrize("constraint", ["distance", "strict"])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_certified(activation: str, constraint: str, scale: float) -> None:
    inputs = torch.randn(25, 15, dtype=torch.float64)
    product = 3 * inputs @ torch.randn(15, 4, dtype=torch.float64)
    responses = {
        "relu": product.clamp(min=0),
        "linear": product,
        "relu6": product.clamp(0, 6),
        "leaky_relu": torch.where(product > 0, product, 0.01 * product),
    }[activation]
    program = Program.of(activation, inputs * scale, responses, 0.0, constraint)
    answer = solve_lp(program)
    assert answer.feasible.all()
    assert certify(program, answer.weight, answer.dual).holds(1e-9, 1e-12)


def test_fewer_samples_than_inputs() -> None:
    inputs = torch.randn(6, 20, dtype=torch.float64)
    program = Program.relu(inputs, torch.relu(inputs @ torch.randn(20, 3, dtype=torch.float64)), 0.0)
    answer = solve_lp(program)
    assert certify(program, answer.weight, answer.dual).holds(1e-9, 1e-12)
    assert ((answer.weight != 0).sum(dim=1) <= 6).all()  # a vertex


def test_costs() -> None:
    inputs = torch.randn(12, 10, dtype=torch.float64)
    inputs[:, 0] = 1.0
    weight = torch.randn(3, 10, dtype=torch.float64)
    weight[:, 9] = 0.0
    costs = torch.tensor([0.0, 1, 1, 2, 3, 0.1, 1, 1, 1, math.inf], dtype=torch.float64)
    program = Program.relu(inputs, torch.relu(inputs @ weight.T), 0.0, penalty=L1(costs=costs))
    answer = solve_lp(program)
    assert not answer.weight[:, 9].any()
    assert certify(program, answer.weight, answer.dual).holds(1e-9, 1e-12)


def test_infeasible_rows_are_proved() -> None:
    """The multipliers have X'r = 0 and a positive support: no weight at all satisfies the rows."""
    inputs = torch.randn(30, 5, dtype=torch.float64)
    responses = torch.relu(inputs @ torch.randn(5, 3, dtype=torch.float64))
    responses[:, 1] = torch.rand(30, dtype=torch.float64) + 0.1
    program = Program.relu(inputs, responses, 0.0, budget="neuron")
    answer = solve_lp(program)
    assert answer.feasible.tolist() == [True, False, True]
    assert not answer.weight[1].any()
    assert (inputs.T @ answer.dual[:, 1]).abs().max() < 1e-12
    assert certify(program, answer.weight, answer.dual).group_bound[1] > 1e6


def test_a_wrong_answer_fails() -> None:
    inputs = torch.randn(20, 10, dtype=torch.float64)
    program = Program.relu(inputs, torch.relu(inputs @ torch.randn(10, 2, dtype=torch.float64)), 0.0)
    answer = solve_lp(program)
    assert not certify(program, answer.weight * 1.001, answer.dual).holds(1e-4)
    assert not certify(program, answer.weight, answer.dual + 0.01 * torch.randn(20, 2)).holds(1e-4)


def test_refusals() -> None:
    inputs = torch.randn(5, 4, dtype=torch.float64)
    responses = torch.relu(torch.randn(5, 2, dtype=torch.float64))
    for program, word in [
        (Program.relu(inputs, responses, 0.1), "epsilon"),
        (Program.relu(inputs, responses, regularization=1.0), "epsilon"),
        (Program.relu(inputs, responses, 0.0, penalty=MaxNorm()), "penalty"),
    ]:
        with pytest.raises(InputError, match=f"`{word}` should be"):
            solve_lp(program)
