"""Gram matrices that are updated equal those that are made anew, and are kept within their bytes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nettrim.solvers.bordered import Factored
from nettrim.solvers.curvature import Curvatures, extended, nothing_known
from nettrim.solvers.design import make_design

SAMPLES, FEATURES = 60, 12


@pytest.fixture
def design():
    inputs = torch.randn(SAMPLES, FEATURES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return make_design(inputs, torch.float64)


def masks(samples, features):
    """Masks of the given samples and features."""
    active = torch.zeros(SAMPLES, dtype=torch.bool)
    active[list(samples)] = True
    wanted = torch.zeros(FEATURES, dtype=torch.bool)
    wanted[list(features)] = True
    return wanted, active


@pytest.mark.parametrize(
    "steps",
    [
        [(range(30), range(4)), (range(2, 32), range(4)), (range(2, 32), range(7))],
        [(range(50), range(4)), (range(5, 50), range(3, 9))],  # most samples count: the others are taken away
        [(range(20), range(5)), (range(40, 60), range(5))],  # so many change that it is made anew
        [(range(30), range(4)), (range(3), range(6))],  # few samples: exact, where it was rounded
    ],
    ids=["few change", "most count", "all change", "to exact"],
)
def test_updates_equal_a_matrix_made_anew(design, steps):
    known = nothing_known(design)
    x = design.wide.T
    for samples, features in steps:
        wanted, active = masks(samples, features)
        (known,) = extended([known], design, wanted[None], active[None])
        there = x[active][:, known.features]
        assert set(features) <= set(known.features.tolist())
        assert known.count == len(set(samples))
        torch.testing.assert_close(known.gram, there.T @ there, rtol=1e-12, atol=1e-12)


def test_of_many_features_only_the_wanted_stay(design):
    wanted, active = masks(range(30), range(12))
    (known,) = extended([nothing_known(design)], design, wanted[None], active[None])
    few = masks((), (2, 5, 7))[0]
    assert known.only(masks((), range(10))[0]) is known  # most of them: as they are
    left = known.only(few)
    assert sorted(left.features.tolist()) == [2, 5, 7]
    there = design.wide.T[active][:, left.features]
    torch.testing.assert_close(left.gram, there.T @ there, rtol=1e-12, atol=1e-12)


def test_views_share_what_is_kept_and_its_bytes(design):
    wanted, active = masks(range(30), range(5))
    (known,) = extended([nothing_known(design)], design, wanted[None], active[None])
    kept = Curvatures(2 * known.bytes)
    view = kept.of(torch.tensor([7, 3, 5]))
    view.keep(0, known)
    view.of(torch.tensor([2])).keep(0, known)
    view.keep(1, known)  # no room
    assert kept.take(3) is None
    assert kept.take(7) is known
    assert kept.take(7) is None  # taken once
    view.keep(1, known)  # the room is free again
    assert kept.take(3) is known
    assert kept.take(5) is known
    assert kept.taken == [0]


def test_a_factor_goes_along_with_its_samples(design):
    """It serves while the samples are the same, whatever features come; not with others, nor with its own dropped."""
    wanted, active = masks(range(30), range(5))
    (known,) = extended([nothing_known(design)], design, wanted[None], active[None])
    factored = Factored(torch.arange(5), torch.arange(0), torch.linalg.cholesky(known.gram), None, None)
    known = replace(known, factored=factored)
    (wider,) = extended([known], design, masks((), range(8))[0][None], active[None])
    assert wider.factored is factored
    torch.testing.assert_close(wider.gram[:5, :5], known.gram)
    (other,) = extended([known], design, wanted[None], masks(range(1, 31), ())[1][None])
    assert other.factored is None
    assert known.only(masks((), (2,))[0]).factored is None
    without = known.bytes - factored.factor.nbytes
    few = Curvatures(without)  # no room for the factor
    few.keep(0, known)
    taken = few.take(0)
    assert taken is not None and taken.factored is None and few.taken == [0]
