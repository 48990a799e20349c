"""General solvers through CVXPY: every variant with its certificate, the standard forms, statuses and errors."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from nettrim.errors import InputError
from nettrim.programs import Program
from nettrim.programs.penalties import L1, ElasticNet, GroupL2Inputs, GroupL2Outputs, L1Frobenius, MaxNorm, Penalty
from nettrim.solvers import Status, solve
from nettrim.solvers.cvxpy_solver import Cvxpy
from nettrim.solvers.standard_forms import qcqp_of, qp_of


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    inputs = torch.randn(30, 8, dtype=torch.float64)
    return inputs, torch.relu(inputs @ torch.randn(8, 3, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["epsilon", "neuron", "regularization"])
@pytest.mark.parametrize("constraint", ["distance", "strict"])
@pytest.mark.parametrize(
    "penalty",
    [L1(), ElasticNet(ridge=2.0), L1Frobenius(), MaxNorm(), GroupL2Inputs(), GroupL2Outputs()],
    ids=lambda p: type(p).__name__,
)
def test_its_multipliers_certify_it(data: tuple[Tensor, Tensor], penalty, constraint: str, kind: str) -> None:
    inputs, responses = data
    size = 0.2 * float(responses.norm())
    how = {
        "epsilon": {"epsilon": size},
        "neuron": {"epsilon": size, "budget": "neuron"},
        "regularization": {"regularization": 0.5},
    }
    program = Program.relu(inputs, responses, constraint=constraint, penalty=penalty, **how[kind])
    solution = solve(program, 1e-5, solver=Cvxpy())
    assert solution.certified
    assert solution.certificate.holds(1e-5)


class Mine(Penalty):
    """A penalty that nobody here knows: the size of each row's largest entry."""

    def value(self, weight: Tensor) -> Tensor:
        return MaxNorm().value(weight)

    def prox(self, weight: Tensor, step: Tensor) -> Tensor:
        return MaxNorm().prox(weight, step)

    def gauge(self, dual: Tensor) -> Tensor:
        return MaxNorm().gauge(dual)

    def with_free_columns(self, columns: Tensor) -> Penalty:
        return self


def test_a_penalty_that_it_cannot_be_told_is_left_to_the_others() -> None:
    inputs, weight = torch.randn(30, 60), torch.randn(3, 60)
    program = Program.relu(inputs, torch.relu(inputs @ weight.T), 1e-3, constraint="strict", penalty=Mine())
    assert not solve(program, 1e-7).certified  # without an error
    with pytest.raises(InputError, match="one that CVXPY can state"):
        solve(program, 1e-7, solver=Cvxpy())


def test_scales_and_units(data: tuple[Tensor, Tensor]) -> None:
    """The multipliers come back in the program's units, also where the penalty is not homogeneous."""
    inputs, responses = data
    program = Program.relu(inputs * 1e6, responses * 1e-3, 1e-3, penalty=ElasticNet(ridge=1e9))
    assert solve(program, 1e-5, solver=Cvxpy()).certificate.holds(1e-5)


def test_costs(data: tuple[Tensor, Tensor]) -> None:
    inputs, responses = data
    costs = torch.tensor([0.0, math.inf, 1, 1, 2, 3, 0.5, 1], dtype=torch.float64)
    program = Program.relu(inputs, responses, 0.5 * float(responses.norm()), penalty=L1(costs=costs))
    solution = solve(program, 1e-5, solver=Cvxpy())
    assert solution.certified
    assert not solution.weight[:, 1].any()


@pytest.mark.parametrize("activation", ["linear", "relu", "relu6"])
def test_qp_agrees_with_the_direct_form(activation: str) -> None:
    inputs = torch.randn(30, 8, dtype=torch.float64)
    product = 3 * inputs @ torch.randn(8, 3, dtype=torch.float64)
    responses = {"linear": product, "relu": product.clamp(min=0), "relu6": product.clamp(0, 6)}[activation]
    costs = torch.tensor([1.0, 2, 3, 1, 1, 1, 0.5, math.inf], dtype=torch.float64)
    program = Program.of(
        activation, inputs, responses, constraint="strict", penalty=L1(costs=costs), regularization=0.1
    )
    direct, form = (solve(program, 1e-4, solver=Cvxpy(form=name)) for name in ("direct", "qp"))
    assert form.certified and direct.certified
    assert form.certificate.objective == pytest.approx(direct.certificate.objective, rel=1e-5)


@pytest.mark.parametrize("budget", ["layer", "neuron"])
@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_qcqp_agrees_with_the_direct_form(activation: str, budget: str) -> None:
    """A squared ball has half the digits: a looser tolerance."""
    inputs = torch.randn(30, 8, dtype=torch.float64)
    product = inputs @ torch.randn(8, 3, dtype=torch.float64)
    responses = product if activation == "linear" else product.clamp(min=0)
    program = Program.of(activation, inputs, responses, 0.2 * float(responses.norm()), "strict", budget=budget)
    direct, form = (solve(program, 1e-2, solver=Cvxpy(form=name)) for name in ("direct", "qcqp"))
    assert form.certified and direct.certified
    assert form.certificate.objective == pytest.approx(direct.certificate.objective, rel=1e-4)


