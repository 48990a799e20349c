"""The box's part of the dual bound, entry by entry: which signs multipliers may have, and the least of r z over it."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from nettrim.certificates.program import clip_multipliers, support_value

VALUES = st.sampled_from([-torch.inf, -3.0, -1e-300, 0.0, 1e-300, 2.0, torch.inf])
MULTIPLIERS = st.sampled_from([-1e200, -4.0, -1e-310, 0.0, 1e-310, 5.0, 1e200])


@given(VALUES, VALUES, MULTIPLIERS)
def test_of_one_entry(one: float, other: float, multiplier: float) -> None:
    lower, upper = sorted((one, other))
    if lower == torch.inf or upper == -torch.inf:  # no box
        return
    bounds = [torch.tensor([[value]], dtype=torch.float64) for value in (multiplier, lower, upper)]
    allowed = lower != -torch.inf if multiplier > 0 else upper != torch.inf
    assert float(clip_multipliers(*bounds)) == (multiplier if allowed else 0.0)
    least = 0.0 if multiplier == 0 else min(multiplier * lower, multiplier * upper)
    for dim in (0, 1):
        assert float(support_value(*bounds, dim=dim)) == least
