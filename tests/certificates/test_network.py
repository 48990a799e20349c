"""The network bounds hold for real chains and fail for doctored ones."""

import itertools
import math

import pytest
import torch

from nettrim.certificates.network import (
    Link,
    link_denormalize,
    link_normalize,
    network_bounds,
    operator_norm,
    theorem_1,
    theorem_2,
)
from nettrim.errors import InputError


def chain(seed, widths=(6, 9, 8, 4), bias=True):
    generator = torch.Generator().manual_seed(seed)
    weights = [
        torch.randn(out, width, generator=generator, dtype=torch.float64) for width, out in itertools.pairwise(widths)
    ]
    biases = [
        0.3 * torch.randn(len(weight), generator=generator, dtype=torch.float64) if bias else None for weight in weights
    ]
    return weights, biases, torch.randn(50, widths[0], generator=generator, dtype=torch.float64)


def forward(weights, biases, inputs):
    """Responses of every layer; the last one is linear."""
    responses = []
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        inputs = inputs @ weight.T + (0 if bias is None else bias)
        inputs = torch.relu(inputs) if index < len(weights) - 1 else inputs
        responses.append(inputs)
    return responses


def distance(z, y, linear):
    """To the preimage of y: {y} where y > 0 or linear, (-inf, 0] elsewhere."""
    return float(torch.where((y > 0) | torch.tensor(linear), z - y, z.clamp(min=0)).norm())


def perturbed(weights, seed, size):
    generator = torch.Generator().manual_seed(1000 + seed)
    return [weight + size * torch.randn(weight.shape, generator=generator, dtype=weight.dtype) for weight in weights]


def links(weights, trimmed, biases, inputs, schemes):
    original, current = forward(weights, biases, inputs), forward(trimmed, biases, inputs)
    result = []
    for index, scheme in enumerate(schemes):
        sources = {"parallel": original, "cascade": current, "kept": original}[scheme]
        source = sources[index - 1] if index else inputs
        z = source @ trimmed[index].T + (0 if biases[index] is None else biases[index])
        reached = distance(z, original[index], index == len(weights) - 1)
        norm, before = operator_norm(trimmed[index]), operator_norm(weights[index])
        result.append(Link(str(index), scheme, reached, norm, before))
    return result, original, current


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("size", [0.0, 1e-3, 0.1, 3.0])
@pytest.mark.parametrize(
    "schemes",
    [
        ("parallel",) * 3,
        ("cascade",) * 3,
        ("cascade", "parallel", "cascade"),
        ("parallel", "kept", "cascade"),
        ("parallel", "cascade", "parallel"),
    ],
)
def test_bounds_hold_for_any_weights_and_mixture(seed, size, schemes):
    weights, biases, inputs = chain(seed, bias=seed % 2 == 0)
    trimmed = perturbed(weights, seed, size)
    trimmed = [old if scheme == "kept" else new for old, new, scheme in zip(weights, trimmed, schemes, strict=True)]
    given, original, current = links(weights, trimmed, biases, inputs, schemes)
    for bound, before, after in zip(network_bounds(given), original, current, strict=True):
        assert float((after - before).norm()) <= bound * (1 + 1e-12) + 1e-12


def test_a_doctored_weight_exceeds_the_bound():
    weights, biases, inputs = chain(0)
    trimmed = perturbed(weights, 0, 1e-3)
    given, original, _ = links(weights, trimmed, biases, inputs, ("parallel",) * 3)
    doctored = [trimmed[0], trimmed[1], trimmed[2] * 1.5]
    after = forward(doctored, biases, inputs)[-1]
    assert float((after - original[-1]).norm()) > network_bounds(given)[-1]


def test_cascade_prior_takes_the_smaller_of_both():
    first = Link("a", "cascade", 2.0, 1.0, 1.0)
    assert network_bounds([first, Link("b", "cascade", 5.0, 9.0, 1.0, gamma=1.21)]) == pytest.approx((2.0, 2.2))
    assert network_bounds([first, Link("b", "cascade", 1.0, 9.0, 1.0, gamma=1.21)]) == pytest.approx((2.0, 1.0))


@pytest.mark.parametrize("count_bias", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_link_normalised_chain_is_the_same_function(bias, count_bias):
    weights, biases, inputs = chain(3, bias=bias)
    normal = link_normalize(weights, biases, count_bias=count_bias)
    before = forward(weights, biases, inputs)[-1]
    after = forward(normal.weights, normal.biases, inputs)[-1]
    assert torch.allclose(after * normal.factor, before, rtol=1e-12, atol=1e-12)
    for weight, offset in zip(normal.weights, normal.biases, strict=True):
        total = weight.abs().sum() + (offset.abs().sum() if count_bias and offset is not None else 0)
        assert float(total) == pytest.approx(1.0)
        assert operator_norm(weight) <= 1 + 1e-9
    back, back_biases = link_denormalize(normal.weights, normal.biases, normal.scales)
    for old, new in zip(weights + biases, back + back_biases, strict=True):
        assert (old is None and new is None) or torch.allclose(old, new, rtol=1e-12)


def test_link_normalize_leaves_a_layer_of_zeros():
    normal = link_normalize([torch.zeros(2, 3), torch.ones(1, 2)])
    assert normal.scales == (1.0, 2.0)
    with pytest.raises(InputError, match="`biases` should be"):
        link_normalize([torch.ones(2, 3)], [None, None])
    with pytest.raises(InputError, match="`scales` should be"):
        link_denormalize([torch.ones(2, 3)], None, [])


def test_theorems():
    assert theorem_1([0.1, 0.2, 0.3]) == pytest.approx(0.6)
    assert theorem_2(0.1, [1.1, 1.1]) == pytest.approx(0.11)
    assert theorem_2(0.1, [1.1, 1.1], kappa=0.5) == pytest.approx(0.055)
    with pytest.raises(InputError):
        theorem_1([0.1, -0.2])


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e8, 1e30])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (5, 8), (8, 5)])
def test_operator_norm(shape, scale):
    weight = scale * torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = float(torch.linalg.svdvals(weight)[0])
    assert exact <= operator_norm(weight) <= exact * (1 + 1e-9)
    assert operator_norm(weight, repeats=9) == pytest.approx(3 * exact)
    assert operator_norm(weight * 0) == 0.0


def test_convolution_norm_covers_the_unfolding():
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(4, 3, 3, 3, generator=generator, dtype=torch.float64)
    image = torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64)
    answer = torch.nn.functional.conv2d(image, kernel, padding=1)
    assert float(answer.norm()) <= operator_norm(kernel.flatten(1), repeats=9) * float(image.norm())


def test_links_are_checked():
    with pytest.raises(InputError, match="`scheme` should be"):
        Link("a", "serial", 1.0, 1.0, 1.0)
    with pytest.raises(InputError, match="`distance` should be"):
        Link("a", "parallel", math.nan, 1.0, 1.0)
