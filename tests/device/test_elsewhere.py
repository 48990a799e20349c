"""What runs on a device that is not the CPU: the same answers to the bit, and no tensor left behind.

The device is pretended, so that this is checked where there is none; of speed it says nothing.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from elsewhere import FAR, Elsewhere, FarTensor
from generate import generate, layer

import nettrim
from nettrim import Program, Solution, solve
from nettrim.certificates import check_dual_certificate, dual_certificate
from nettrim.programs.penalties import GroupL2Inputs, GroupL2Outputs, L1Frobenius, MaxNorm
from nettrim.solvers import Cvxpy, find_dual_certificate, solve_path


def same(here: Solution, there: Solution) -> bool:
    return torch.equal(here.weight, there.weight.cpu()) and here.status == there.status


def same_network(here: nettrim.Trimmed, there: nettrim.Trimmed) -> bool:
    """To be asked where the device is there."""
    far = there.model.state_dict()
    return all(torch.equal(value, far[name].cpu()) for name, value in here.model.state_dict().items())


def test_the_pretended_device_fails_where_a_real_one_would() -> None:
    near = torch.ones(3)
    with Elsewhere():
        far = near.to(FAR)
        assert isinstance(far, FarTensor) and far.device == FAR and near.device.type == "cpu"
        assert (far + 1).device == FAR and (far * near.sum()).device == FAR and far.cpu().device.type == "cpu"
        assert torch.zeros(2, device=FAR).device == FAR and far.new_zeros(2).device == FAR
        for mixture in (lambda: far + near, lambda: far.numpy(), lambda: near[far > 0], lambda: torch.cat([far, near])):
            with pytest.raises((RuntimeError, TypeError)):
                mixture()


@pytest.mark.parametrize("constraint", ["distance", "strict"])
@pytest.mark.parametrize("budget", ["neuron", "layer"])
def test_both_constraints_and_budgets(constraint: str, budget: str) -> None:
    program, _ = layer(constraint, budget)
    here = solve(program, 1e-4)
    with Elsewhere():
        assert same(here, solve(program, 1e-4, device=FAR))
        assert same(here, solve(program.to(FAR), 1e-4))
    assert here.certified


@pytest.mark.parametrize("seed", range(40))
def test_generated_programs(seed: int) -> None:
    """All kinds of inputs, activations, penalties and budgets, those that have no solution among them."""
    case = generate(seed, most=24)

    def answer(**where: torch.device) -> Solution | str:
        try:
            return solve(case.program, 1e-4, initial=case.initial, **where)
        except nettrim.InputError as error:
            return str(error)

    here = answer()
    with Elsewhere():
        there = answer(device=FAR)
    if isinstance(here, str) or isinstance(there, str):
        assert here == there
    else:
        assert same(here, there)


@pytest.mark.parametrize("penalty", [GroupL2Inputs(), GroupL2Outputs(), MaxNorm(), L1Frobenius(frobenius=0.5)])
def test_a_general_solver_is_brought_the_program(penalty) -> None:
    program, _ = layer(budget="layer", penalty=penalty)
    here = solve(program, 1e-3, solver=Cvxpy("CLARABEL"))
    with Elsewhere():
        there = solve(program.to(FAR), 1e-3, solver=Cvxpy("CLARABEL"))
        assert there.weight.device == there.dual.device == FAR
    assert same(here, there)


@pytest.mark.parametrize("constraint", ["distance", "strict"])
def test_paths_and_warm_starts(constraint: str) -> None:
    program, _ = layer(constraint)
    epsilons = [share * program.epsilon for share in (0.5, 1.0, 1.5)]

    def answers(program: Program) -> list[Solution]:
        path = solve_path(program, epsilons, 1e-4)
        return [*path, solve(replace(program, epsilon=epsilons[1]), 1e-4, warm=path[0])]

    here = answers(program)
    with Elsewhere():
        there = answers(program.to(FAR))
    assert all(same(*pair) for pair in zip(here, there, strict=True))


def test_a_memory_budget_and_exact_responses() -> None:
    (streamed, _), (strict, _) = layer(), layer("strict")
    exact = replace(strict, epsilon=torch.zeros(20))
    for program, options in ((streamed, {"memory_budget": 1 << 20}), (exact, {})):
        here = solve(program, 1e-4, **options)
        with Elsewhere():
            assert same(here, solve(program, 1e-4, device=FAR, **options))


@pytest.mark.parametrize(
    "options",
    [{}, {"scheme": "cascade"}, {"constraint": "strict", "refit": False, "budget": "neuron"}],
    ids=["default", "cascade", "paper"],
)
@pytest.mark.parametrize("lies", ["nothing", "model", "model and data"])
@pytest.mark.usefixtures("replaced_parameters")
def test_a_network(options: dict, lies: str) -> None:
    """Told to go there, there already, and there with its data: the same network."""
    sizes = ((20, 30), (30, 30), (30, 5))
    modules = [module for size in sizes for module in (torch.nn.Linear(*size), torch.nn.ReLU())]
    model, data = torch.nn.Sequential(*modules[:-1]), torch.randn(300, 20)
    here = nettrim.trim(model, data, epsilon=0.1, progress=False, **options)
    with Elsewhere():
        model = model if lies == "nothing" else model.to(FAR)
        data = data.to(FAR) if lies == "model and data" else data
        where = {"device": FAR} if lies == "nothing" else {}
        there = nettrim.trim(model, data, epsilon=0.1, progress=False, **where, **options)
        assert {parameter.device for parameter in there.model.parameters()} == {FAR}
        assert same_network(here, there)


def convolutions() -> tuple[torch.nn.Module, torch.Tensor]:
    parts = (torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.BatchNorm2d(4))
    grouped = (torch.nn.Conv2d(4, 6, 2, padding=1, groups=2), torch.nn.ReLU())
    return torch.nn.Sequential(*parts, *grouped, torch.nn.Flatten(), torch.nn.Linear(96, 10)), torch.randn(100, 1, 8, 8)


def attention() -> tuple[torch.nn.Module, torch.Tensor]:
    return torch.nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), torch.randn(40, 5, 8)


@pytest.mark.parametrize("make", [convolutions, attention])
@pytest.mark.parametrize("options", [{}, {"scheme": "cascade"}], ids=["default", "cascade"])
@pytest.mark.usefixtures("replaced_parameters")
def test_other_layers(make, options: dict) -> None:
    """Positions of convolutions are drawn on the CPU, the four products of attention are told apart: both go along."""
    model, data = make()
    model.eval()
    here = nettrim.trim(model, data, epsilon=0.1, progress=False, **options)
    with Elsewhere():
        there = nettrim.trim(model.to(FAR), data, epsilon=0.1, progress=False, **options)
        assert same_network(here, there)


def test_certificates_of_exact_recovery() -> None:
    inputs, weight = torch.randn(60, 20), torch.zeros(20)
    weight[:3] = torch.tensor([1.0, -1.0, 2.0])
    here = find_dual_certificate(inputs, weight)
    with Elsewhere():
        far, sparse = inputs.to(FAR), weight.to(FAR)
        found, made = find_dual_certificate(far, sparse), dual_certificate(far, sparse)
        assert check_dual_certificate(far, sparse, found.multipliers).holds and found.holds and here.holds
        assert found.multipliers.device == made.multipliers.device == FAR
        assert torch.equal(found.multipliers.cpu(), here.multipliers)
