"""Weak duality for every variant: no multipliers whatever give a bound above the optimum, and wrong answers fail."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nettrim.certificates import certify
from nettrim.errors import DataError
from nettrim.programs import Program
from nettrim.programs.penalties import L1, ElasticNet, GroupL2Inputs, GroupL2Outputs, L1Frobenius, MaxNorm, Penalty
from nettrim.solvers import Solution, solve
from nettrim.solvers.cvxpy_solver import Cvxpy

LAST_FREE = torch.tensor([False] * 7 + [True])
FREE_ENTRIES = torch.ones(3, 8, dtype=torch.float64)
FREE_ENTRIES[0, 2] = FREE_ENTRIES[2, :3] = 0.0
PENALTIES: dict[str, Penalty] = {
    "l1": L1(),
    "l1 costs": L1(costs=torch.linspace(0.1, 3, 8, dtype=torch.float64)),
    "l1 forbidden": L1(costs=torch.tensor([1.0] * 7 + [math.inf], dtype=torch.float64)),
    "l1 free entries": L1(costs=FREE_ENTRIES),
    "elastic net": ElasticNet(ridge=0.5),
    "l1 + frobenius": L1Frobenius(frobenius=0.7),
    "max-norm": MaxNorm(),
    "group-l2 inputs": GroupL2Inputs(),
    "group-l2 outputs": GroupL2Outputs(),
}
PENALTIES |= {
    f"{name}, free column": PENALTIES[name].with_free_columns(LAST_FREE)
    for name in ("l1", "elastic net", "l1 + frobenius", "max-norm", "group-l2 inputs", "group-l2 outputs")
}
each_penalty = pytest.mark.parametrize("name", PENALTIES)
each_constraint = pytest.mark.parametrize("constraint", ["distance", "strict"])
each_kind = pytest.mark.parametrize("kind", ["layer", "neuron", "clusters", "regularised", "zero"])


def build(penalty: Penalty, constraint: str, kind: str, activation: str = "relu") -> Program:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(16, 8, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    inputs[:, 7] = 1.0
    weight[:, 7] = 0.0
    product = 2 * inputs @ weight.T
    responses = {"relu": product.clamp(min=0), "relu6": product.clamp(0, 6), "linear": product}[activation]
    size = 0.2 * float(responses.norm())
    how = {
        "layer": {"epsilon": size},
        "neuron": {"epsilon": size, "budget": "neuron"},
        "clusters": {"epsilon": size, "budget": torch.tensor([0, 1, 0])},
        "regularised": {"regularization": 0.2},
        "zero": {"epsilon": 0.0},
    }
    return Program.of(activation, inputs, responses, constraint=constraint, penalty=penalty, **how[kind])  # type: ignore[arg-type]


@functools.cache
def solved(name: str, constraint: str, kind: str, activation: str = "relu") -> tuple[Program, Solution]:
    """A program and its optimum by an independent solver."""
    program = build(PENALTIES[name], constraint, kind, activation)
    return program, solve(program, 1e-6, solver=Cvxpy())


def wild_duals(program: Program, good: Tensor) -> list[Tensor]:
    """Multipliers of any sign and size, near the optimal ones and far from them."""
    generator = torch.Generator().manual_seed(2)

    def noise() -> Tensor:
        return torch.randn(*good.shape, generator=generator, dtype=torch.float64)

    scales = (1e-8, 0.1, 0.9, 1.01, 2.0, 1e8)
    duals = [good * scale for scale in scales] + [noise() * scale for scale in scales]
    duals += [good + share * good.abs().max() * noise() for share in (1e-6, 0.01, 0.1, 1.0)]
    duals += [-good, good.abs(), torch.zeros_like(good), torch.ones_like(good), good * (noise() > 0)]
    return duals


@each_kind
@each_constraint
@each_penalty
def test_no_multipliers_exceed_the_optimum(name: str, constraint: str, kind: str) -> None:
    program, solution = solved(name, constraint, kind)
    optimum = solution.certificate.objective
    assert solution.certificate.holds(1e-5, 1e-8), "the optimum's own multipliers are tight"
    for dual in wild_duals(program, solution.dual):
        certificate = certify(program, solution.weight, dual)
        assert certificate.bound <= optimum * (1 + 1e-6)
        assert certificate.bound >= 0
        if not program.penalty.couples_rows:  # every budget group has a bound of its own
            assert (certificate.group_bound <= certificate.group_objective * (1 + 1e-5) + 1e-9).all()


@pytest.mark.parametrize("activation", ["relu6", "linear"])
@each_constraint
@each_kind
def test_other_activations(activation: str, constraint: str, kind: str) -> None:
    program, solution = solved("l1", constraint, kind, activation)
    assert solution.certificate.holds(1e-5, 1e-8)
    for dual in wild_duals(program, solution.dual):
        assert certify(program, solution.weight, dual).bound <= solution.certificate.objective * (1 + 1e-6)


@each_kind
@each_constraint
@each_penalty
def test_wrong_answers_fail(name: str, constraint: str, kind: str) -> None:
    program, solution = solved(name, constraint, kind)
    weight, dual = solution.weight, solution.dual
    if program.regularization is None:
        assert not certify(program, 0.9 * weight, dual).holds(1e-4, 1e-6), "too small a weight is infeasible"
    assert not certify(program, 1.5 * weight, dual).holds(1e-4, 1e-6), "too large a one is not optimal, or infeasible"
    noise = torch.randn(*dual.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert not certify(program, weight, dual + 0.3 * dual.abs().max() * noise).holds(1e-4, 1e-6), (
        "corrupted multipliers"
    )
    assert not certify(program, weight).holds(1e-4), "no multipliers"
    assert certify(program, weight).bound == 0


@each_constraint
def test_a_feasible_weight_is_never_below_the_bound(constraint: str) -> None:
    program, solution = solved("l1", constraint, "neuron")
    dense = torch.linalg.lstsq(program.inputs, program.upper).solution.T
    for share in (0.0, 0.5, 1.0):
        certificate = certify(program, solution.weight + share * (dense - solution.weight), solution.dual)
        if certificate.violation <= 1e-9:
            assert certificate.objective >= certificate.bound * (1 - 1e-9)


def test_the_numbers_by_hand() -> None:
    """min |u| s.t. |2 u - 4| <= 1: u = 3/2, r = 1/2."""
    one = torch.ones(1, 1, dtype=torch.float64)
    program = Program.relu(2 * one, 4 * one, 1.0)
    certificate = certify(program, 1.5 * one, 0.5 * one)
    assert (certificate.objective, certificate.bound) == pytest.approx((1.5, 1.5), rel=1e-11)
    assert 0.0 <= certificate.gap <= 1e-11  # what is kept for rounding
    assert (certificate.discrepancy, certificate.violation) == (1.0, 0.0)
    assert certify(program, one, 0.5 * one).violation == pytest.approx(1.0)  # distance 2, eps 1
    assert certify(program, 2 * one, 0.5 * one).gap == pytest.approx(0.25)
    assert certify(program, 1.5 * one, -0.5 * one).bound == 0.0


def test_multipliers_that_the_inputs_do_not_see_prove_nothing() -> None:
    """With X'k = 0 and responses rounded, huge multiples of k "prove" that the constraints contradict each other."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randint(-3, 4, shape, generator=generator).double() for shape in ((30, 4), (4, 8)))
    inputs = left @ right
    weight = torch.randn(1, 8, dtype=torch.float64, generator=generator)
    program = Program.linear(inputs, inputs @ weight.T, 0.0)
    answer = solve(program, 1e-6)
    assert answer.certificate.holds(1e-6)
    assert certify(program, weight, answer.dual).gap > 0.2  # feasible, and far from optimal
    kernel = torch.linalg.svd(left)[0][:, 4:]
    for column in range(kernel.shape[1]):
        for power in range(20, 60, 2):
            for sign in (-1, 1):
                added = sign * 2.0**power * kernel[:, column : column + 1]
                assert not certify(program, weight, answer.dual + added).holds(1e-4)


