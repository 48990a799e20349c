"""Program: the arrays it makes of a layer, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch

from nettrim.errors import DataError, InputError
from nettrim.programs import Program
from nettrim.programs.penalties import L1, MaxNorm

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.relu(X @ torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64))


def test_relu_bounds() -> None:
    program = Program.relu(X, Y, 0.5)
    assert program.shape == (3, 4)
    assert program.samples == 6
    assert torch.equal(program.upper, Y)
    assert torch.equal(torch.isinf(program.lower), Y == 0)
    assert program.epsilon is not None and program.epsilon.tolist() == [0.5]
    assert program.hard() is None
    hard = Program.relu(X, Y, 0.5, "strict").hard()
    assert hard is not None and torch.equal(hard, Y == 0)


def test_linear_is_the_same_under_both_constraints() -> None:
    hard = Program.linear(X, X @ torch.randn(4, 2, dtype=torch.float64), 0.5, "strict").hard()
    assert hard is not None and not hard.any()


def test_slack_replaces_the_bound_where_a_unit_is_off() -> None:
    slack = torch.rand(6, 3, dtype=torch.float64)
    program = Program.relu(X, Y, 0.5, "strict", slack=slack)
    assert torch.equal(program.upper, torch.where(Y == 0, slack, Y))
    assert torch.equal(program.lower == program.upper, Y > 0)


def test_infinite_slack_lets_a_sample_go() -> None:
    program = Program.relu(X, Y, 0.5, "strict", slack=torch.full_like(Y, math.inf))
    assert (program.upper[Y == 0] == math.inf).all()


def test_offset_is_subtracted() -> None:
    offset = torch.randn(6, 3, dtype=torch.float64)
    program = Program.relu(X, Y, 0.5, offset=offset)
    torch.testing.assert_close(program.upper, Y - offset)
    assert torch.equal(torch.isinf(program.lower), Y == 0)


def test_a_point_stays_a_point_under_an_offset() -> None:
    """Rounding must not turn y - o into an interval: strict would count it among the half-lines."""
    offset = 1e8 * torch.randn(6, 3, dtype=torch.float32)
    program = Program.relu(X.float(), Y.float(), 0.5, "strict", offset=offset)
    assert torch.equal(program.lower == program.upper, Y.float() > 0)


def test_nothing_given_is_written_into() -> None:
    inputs, responses = X.clone(), Y.clone()
    Program.relu(inputs, responses, 0.5, slack=torch.zeros_like(Y), offset=torch.ones_like(Y))
    assert torch.equal(inputs, X) and torch.equal(responses, Y)


def test_rows_keep_whole_groups() -> None:
    costs = torch.rand(3, 4, dtype=torch.float64)
    program = Program.relu(X, Y, torch.tensor([1.0, 2.0]), budget=torch.tensor([0, 1, 1]), penalty=L1(costs=costs))
    part = program.rows(torch.tensor([1, 2]))
    assert part.epsilon is not None and part.epsilon.tolist() == [2.0]
    assert part.groups.tolist() == [0, 0]
    assert torch.equal(part.upper, Y[:, 1:])
    weight = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(part.penalty.value(weight[1:]), program.penalty.value(weight)[1:])


def test_gradients_are_dropped_and_half_precision_is_raised() -> None:
    program = Program.relu(X.half().requires_grad_(), Y.half(), 0.5)
    assert program.inputs.dtype == torch.float32
    assert not program.inputs.requires_grad


def test_moves() -> None:
    assert Program.relu(X, Y, 0.5, penalty=MaxNorm()).to(torch.device("cpu")).shape == (3, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "word"),
    [
        ({"inputs": X[0]}, DataError, "inputs"),
        ({"inputs": X.numpy()}, DataError, "inputs"),
        ({"inputs": X.long()}, DataError, "float"),
        ({"inputs": X[:0], "responses": Y[:0]}, DataError, "at least one"),
        ({"inputs": X[:, :0]}, DataError, "at least one"),
        ({"inputs": X * math.nan}, DataError, "finite"),
        ({"responses": Y[:-1]}, DataError, "6 samples"),
        ({"responses": -Y}, DataError, "Program.linear"),
        ({"responses": Y + math.inf}, DataError, "finite"),
        ({"epsilon": -0.1}, InputError, "epsilon"),
        ({"epsilon": math.nan}, InputError, "epsilon"),
        ({"epsilon": torch.ones(2)}, InputError, "epsilon"),
        ({"epsilon": None}, InputError, "epsilon"),
        ({"regularization": 1.0}, InputError, "not both"),
        ({"epsilon": None, "regularization": 0.0}, InputError, "regularization"),
        ({"epsilon": None, "regularization": math.inf}, InputError, "regularization"),
        ({"constraint": "exact"}, InputError, "constraint"),
        ({"slack": Y[:, :1]}, DataError, "slack"),
        ({"slack": Y * math.nan}, DataError, "slack"),
        ({"offset": Y[:, :1]}, DataError, "offset"),
        ({"offset": Y + math.inf}, DataError, "offset"),
        ({"budget": "neurons"}, InputError, "budget"),
        ({"penalty": "l1"}, InputError, "penalty"),
        ({"penalty": L1(costs=torch.ones(5))}, InputError, "costs"),
    ],
)
def test_refusals(arguments: dict, error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        Program.relu(**({"inputs": X, "responses": Y, "epsilon": 0.5} | arguments))
