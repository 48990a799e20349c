"""Exact recovery: Prop. 2 (N) / 3 (A) agrees with what the linear program really finds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nettrim.certificates.recovery import (
    check_dual_certificate,
    dual_certificate,
    recovery_probability,
    samples_for_recovery,
)
from nettrim.errors import DataError, InputError
from nettrim.programs import Program
from nettrim.solvers.lp import find_dual_certificate, solve_lp


def gaussian(samples: int, features: int, support: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, features, generator=generator, dtype=torch.float64)
    weight = torch.zeros(features, dtype=torch.float64)
    weight[:support] = torch.randn(support, generator=generator, dtype=torch.float64)
    return inputs, weight


def recovered(inputs: Tensor, weight: Tensor) -> bool:
    answer = solve_lp(Program.relu(inputs, torch.relu(inputs @ weight)[:, None], 0.0))
    return bool((answer.weight[0] - weight).abs().max() < 1e-7 * weight.abs().max())


@pytest.mark.parametrize("seed", range(5))
def test_many_samples_recover(seed: int) -> None:
    """More samples than unknowns among the active ones: the certificate of the proof exists."""
    inputs, weight = gaussian(400, 40, 3, seed)
    certificate = dual_certificate(inputs, weight)
    assert certificate.holds
    assert certificate.margin_weights > 0
    assert recovered(inputs, weight)


@pytest.mark.parametrize("seed", range(5))
def test_few_samples_do_not(seed: int) -> None:
    inputs, weight = gaussian(12, 40, 10, seed)
    assert not dual_certificate(inputs, weight).holds
    assert not find_dual_certificate(inputs, weight).holds
    assert not recovered(inputs, weight)


def test_the_best_certificate_holds_exactly_where_the_program_recovers() -> None:
    """Prop. 2 is sufficient, and for data in general position also necessary."""
    both = {True: 0, False: 0}
    for seed in range(40):
        inputs, weight = gaussian(10 + seed, 30, 3, seed)
        found = recovered(inputs, weight)
        best = find_dual_certificate(inputs, weight)
        # a vertex may be w* without being the only solution: only then may they differ
        assert not best.holds or found
        if found and not best.holds:
            assert best.margin_weights < 1e-6 or not best.full_rank
        if dual_certificate(inputs, weight).holds:
            assert best.holds
        both[best.holds] += 1
    assert min(both.values()) >= 5, "both outcomes occur"


def test_the_best_is_at_least_as_good_as_least_norm() -> None:
    inputs, weight = gaussian(60, 30, 4, 3)
    assert (
        find_dual_certificate(inputs, weight).margin_weights >= dual_certificate(inputs, weight).margin_weights - 1e-9
    )


def test_kinks_need_a_negative_multiplier() -> None:
    """A sample whose pre-activation is exactly zero helps only with a strictly negative multiplier."""
    inputs = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    weight = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert not check_dual_certificate(inputs, weight, torch.tensor([1.0, 0.0])).holds
    certificate = check_dual_certificate(inputs, weight, torch.tensor([1.0, -0.5]))
    assert certificate.holds
    assert certificate.margin_weights == pytest.approx(0.5)
    assert certificate.margin_slack == pytest.approx(0.5)
    assert not check_dual_certificate(inputs, weight, torch.tensor([1.0, 0.5])).holds
    assert find_dual_certificate(inputs, weight).holds
    assert recovered(inputs, weight)


def test_wrong_multipliers_fail() -> None:
    inputs, weight = gaussian(400, 40, 3, 0)
    nu = dual_certificate(inputs, weight).multipliers
    assert check_dual_certificate(inputs, weight, nu).holds
    assert not check_dual_certificate(inputs, weight, 1.001 * nu).holds
    assert not check_dual_certificate(inputs, weight, nu + 1e-3).holds  # not zero where the unit is off
    assert not check_dual_certificate(inputs, -weight, nu).holds
    responses = torch.relu(inputs @ weight)
    assert check_dual_certificate(inputs, weight, nu, responses).holds
    assert not check_dual_certificate(inputs, weight, nu, 1.01 * responses).holds


def test_dependent_columns_are_not_unique() -> None:
    inputs, weight = gaussian(100, 10, 3, 1)
    inputs[:, 1] = inputs[:, 0]
    weight[1] = weight[0]
    certificate = dual_certificate(inputs, weight)
    assert not certificate.full_rank
    assert not certificate.holds


def test_the_zero_weight() -> None:
    inputs, weight = gaussian(20, 5, 0, 1)
    assert not dual_certificate(inputs, weight).holds  # every sample is a kink, whose multiplier should be negative
    assert find_dual_certificate(inputs, weight).full_rank


def test_scale_of_the_inputs_does_not_matter() -> None:
    inputs, weight = gaussian(100, 30, 3, 2)
    for scale in (1e-8, 1e8):
        assert dual_certificate(scale * inputs, weight / scale).holds
        assert find_dual_certificate(scale * inputs, weight / scale).holds


def test_sample_bounds() -> None:
    """N Theorem 3: (11 s + 7) mu log N; A Theorem 3: (6 s + 1) mu log N."""
    assert samples_for_recovery(5, 100, 2.0) == math.ceil(62 * 2 * math.log(100))
    assert samples_for_recovery(5, 100, 2.0, "A") == math.ceil(31 * 2 * math.log(100))
    samples = samples_for_recovery(5, 100, 2.0)
    assert recovery_probability(5, 100, samples) == pytest.approx(1 - 100.0 ** (1 - 2), abs=1e-3)
    assert recovery_probability(5, 100, samples // 3) == 0.0
    many = samples_for_recovery(5, 100, 3.0)
    assert recovery_probability([5] * 10, 100, many) == pytest.approx(1 - 10 * 100.0**-2, abs=1e-3)
    assert recovery_probability([5, 2], 100, many) > recovery_probability([5, 5], 100, many)


def test_the_theorem_is_kept() -> None:
    features, support = 20, 2
    samples = samples_for_recovery(support, features, 1.5)
    assert all(recovered(*gaussian(samples, features, support, seed)) for seed in range(5))


def test_refusals() -> None:
    with pytest.raises(DataError, match="`weight` should be"):
        dual_certificate(torch.zeros(3, 2), torch.zeros(3))
    with pytest.raises(DataError, match="`multipliers` should be"):
        check_dual_certificate(torch.zeros(3, 2), torch.zeros(2), torch.zeros(2))
    for arguments, word in [((5, 4), "support"), ((1, 4, 1.0), "mu"), ((1, 4, 2.0, "B"), "paper")]:
        with pytest.raises(InputError, match=f"`{word}` should be"):
            samples_for_recovery(*arguments)