@pytest.mark.parametrize("ratio", [1e-6, 1e-9, 1e-11, 1e-13])
def test_a_small_neuron_is_judged_by_its_own_responses(ratio: float) -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(40, 6, dtype=torch.float64, generator=generator)
    weight = torch.randn(2, 6, dtype=torch.float64, generator=generator) * torch.tensor([[1.0], [ratio]])
    responses = torch.relu(inputs @ weight.T)
    program = Program.relu(inputs, responses, 0.01 * responses.norm(dim=0), budget="neuron")
    answer = solve(program)
    assert answer.certified
    without = answer.weight * torch.tensor([[1.0], [0.0]])
    assert certify(program, without, answer.dual).violation > 1


def test_products_that_overflow_are_not_feasible() -> None:
    inputs = torch.cat([torch.eye(3, dtype=torch.float64), torch.full((3, 2), 10.0, dtype=torch.float64)], dim=1)
    penalty = L1(costs=torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0]))
    program = Program.linear(inputs, torch.ones(3, 1, dtype=torch.float64), 0.1, penalty=penalty)
    huge = torch.tensor([[0.0, 0.0, 0.0, 1.5e308, -1.5e308]], dtype=torch.float64)
    for constraint in ("distance", "strict"):
        certificate = certify(replace(program, constraint=constraint), huge)
        assert certificate.violation == torch.inf
        assert not certificate.holds()


