"""`solve` as a function: what does not change its answer, what is refused, and what is never written into."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from nettrim.certificates import certify
from nettrim.errors import DataError, InputError
from nettrim.programs import Program
from nettrim.programs.penalties import L1
from nettrim.solvers import Hybrid, Status, solve
from nettrim.solvers.finish import Ending, finish


def layer(samples: int = 60, columns: int = 15, rows: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, columns, generator=generator, dtype=torch.float64)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return inputs, weight, torch.relu(inputs @ weight.T)


def program(constraint: str = "distance", budget: str = "neuron", share: float = 0.2, seed: int = 0) -> Program:
    inputs, _, responses = layer(seed=seed)
    return Program.relu(inputs, responses, share * float(responses.norm()), constraint, budget=budget)  # type: ignore[arg-type]


@pytest.mark.parametrize("constraint", ["distance", "strict"])
@pytest.mark.parametrize("rows", [1, 2, 4])
def test_blocks_do_not_matter(rows: int, constraint: str) -> None:
    whole = solve(program(constraint), 1e-6)
    parts = solve(program(constraint), 1e-6, solver=Hybrid(rows_per_block=rows))
    assert parts.certified
    torch.testing.assert_close(parts.weight, whole.weight, rtol=1e-4, atol=1e-5)


def test_a_small_memory_budget_gives_the_same_answer() -> None:
    whole, frugal = solve(program(), 1e-6), solve(program(), 1e-6, memory_budget=1)
    assert frugal.certified
    torch.testing.assert_close(frugal.weight, whole.weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("constraint", ["distance", "strict"])
@pytest.mark.parametrize("budget", ["neuron", "layer"])
def test_order_does_not_matter(budget: str, constraint: str) -> None:
    """Samples, inputs and neurons in another order."""
    inputs, _, responses = layer()
    generator = torch.Generator().manual_seed(5)
    p, n, m = (torch.randperm(size, generator=generator) for size in (60, 15, 6))
    epsilon = 0.2 * float(responses.norm())
    one = solve(Program.relu(inputs, responses, epsilon, constraint, budget=budget), 1e-6)  # type: ignore[arg-type]
    other = Program.relu(inputs[p][:, n], responses[p][:, m], epsilon, constraint, budget=budget)  # type: ignore[arg-type]
    solution = solve(other, 1e-6)
    assert solution.certified
    assert solution.certificate.objective == pytest.approx(one.certificate.objective, rel=2e-6)
    torch.testing.assert_close(solution.weight, one.weight[m][:, n], rtol=1e-3, atol=1e-3)


def test_signs_do_not_matter() -> None:
    inputs, _, responses = layer()
    signs = torch.where(torch.arange(15) % 2 == 0, 1.0, -1.0).to(torch.float64)
    epsilon = 0.2 * float(responses.norm())
    one, other = (solve(Program.relu(x, responses, epsilon), 1e-6) for x in (inputs, inputs * signs))
    torch.testing.assert_close(other.weight * signs, one.weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("constraint", ["distance", "strict"])
@pytest.mark.parametrize("budget", ["neuron", "layer"])
def test_a_warm_start_gives_the_same_answer(budget: str, constraint: str) -> None:
    _, weight, _ = layer()
    cold = solve(program(constraint, budget), 1e-6)
    for initial in (weight, cold.weight, torch.zeros_like(weight), 1e3 * weight):
        warm = solve(program(constraint, budget), 1e-6, initial=initial)
        assert warm.certified
        assert warm.certificate.objective == pytest.approx(cold.certificate.objective, rel=2e-6)


def test_a_path_of_epsilons_is_monotone() -> None:
    """A larger tolerance never costs more, and each answer may start the next."""
    initial, last = None, float("inf")
    for share in (0.02, 0.05, 0.1, 0.2, 0.4, 0.8):
        solution = solve(program(share=share), 1e-5, initial=initial)
        assert solution.certified
        assert solution.certificate.objective <= last * (1 + 1e-5)
        initial, last = solution.weight, solution.certificate.objective


def test_the_initial_weights_are_the_last_resort() -> None:
    """With next to no iterations the answer is still feasible, and its status says that it is no optimum."""
    _, weight, _ = layer()
    for constraint in ("distance", "strict"):
        solution = solve(program(constraint, share=0.01), 1e-9, initial=weight, solver=Hybrid(max_iterations=1))
        assert solution.certificate.violation <= 1e-9
        assert all(status.feasible for status in solution.status)


def test_few_iterations_leave_the_central_path_its_turn() -> None:
    """ADMM closes some of these neurons at every check; what it leaves at the last one is solved all the same."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 120, generator=generator).relu()
    weight = torch.randn(24, 120, generator=generator)
    responses = (inputs @ weight.T).relu()
    wide = Program.relu(inputs, responses, 0.05 * responses.norm(dim=0), "strict", budget="neuron")
    solution = Hybrid(max_iterations=180, rescue=False).solve(wide, 1e-4, weight)
    assert all(status.certified for status in solution.status)


