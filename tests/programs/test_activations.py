"""The preimage is the preimage, and distances to it bound what the activation does."""

from __future__ import annotations

import math

import pytest
import torch

from nettrim.errors import InputError
from nettrim.programs import ACTIVATIONS, get_activation

NAMES = (*ACTIVATIONS, "leaky_relu:0.3", "prelu:1.0", "hardtanh:-2:0.5")


def pre_activations(count: int = 2000) -> torch.Tensor:
    """Ordinary, tiny, large, and at the knees."""
    z = torch.randn(count, dtype=torch.float64) * torch.logspace(-3, 1.3, count, dtype=torch.float64)
    return torch.cat(
        [z, torch.tensor([0.0, -0.0, 1.0, -1.0, 3.0, -3.0, 6.0, -2.0, 0.5, 1e-12, -1e-12], dtype=torch.float64)]
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_response_has_its_pre_activation_in_the_preimage(name: str) -> None:
    activation = get_activation(name)
    z = pre_activations()
    lower, upper = activation.preimage(activation.apply(z))
    assert (lower <= upper).all()
    rounding = 1e-9 * (1 + z.abs())
    settled = z.abs() < 8  # beyond, a saturated response no longer knows its pre-activation to nine digits
    assert ((z >= lower - rounding) & (z <= upper + rounding))[settled].all()


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "softplus"])
@pytest.mark.parametrize(("dtype", "apart"), [(torch.float32, 5e-3), (torch.float64, 1e-5)])
def test_rounded_responses_lose_little_of_the_pre_activation(name: str, dtype: torch.dtype, apart: float) -> None:
    """Near a limit one unit in the last place of the response is a wide stretch of pre-activations."""
    z = torch.linspace(-60, 60, 4001, dtype=dtype)
    activation = get_activation(name)
    lower, upper = activation.preimage(activation.apply(z))
    assert (z - z.clamp(lower, upper)).abs().max() < apart


@pytest.mark.parametrize("name", NAMES)
def test_every_point_of_the_preimage_has_the_response(name: str) -> None:
    activation = get_activation(name)
    y = activation.apply(pre_activations())
    lower, upper = activation.preimage(y)
    for share in (0.0, 0.3, 1.0):
        inside = lower.clamp(min=-50) * (1 - share) + upper.clamp(max=50) * share
        inside = inside.clamp(lower, upper)
        assert (activation.apply(inside) - y).abs().max() < 1e-9


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distance_bounds_the_discrepancy(name: str, dtype: torch.dtype) -> None:
    """|sigma(z) - y| <= dist(z, preimage of y), which Proposition 1 rests on."""
    activation = get_activation(name)
    y = activation.apply(pre_activations().to(dtype))
    z = 5 * torch.randn(len(y), dtype=dtype)
    z[:3] = torch.tensor([1e30, -1e30, 0.0])
    lower, upper = activation.preimage(y)
    distance = (z - z.clamp(lower, upper)).abs()
    assert not distance.isnan().any()
    rounding = 4 * torch.finfo(dtype).eps * (1 + y.abs() + z.abs())
    assert ((activation.apply(z) - y).abs() <= distance + rounding).all()


@pytest.mark.parametrize("name", NAMES)
def test_an_infinite_pre_activation(name: str) -> None:
    """At +-infinity the distance is zero on the right half-line and infinite elsewhere, never NaN."""
    activation = get_activation(name)
    lower, upper = activation.preimage(activation.apply(pre_activations()))
    up = torch.full_like(lower, math.inf)
    assert torch.equal(up.clamp(lower, upper) == math.inf, upper == math.inf)
    assert torch.equal((-up).clamp(lower, upper) == -math.inf, lower == -math.inf)


@pytest.mark.parametrize("name", NAMES)
def test_monotone_and_lipschitz(name: str) -> None:
    activation = get_activation(name)
    z = pre_activations().sort().values
    step, rise = z.diff(), activation.apply(z).diff()
    assert (rise >= -1e-12).all()
    assert (rise <= step + 1e-12).all()


def test_relu_and_linear_by_hand() -> None:
    y = torch.tensor([0.0, 2.0, 1e-30])
    lower, upper = get_activation("relu").preimage(y)
    assert lower.tolist() == [-math.inf, 2.0, pytest.approx(1e-30)]
    assert torch.equal(upper, y)
    assert all(torch.equal(side, y) for side in get_activation("linear").preimage(y))


def test_clipped_by_hand() -> None:
    lower, upper = get_activation("relu6").preimage(torch.tensor([0.0, 3.0, 6.0]))
    assert lower.tolist() == [-math.inf, 3.0, 6.0]
    assert upper.tolist() == [0.0, 3.0, math.inf]
    lower, upper = get_activation("hardsigmoid").preimage(torch.tensor([0.0, 0.5, 1.0]))
    assert lower.tolist() == [-math.inf, 0.0, 3.0]
    assert upper.tolist() == [-3.0, 0.0, math.inf]


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "softplus"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saturated_responses_have_a_half_line(name: str, dtype: torch.dtype) -> None:
    activation = get_activation(name)
    y = activation.apply(torch.tensor([-200.0, 200.0], dtype=dtype))
    lower, upper = activation.preimage(y)
    assert lower[0] == -math.inf
    assert math.isfinite(float(upper[0]))
    assert upper[1] == (math.inf if name != "softplus" else y[1])


def test_names_and_parameters() -> None:
    assert get_activation("leaky_relu:0.1").apply(torch.tensor(-1.0)) == pytest.approx(-0.1)
    activation = get_activation("relu")
    assert get_activation(activation) is activation


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("rellu", "relu"),
        ("swish", "Known"),
        ("relu:1", "0 parameters"),
        ("hardtanh:1", "2 parameters"),
        ("hardtanh:1:-1", "low < high"),
        ("leaky_relu:x", "numeric"),
        ("leaky_relu:2", "slope in"),
        ("leaky_relu:-0.1", "slope in"),
        ("leaky_relu:0", "relu"),
        ("leaky_relu:nan", "slope in"),
    ],
)
def test_errors(name: str, word: str) -> None:
    with pytest.raises(InputError, match=word):
        get_activation(name)
