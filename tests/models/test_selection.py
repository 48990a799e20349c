"""Targets and ignored layers, as users write them."""

import pytest

from nettrim.errors import InputError
from nettrim.models.selection import Candidate, select

LAYERS = [
    Candidate(("features.0",), ("Conv2d",)),
    Candidate(("features.3",), ("Conv2d", "MyConv")),
    Candidate(("head", "tied"), ("Linear",)),
    Candidate(("features2",), ("Linear",)),
]


@pytest.mark.parametrize(
    ("targets", "ignore", "expected"),
    [
        (None, (), [1, 1, 1, 1]),
        ("head", (), [0, 0, 1, 0]),
        (["tied"], (), [0, 0, 1, 0]),
        ("features", (), [1, 1, 0, 0]),
        ("features.*", (), [1, 1, 0, 0]),
        ("features*", (), [1, 1, 0, 1]),
        ("*.[12345]", (), [0, 1, 0, 0]),
        (r"re:features\.\d$", (), [1, 1, 0, 0]),
        ("Linear", (), [0, 0, 1, 1]),
        ("MyConv", (), [0, 1, 0, 0]),
        (["Linear", "features.0"], ["head"], [1, 0, 0, 1]),
        (None, "Conv2d", [0, 0, 1, 1]),
        ([], (), [0, 0, 0, 0]),
    ],
)
def test_select(targets, ignore, expected):
    assert select(LAYERS, targets, ignore) == [bool(one) for one in expected]


def test_unknown_names_bring_the_near_ones():
    with pytest.raises(InputError, match=r"`targets` should be .* Got 'haed'. Did you mean 'head'"):
        select(LAYERS, ["haed"], ())
    with pytest.raises(InputError, match="`ignore` should be"):
        select(LAYERS, None, ["nothing.*"])
    with pytest.raises(InputError, match="`targets` should be patterns that can be read"):
        select(LAYERS, "re:(", ())
