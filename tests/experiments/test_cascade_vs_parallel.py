"""A figure 4's claims, on curves made by hand."""

import pytest

from nettrim.experiments.cascade_vs_parallel import _claims, kept_at


@pytest.mark.parametrize(("third", "holds", "margin"), [(0.3, True, "0.59"), (0.995, False, "-0.01")])
def test_the_first_layer_is_the_densest_of_all_not_of_two(third, holds, margin):
    curve = ([1.0, 4.0], [[0.99, 0.4, third], [0.95, 0.2, 0.1]])
    curves = {("strict", scheme, 10): curve for scheme in ("cascade", "parallel")}
    (claim,) = [claim for claim in _claims(curves, {"hidden": [10]}) if "densest" in claim.text]
    assert claim.holds is holds and f"at least {margin} more" in claim.evidence


def test_between_points_the_share_kept_follows_a_logarithmic_axis():
    assert kept_at(([4.0, 1.0], [[0.2], [0.4]]), 0, 2.0) == pytest.approx(0.3)