def test_half_lines_by_hand() -> None:
    """min |u1| + |u2| over two samples, one off: u2 helps the first and is paid for, or forbidden, on the second."""
    inputs = torch.tensor([[1.0, 2.0], [0.0, 1.0]], dtype=torch.float64)
    responses = torch.tensor([[4.0], [0.0]], dtype=torch.float64)
    strict = Program.relu(inputs, responses, 0.0, "strict")
    assert certify(strict, torch.tensor([[4.0, 0.0]]), torch.tensor([[1.0], [-1.0]])).holds(1e-11)
    assert certify(strict, torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0], [-1.0]])).violation > 0.1
    # the multiplier of the sample that is off may only be negative: the wrong sign is clipped, not believed
    assert certify(strict, torch.tensor([[4.0, 0.0]]), torch.tensor([[1.0], [1.0]])).bound == pytest.approx(2.0)


def test_hard_entries_are_judged_against_the_responses() -> None:
    inputs, responses = torch.eye(2, dtype=torch.float64), torch.tensor([[3.0], [0.0]], dtype=torch.float64)
    program = Program.relu(inputs, responses, 1.0, "strict")
    certificate = certify(program, torch.tensor([[3.0, 0.3]], dtype=torch.float64))
    assert certificate.violation == pytest.approx(0.1)
    assert certificate.discrepancy == 0.0
    assert certify(Program.relu(inputs, responses, 1.0), torch.tensor([[3.0, 0.3]])).discrepancy == pytest.approx(0.3)


@pytest.mark.parametrize("scale", [1e-10, 1e-3, 1e10])
def test_nothing_depends_on_units(scale: float) -> None:
    program, solution = solved("l1", "strict", "layer")
    epsilon = float(program.epsilon[0]) if program.epsilon is not None else 0.0
    responses = program.upper
    other = Program.relu(program.inputs * scale, responses / scale, epsilon / scale, "strict")
    certificate = certify(other, solution.weight / scale**2, solution.dual / scale)
    assert certificate.gap == pytest.approx(solution.certificate.gap, abs=1e-9)
    assert certificate.violation <= 1e-9


def test_chunks_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums over samples do not depend on how many are taken at once."""
    import nettrim.certificates.program as module  # noqa: PLC0415

    program = build(L1(costs=torch.tensor([1.0] * 7 + [0.0])), "strict", "clusters")
    weight, dual = torch.randn(3, 8, dtype=torch.float64), torch.randn(16, 3, dtype=torch.float64)
    whole = certify(program, weight, dual)
    monkeypatch.setattr(module, "_CHUNK", 30)
    parts = certify(program, weight, dual)
    for name in ("objective", "bound", "discrepancy", "violation"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-9)


def test_infinite_cost() -> None:
    program = build(PENALTIES["l1 forbidden"], "distance", "layer")
    certificate = certify(program, torch.ones(3, 8, dtype=torch.float64))
    assert certificate.objective == math.inf
    assert not certificate.holds(1e-4)


def test_float32_answers_are_judged_in_float64() -> None:
    inputs = torch.full((3, 1), 0.1)
    program = Program.relu(inputs, torch.full((3, 1), 0.3), 0.0)
    assert certify(program, torch.tensor([[3.0]])).violation > 1e-9  # 0.1f * 3 is not 0.3f


@pytest.mark.parametrize(
    ("weight", "dual", "word"),
    [
        (torch.zeros(8, 3), None, "weight"),
        (torch.full((3, 8), math.nan), None, "weight"),
        (torch.zeros(3, 8), torch.zeros(3, 16), "dual"),
        (torch.zeros(3, 8), torch.full((16, 3), math.inf), "dual"),
    ],
)
def test_refusals(weight: Tensor, dual: Tensor | None, word: str) -> None:
    with pytest.raises(DataError, match=f"`{word}` should be"):
        certify(build(L1(), "strict", "layer"), weight, dual)
