"""Budget groups and how one epsilon is split over them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nettrim.errors import InputError
from nettrim.programs import budget_groups, group_sums
from nettrim.programs.budgets import split_epsilon


def test_kinds() -> None:
    assert budget_groups("layer", 3).tolist() == [0, 0, 0]
    assert budget_groups("neuron", 3).tolist() == [0, 1, 2]
    assert budget_groups(2, 4).tolist() == [0, 0, 1, 1]
    assert budget_groups(7, 3).tolist() == [0, 1, 2]
    assert budget_groups(torch.tensor([1, 0, 1]), 3).tolist() == [1, 0, 1]


@given(st.integers(1, 40), st.integers(1, 40))
def test_clusters_are_even_and_none_is_empty(clusters: int, rows: int) -> None:
    sizes = torch.bincount(budget_groups(clusters, rows))
    assert len(sizes) == min(clusters, rows)
    assert int(sizes.min()) >= 1
    assert int(sizes.max() - sizes.min()) <= 1


@given(st.integers(1, 8), st.integers(1, 30), st.floats(0, 1e6))
def test_a_joint_epsilon_is_kept(clusters: int, rows: int, epsilon: float) -> None:
    """A section 4.1: eps_k = eps sqrt(|C_k| / M), whose squares add up to eps^2."""
    groups = budget_groups(clusters, rows)
    parts = split_epsilon(epsilon, groups)
    assert float((parts**2).sum().sqrt()) == pytest.approx(epsilon, rel=1e-12)
    assert parts.dtype == torch.float64


def test_one_a_group() -> None:
    assert split_epsilon(torch.tensor([1.0, 2.0]), torch.tensor([0, 0, 1])).tolist() == [1.0, 2.0]


def test_sums() -> None:
    assert group_sums(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1, 0, 1]), 2).tolist() == [2.0, 5.0]


@pytest.mark.parametrize("budget", ["row", 0, -1, True, 1.5, None, torch.tensor([0, 2, 2]), torch.tensor([0, 1])])
def test_wrong_budgets(budget: object) -> None:
    with pytest.raises(InputError, match="`budget` should be"):
        budget_groups(budget, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("epsilon", [-1.0, math.nan, math.inf, torch.tensor([1.0, -1.0]), torch.ones(3)])
def test_wrong_epsilons(epsilon: object) -> None:
    with pytest.raises(InputError, match="`epsilon` should be"):
        split_epsilon(epsilon, torch.tensor([0, 0, 1]))  # type: ignore[arg-type]
