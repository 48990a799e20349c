"""Penalties: prox, gauge and conjugate against their definitions, and against CVXPY."""

from __future__ import annotations

import math

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor

from nettrim.errors import InputError
from nettrim.programs.penalties import L1, ElasticNet, GroupL2Inputs, GroupL2Outputs, L1Frobenius, MaxNorm, Penalty

COSTS = torch.tensor(
    [[0.0, 1.0, 2.0, 0.5, 1.0], [1.0, 1.0, 3.0, 0.0, 0.1], [1.0, 1.0, 1.0, 1.0, 1.0]], dtype=torch.float64
)
LAST_FREE = torch.tensor([False, False, False, False, True])
ALL = {
    "l1": L1(),
    "l1 costs": L1(costs=COSTS),
    "elastic net": ElasticNet(ridge=0.7),
    "elastic net costs": ElasticNet(costs=COSTS, ridge=0.7),
    "l1 + frobenius": L1Frobenius(frobenius=0.7),
    "max-norm": MaxNorm(),
    "group-l2 inputs": GroupL2Inputs(),
    "group-l2 outputs": GroupL2Outputs(),
}
ALL |= {f"{name}, free column": ALL[name].with_free_columns(LAST_FREE) for name in list(ALL)}


def over(chosen: dict[str, Penalty]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("penalty", chosen.values(), ids=chosen.keys())


each = over(ALL)
each_norm = over({name: penalty for name, penalty in ALL.items() if penalty.is_norm})
each_other = over({name: penalty for name, penalty in ALL.items() if not penalty.is_norm})
each_by_rows = over({name: penalty for name, penalty in ALL.items() if not penalty.couples_rows})


def stated(penalty: Penalty, u, shape: tuple[int, int]):
    """The penalty in CVXPY's words, written down independently."""
    free = penalty.free(shape)
    kept = np.ones(shape) if free is None else (~free).numpy().astype(float)
    if isinstance(penalty, L1 | ElasticNet):
        costs = torch.as_tensor(penalty.costs, dtype=torch.float64).expand(shape).numpy()
        total = cp.sum(cp.multiply(costs, cp.abs(u)))
        return total + (
            penalty.ridge / 2 * cp.sum(cp.multiply(costs, cp.square(u))) if isinstance(penalty, ElasticNet) else 0
        )
    part = cp.multiply(kept, u)
    return {
        L1Frobenius: lambda: cp.sum(cp.abs(part)) + getattr(penalty, "frobenius", 0) * cp.norm(part, "fro"),
        MaxNorm: lambda: cp.sum(cp.max(cp.abs(part), axis=1)),
        GroupL2Inputs: lambda: cp.sum(cp.norm(part, 2, axis=0)),
        GroupL2Outputs: lambda: cp.sum(cp.norm(part, 2, axis=1)),
    }[type(penalty)]()


def pairing(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum())


def without_free(penalty: Penalty, array: Tensor) -> Tensor:
    free = penalty.free((array.shape[0], array.shape[1]))
    return array if free is None else torch.where(free, 0.0, array)


@each
def test_value_matches_cvxpy(penalty: Penalty) -> None:
    weight = torch.randn(3, 5, dtype=torch.float64)
    assert float(penalty.value(weight).sum()) == pytest.approx(
        float(stated(penalty, cp.Constant(weight.numpy()), (3, 5)).value)
    )
    assert not penalty.value(torch.zeros(3, 5)).any()


@each
@pytest.mark.parametrize("step", [0.01, 0.5, 10.0])
def test_prox_matches_cvxpy(penalty: Penalty, step: float) -> None:
    weight = torch.randn(3, 5, dtype=torch.float64)
    found = penalty.prox(weight, torch.full((3, 1), step, dtype=torch.float64))
    u = cp.Variable((3, 5))
    cp.Problem(cp.Minimize(step * stated(penalty, u, (3, 5)) + cp.sum_squares(u - weight.numpy()) / 2)).solve(
        solver="CLARABEL", tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9
    )
    torch.testing.assert_close(found, torch.as_tensor(u.value), rtol=1e-3, atol=1e-4)

    def value(point: Tensor) -> float:
        return step * float(penalty.value(point).sum()) + float(((point - weight) ** 2).sum()) / 2

    assert value(found) <= value(torch.as_tensor(u.value)) + 1e-9


@each
def test_prox_is_optimal(penalty: Penalty) -> None:
    """Moreau: t = (w - prox w) / step is a subgradient there: penalty(u) + penalty*(t) = <t, u>, t in the domain."""
    for scale in (1e-6, 1.0, 1e6):
        weight = scale * torch.randn(3, 5, dtype=torch.float64)
        step = 0.4 * (scale if penalty.is_norm else 1.0)
        u = penalty.prox(weight, torch.full((3, 1), step, dtype=torch.float64))
        t = (weight - u) / step
        assert not (t - without_free(penalty, t)).any()
        assert float(penalty.gauge(t).max()) <= 1 + 1e-9
        left = float(penalty.value(u).sum()) + float(penalty.conjugate(t).sum())
        assert left == pytest.approx(pairing(t, u), rel=1e-9, abs=1e-12 * scale)


@each_by_rows
def test_rows_may_have_steps_of_their_own(penalty: Penalty) -> None:
    weight, steps = torch.randn(3, 5, dtype=torch.float64), torch.tensor([[0.1], [0.5], [2.0]], dtype=torch.float64)
    together = penalty.prox(weight, steps)
    for row in range(3):
        index = torch.tensor([row])
        torch.testing.assert_close(penalty.rows(index).prox(weight[index], steps[index]), together[index])


@each_norm
def test_gauge_is_the_smallest_scale(penalty: Penalty) -> None:
    """sup <t, U> - penalty(U) over U is infinite just inside the gauge and finite just outside."""
    t = without_free(penalty, torch.randn(3, 5, dtype=torch.float64))
    gauge = penalty.gauge(t)
    u = cp.Variable((3, 5))
    rows = [None] if penalty.couples_rows else range(3)
    for row in rows:
        part = t if row is None else torch.zeros_like(t).index_copy(0, torch.tensor([row]), t[row : row + 1])
        problem = cp.Problem(
            cp.Maximize(cp.sum(cp.multiply(part.numpy(), u))), [stated(penalty, u, (3, 5)) <= 1, cp.abs(u) <= 1e3]
        )
        problem.solve(solver="CLARABEL")
        free = penalty.free((3, 5))
        assert free is None or not part[free].any()
        assert float(gauge[0 if row is None else row]) == pytest.approx(float(problem.value), rel=1e-5)


@each_norm
def test_gauge_bounds_the_pairing(penalty: Penalty) -> None:
    """<t, U> <= gauge(t) penalty(U), row by row, with equality somewhere: what weak duality needs."""
    for _ in range(50):
        t = without_free(penalty, torch.randn(3, 5, dtype=torch.float64))
        u = torch.randn(3, 5, dtype=torch.float64) * (torch.rand(3, 5) < 0.5)
        gauge, value = penalty.gauge(t), penalty.value(u)
        if penalty.couples_rows:
            assert pairing(t, u) <= float(gauge[0] * value.sum()) * (1 + 1e-12) + 1e-12
        else:
            assert ((t * u).sum(dim=1) <= gauge * value * (1 + 1e-12) + 1e-12).all()


@each_other
def test_fenchel_young(penalty: Penalty) -> None:
    for _ in range(50):
        t = without_free(penalty, 2 * torch.randn(3, 5, dtype=torch.float64))
        u = torch.randn(3, 5, dtype=torch.float64)
        assert ((t * u).sum(dim=1) <= penalty.value(u) + penalty.conjugate(t) + 1e-12).all()
    u = cp.Variable((3, 5))
    problem = cp.Problem(cp.Maximize(cp.sum(cp.multiply(t.numpy(), u)) - stated(penalty, u, (3, 5))))
    problem.solve(solver="CLARABEL")
    assert float(penalty.conjugate(t).sum()) == pytest.approx(float(problem.value), rel=1e-6)


@each
def test_rows_and_columns(penalty: Penalty) -> None:
    weight = torch.randn(3, 5, dtype=torch.float64)
    columns, rows = torch.tensor([4, 0, 2]), torch.tensor([2, 0])
    inside = torch.zeros_like(weight)
    inside[:, columns] = weight[:, columns]
    assert float(penalty.columns(columns).value(weight[:, columns]).sum()) == pytest.approx(
        float(penalty.value(inside).sum())
    )
    inside = torch.zeros_like(weight)
    inside[rows] = weight[rows]
    assert float(penalty.rows(rows).value(weight[rows]).sum()) == pytest.approx(float(penalty.value(inside).sum()))
    free, part = penalty.free((3, 5)), penalty.columns(columns).free((3, 3))
    assert (free is None or not free[:, columns].any()) if part is None else torch.equal(part, free[:, columns])


@each
def test_free_columns_cost_nothing(penalty: Penalty) -> None:
    weight = torch.zeros(3, 5, dtype=torch.float64)
    weight[:, 1] = 5.0
    freed = penalty.with_free_columns(torch.tensor([False, True, False, False, False]))
    assert not freed.value(weight).any()
    free = freed.free((3, 5))
    assert free is not None and free[:, 1].all()
    assert torch.equal(freed.prox(weight, torch.ones(3, 1, dtype=torch.float64)), weight)


@each
def test_rescaled_is_a_function_of_the_scaled_weight(penalty: Penalty) -> None:
    weight = torch.randn(3, 5, dtype=torch.float64)
    factor = 1e3
    assert factor * float(penalty.rescaled(factor).value(weight / factor).sum()) == pytest.approx(
        float(penalty.value(weight).sum())
    )


@pytest.mark.parametrize("family", [L1, ElasticNet])
def test_forbidden_entries(family: type[L1] | type[ElasticNet]) -> None:
    penalty = family(costs=torch.tensor([1.0, math.inf]))
    weight = torch.tensor([[1.0, 3.0]])
    assert penalty.prox(weight, torch.tensor([[0.1]]))[0, 1] == 0
    assert penalty.value(weight)[0] == math.inf
    assert penalty.value(torch.tensor([[1.0, 0.0]]))[0] < math.inf
    assert torch.isfinite(penalty.gauge(weight)).all()
    assert torch.isfinite(penalty.conjugate(weight)).all()


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (lambda: L1(costs=-1.0), "costs"),
        (lambda: L1(costs=torch.tensor([1.0, math.nan])), "costs"),
        (lambda: L1(costs=torch.ones(4)).value(torch.ones(2, 3)), "costs"),
        (lambda: ElasticNet(ridge=0.0), "ridge"),
        (lambda: ElasticNet(ridge=math.inf), "ridge"),
        (lambda: L1Frobenius(frobenius=-1.0), "frobenius"),
    ],
)
def test_errors(build, word: str) -> None:
    with pytest.raises(InputError, match=word):
        build()
