"""The benchmark's general solvers see the program that ours does: all reach the same optimum, by our certificate."""

import sys
from pathlib import Path

import pytest
import torch

from nettrim.programs import Program
from nettrim.solvers import solve

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import measure
import rivals

TOLERANCE = 1e-4


def program(constraint: str, **how: float) -> Program:
    generator = torch.Generator().manual_seed(5)
    inputs, weight = torch.randn(60, 8, generator=generator), torch.randn(2, 8, generator=generator)
    responses = torch.relu(inputs @ weight.T)
    how = how or {"epsilon": 0.1 * float(responses.norm())}
    return Program.relu(inputs, responses, constraint=constraint, budget="neuron", **how)


@pytest.mark.parametrize("constraint", ["distance", "strict"])
@pytest.mark.parametrize("name", ["SCS", "Clarabel"])
def test_conic_solvers(name: str, constraint: str) -> None:
    case = program(constraint)
    told = rivals.race(name, case, [0, 1], 60.0)
    assert told["reached"] == 2
    nonzeros = (solve(case, TOLERANCE).weight != 0).sum(dim=1).tolist()
    assert [run["nonzeros"] for run in told["runs"]] == nonzeros


def test_quadratic_solver() -> None:
    told = rivals.race("OSQP", program("distance", regularization=0.5), [0, 1], 60.0)
    assert told["reached"] == 2, [run.get("error") for run in told["runs"]]


def test_what_runs_past_its_limit_is_ended() -> None:
    def forever() -> None:
        while True:
            pass

    assert measure.in_child(forever, 1.0).exceeded


def test_what_fails_says_why() -> None:
    assert "ZeroDivisionError" in measure.in_child(lambda: 1 / 0, 5.0).error
