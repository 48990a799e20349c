"""The benchmark's general solvers see the program that ours does: all reach the same optimum, by our certificate."""

import sys
from pathlib import Path

import pytest
import torch

from nettrim.programs import Program
from nettrim.solvers import solve

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import measure
import published_admm
import rivals

TOLERANCE = 1e-4


def program(constraint: str, **how: float) -> Program:
    generator = torch.Generator().manual_seed(5)
    inputs, weight = torch.randn(60, 8, generator=generator), torch.randn(2, 8, generator=generator)
    responses = torch.relu(inputs @ weight.T)
    how = how or {"epsilon": 0.1 * float(responses.norm())}
    return Program.relu(inputs, responses, constraint=constraint, budget="neuron", **how)


def noisy(constraint: str, name: str) -> Program:
    """One neuron whose responses its inputs do not give, with epsilon, or lambda for the quadratic solver."""
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(60, 6, generator=generator, dtype=torch.float64)
    responses = torch.relu(inputs @ torch.randn(6, 1, generator=generator, dtype=torch.float64))
    noise = 0.1 * torch.rand(60, 1, generator=generator, dtype=torch.float64)
    responses = torch.where(responses > 0, responses + noise, 0.0)
    how = {"regularization": 0.5} if name == "OSQP" else {"epsilon": 0.3 * float(responses.norm())}
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


@pytest.mark.parametrize("name", ["SCS", "Clarabel", "OSQP"])
@pytest.mark.parametrize("constraint", ["distance", "strict"])
def test_compressed_points_are_the_same_program(name: str, constraint: str) -> None:
    case = noisy(constraint, name)
    told = []
    for compressed in (False, True):
        form = rivals.Form(case, compressed=compressed)
        assert form.compressible
        assert len(form.target) == (form.size + 1 if compressed else len(form.points))
        run = rivals.RIVALS[name].run(form, 1e-8)
        assert max(abs(run["raw_gap"]), run["raw_violation"]) <= 1e-5
        told.append(run["objective"])
    assert told[0] == pytest.approx(told[1], rel=1e-6)


def test_multipliers_of_compressed_points_are_those_of_the_points() -> None:
    case = noisy("distance", "OSQP")
    form, generator = rivals.Form(case, compressed=True), torch.Generator().manual_seed(1)
    u, strength = torch.randn(form.size, generator=generator, dtype=torch.float64).numpy(), 3.0
    at_points = rivals.Form(case).at_points
    residual = at_points @ u - rivals.Form(case).target
    assert strength * residual == pytest.approx(form.stated(strength * (form.at_points @ u - form.target)).numpy())


def test_the_faster_form_is_charged() -> None:
    told = rivals.race("SCS", noisy("strict", "SCS"), [0], 60.0)
    (run,) = told["runs"]
    assert {run["form"], *(other["form"] for other in run["others"])} == {"as stated", "compressed"}
    assert run["seconds"] == min([run["seconds"], *(other["seconds"] for other in run["others"] if other["reached"])])


@pytest.mark.parametrize("constraint", ["distance", "strict"])
@pytest.mark.parametrize("relaxation", published_admm.RELAXATIONS)
def test_published_admm(relaxation: float, constraint: str) -> None:
    case = program(constraint)
    rho = published_admm.natural_rho(case, solve(case, TOLERANCE).weight)
    told = published_admm.PublishedAdmm(rho, relaxation).solve(case, TOLERANCE)
    assert bool((told.accuracy <= TOLERANCE).all())


def test_what_runs_past_its_limit_is_ended() -> None:
    def forever() -> None:
        while True:
            pass

    assert measure.in_child(forever, 1.0).exceeded


def test_what_fails_says_why() -> None:
    assert "ZeroDivisionError" in measure.in_child(lambda: 1 / 0, 5.0).error