def test_the_papers_matrices() -> None:
    """N eq. 13 and 14, A eq. 26 to 28, entry by entry on a small case, in the papers' orientation."""
    inputs = torch.randn(7, 3, dtype=torch.float64)
    responses = torch.relu(inputs @ torch.randn(3, 2, dtype=torch.float64))
    slack = torch.rand(7, 2, dtype=torch.float64)
    X, Y, lam = inputs.T.contiguous(), responses.T, 0.3
    program = Program.relu(inputs, responses, constraint="strict", slack=slack, regularization=lam)
    for m in range(2):
        form, on = qp_of(program, m), Y[m] > 0
        torch.testing.assert_close(form.Q, lam * X[:, on] @ X[:, on].T)
        torch.testing.assert_close(form.q, -lam * X @ Y[m])
        torch.testing.assert_close(form.P, X[:, ~on].T)
        torch.testing.assert_close(form.c, slack[~on, m])
        tilde = form.tilde()
        torch.testing.assert_close(
            tilde.quadratic, torch.cat([torch.cat([form.Q, -form.Q], 1), torch.cat([-form.Q, form.Q], 1)])
        )
        torch.testing.assert_close(tilde.linear, 1 + 2 * torch.cat([form.q, -form.q]))
        torch.testing.assert_close(tilde.rows, torch.cat([form.P, -form.P], 1))
    joint = qcqp_of(Program.relu(inputs, responses, 0.5, constraint="strict", slack=slack))
    spread = torch.kron(torch.eye(2, dtype=torch.float64), X)  # I_M kron X
    on = Y.flatten() > 0
    torch.testing.assert_close(joint.Q, spread[:, on] @ spread[:, on].T)
    torch.testing.assert_close(joint.q, -spread[:, on] @ Y.flatten()[on])
    torch.testing.assert_close(joint.P, spread[:, ~on].T)
    torch.testing.assert_close(joint.c, slack.T.flatten()[~on])
    assert joint.room == pytest.approx(0.25 - float((Y**2).sum()))
    u = torch.randn(6, dtype=torch.float64)
    torch.testing.assert_close(joint.weight(u), u.reshape(2, 3))
    torch.testing.assert_close(joint.tilde().linear, torch.ones(12, dtype=torch.float64))


def test_forms_refuse_what_they_cannot_state(data: tuple[Tensor, Tensor]) -> None:
    inputs, responses = data
    strict = {"constraint": "strict"}
    for form, program, word in [
        ("qp", Program.relu(inputs, responses, 1.0, **strict), "regularization"),
        ("qcqp", Program.relu(inputs, responses, regularization=1.0, **strict), "epsilon"),
        ("qp", Program.relu(inputs, responses, regularization=1.0), "constraint"),
        ("qcqp", Program.relu(inputs, responses, 1.0), "constraint"),
        ("qp", Program.relu(inputs, responses, regularization=1.0, penalty=MaxNorm(), **strict), "penalty"),
    ]:
        with pytest.raises(InputError, match=f"`{word}` should be"):
            solve(program, solver=Cvxpy(form=form))


def test_infeasible_is_proved() -> None:
    inputs, responses = torch.randn(30, 5, dtype=torch.float64), torch.rand(30, 3, dtype=torch.float64) + 0.1
    for constraint in ("distance", "strict"):
        solution = solve(Program.relu(inputs, responses, 0.05, constraint), solver=Cvxpy())
        assert set(solution.status) == {Status.INFEASIBLE}


def test_half_infeasible(data: tuple[Tensor, Tensor]) -> None:
    """One neuron that cannot be matched does not spoil the others."""
    inputs, responses = data
    responses = responses.clone()
    responses[:, 1] = torch.rand(30, dtype=torch.float64) + 5
    solution = solve(Program.relu(inputs, responses, 1e-2, budget="neuron"), 1e-5, solver=Cvxpy())
    assert [status.certified for status in solution.status] == [True, False, True]
    assert solution.status[1] is Status.INFEASIBLE


def test_it_is_a_frozen_value() -> None:
    solver = Cvxpy("CLARABEL", max_iter=50)
    assert solver.options["max_iter"] == 50
    with pytest.raises(dataclasses.FrozenInstanceError):
        solver.name = "SCS"  # type: ignore[misc]
    with pytest.raises(TypeError):
        solver.options["max_iter"] = 1  # type: ignore[index]
    assert Cvxpy() == Cvxpy("CLARABEL")


def test_options_reach_the_solver(data: tuple[Tensor, Tensor]) -> None:
    inputs, responses = data
    program = Program.relu(inputs, responses, 0.2 * float(responses.norm()))
    stopped = solve(program, 1e-6, solver=Cvxpy("CLARABEL", max_iter=2))
    assert not stopped.certified


def test_another_solver(data: tuple[Tensor, Tensor]) -> None:
    inputs, responses = data
    program = Program.relu(inputs, responses, 0.2 * float(responses.norm()))
    assert solve(program, 1e-3, solver=Cvxpy("SCS")).certified


def test_unknown_names() -> None:
    with pytest.raises(InputError, match="CLARABEL"):
        Cvxpy("CLARABELL")
    with pytest.raises(InputError, match="'direct', 'qp' or 'qcqp'"):
        Cvxpy(form="lp")  # type: ignore[arg-type]