def test_the_certificate_is_that_of_the_answer() -> None:
    for constraint in ("distance", "strict"):
        solution = solve(program(constraint))
        again = certify(program(constraint), solution.weight, solution.dual)
        assert (again.objective, again.bound, again.violation) == (
            solution.certificate.objective,
            solution.certificate.bound,
            solution.certificate.violation,
        )


def test_same_answer_twice() -> None:
    assert torch.equal(solve(program()).weight, solve(program()).weight)


def test_nothing_is_written_into() -> None:
    given = program("strict")
    copies = [array.clone() for array in (given.inputs, given.lower, given.upper)]
    _, weight, _ = layer()
    kept = weight.clone()
    solve(given, initial=weight)
    assert all(torch.equal(a, b) for a, b in zip(copies, (given.inputs, given.lower, given.upper), strict=True))
    assert torch.equal(weight, kept)


def test_a_neuron_of_its_own_does_not_depend_on_its_neighbours() -> None:
    whole = solve(program(), 1e-6)
    alone = solve(program().rows(torch.tensor([3])), 1e-6)
    torch.testing.assert_close(alone.weight[0], whole.weight[3], rtol=1e-4, atol=1e-5)


def test_a_hopeless_neuron_does_not_spoil_the_others() -> None:
    inputs, _, responses = layer()
    responses = responses.clone()
    responses[:, 2] = 5 + torch.rand(60, dtype=torch.float64)
    epsilon = torch.full((6,), 0.5, dtype=torch.float64)
    solution = solve(Program.relu(inputs, responses, epsilon, budget="neuron"), 1e-5)
    assert solution.status[2] is Status.INFEASIBLE
    assert all(status.certified for row, status in enumerate(solution.status) if row != 2)


def test_shapes_and_types() -> None:
    solution = solve(program())
    assert solution.weight.shape == (6, 15)
    assert solution.dual.shape == (60, 6)
    assert len(solution.status) == 6
    assert solution.seconds > 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        Hybrid().max_iterations = 3  # type: ignore[misc]
    assert solve(program(), device="cpu").weight.device.type == "cpu"


@pytest.mark.parametrize(
    ("arguments", "error", "word"),
    [
        ({"tolerance": 0.0}, InputError, "tolerance"),
        ({"tolerance": 1.0}, InputError, "tolerance"),
        ({"initial": torch.zeros(15, 6)}, DataError, "initial"),
        ({"initial": torch.full((6, 15), float("nan"))}, DataError, "initial"),
    ],
)
def test_refusals(arguments: dict, error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=f"`{word}` should be"):
        solve(program(), **arguments)


def test_not_a_program() -> None:
    with pytest.raises(InputError, match="`program` should be"):
        solve(torch.zeros(2, 2))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="`max_iterations` should be"):
        Hybrid(max_iterations=0)


def test_given_weights_that_meet_an_exact_constraint_are_kept_where_none_are_better() -> None:
    """A neuron that is dead but for its bias: the linear program finds the bias to its own tolerance only."""
    inputs = torch.cat([torch.randn(200, 20), torch.ones(200, 1)], dim=1)
    dense = torch.zeros(1, 21)
    dense[0, -1] = 0.7267
    free_bias = L1(torch.cat([torch.ones(20), torch.zeros(1)]))
    program = Program.relu(inputs, (inputs @ dense.T).relu(), 0.0, penalty=free_bias)
    solution = solve(program, initial=dense)
    assert solution.certified
    assert solution.certificate.violation == 0
    assert torch.equal(solution.weight, dense)


@pytest.mark.parametrize("spread", [1.0, 0.1])
def test_exact_constraints_on_float32_numbers_are_met_to_their_rounding(spread: float) -> None:
    """Responses of neurons of different sizes, rounded to float32, and nothing to spend: no neuron keeps its dense
    weights."""
    pytest.importorskip("scipy")
    generator = torch.Generator().manual_seed(3)
    inputs = torch.relu(torch.randn(120, 40, generator=generator) @ torch.randn(40, 90, generator=generator))
    weight = torch.randn(6, 90, generator=generator) * torch.linspace(spread, 1, 6)[:, None]
    responses = torch.relu(inputs @ weight.T)
    answer = solve(Program.relu(inputs, responses, 0.0, "strict", budget="neuron"), 1e-4, initial=weight)
    assert answer.certified
    assert (answer.weight != 0).sum() < 0.9 * weight.numel()
    assert answer.certificate.violation < 2e-5 / spread


def test_a_claim_that_nothing_is_feasible_is_refuted_by_what_is() -> None:
    """HiGHS giving up is no proof, and neither are multipliers beside feasible weights."""
    inputs, weight, responses = layer()
    exact = Program.relu(inputs, responses, 0.0, "strict", budget="neuron")
    answer = solve(exact, 1e-6, initial=weight)
    assert answer.certified
    none = finish(exact, torch.zeros_like(weight), answer.dual, weight, 1e-6, [Ending.INFEASIBLE] * len(weight))
    assert all(status is not Status.INFEASIBLE for status in none.status)
    assert torch.equal(none.weight, weight)
