"""Convolutions as matrices, against PyTorch's own convolutions over a grid of settings."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from nettrim.models.operations import Geometry
from nettrim.models.unfold import matrix_of, patches, responses_at, weight_of

CONV = [F.conv1d, F.conv2d, F.conv3d]
TRANSPOSED = [F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d]


def product(inputs, matrix, groups):
    rows = matrix.reshape(groups, -1, matrix.shape[1])
    return torch.einsum("gsi,goi->sgo", inputs, rows).flatten(1)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [s for s in itertools.product([1, 2], [0, 2, "same", "valid"], [1, 2], [1, 2, 4]) if s[0] == 1 or s[1] != "same"],
)
def test_convolution_is_its_patches_times_its_matrix(dims, stride, padding, dilation, groups):
    kernel = (3, 2, 3)[:dims]
    x = torch.randn(3, 4, *(7, 6, 5)[:dims], dtype=torch.float64)
    weight = torch.randn(8, 4 // groups, *kernel, dtype=torch.float64)
    z = CONV[dims - 1](x, weight, None, stride, padding, dilation, groups)
    pad = padding if isinstance(padding, str) else (padding,) * dims
    geometry = Geometry(f"Conv{dims}d", dims, (stride,) * dims, pad, (dilation,) * dims, (), groups)
    matrix = matrix_of(weight, geometry)
    rows = patches(x, kernel, geometry)
    assert rows.shape == (groups, z.numel() // 8, matrix.shape[1])
    torch.testing.assert_close(product(rows, matrix, groups), responses_at(z, geometry))
    assert torch.equal(weight_of(matrix, weight.shape, geometry), weight)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    ("stride", "padding", "extra", "dilation", "groups"),
    [s for s in itertools.product([1, 2, 3], [0, 1, 3], [0, 1], [1, 2], [1, 2]) if s[2] < max(s[0], s[3])],
)
def test_transposed_convolution_gathers_what_each_output_reads(dims, stride, padding, extra, dilation, groups):
    kernel = (3, 2, 3)[:dims]
    x = torch.randn(2, 4, *(6, 6, 5)[:dims], dtype=torch.float64)
    weight = torch.randn(4, 3, *kernel, dtype=torch.float64)
    z = TRANSPOSED[dims - 1](x, weight, None, stride, padding, extra, groups, dilation)
    every = lambda value: (value,) * dims  # noqa: E731
    geometry = Geometry(
        f"ConvTranspose{dims}d", dims, every(stride), every(padding), every(dilation), every(extra), groups
    )
    matrix = matrix_of(weight, geometry)
    assert matrix.shape[0] == 3 * groups
    torch.testing.assert_close(product(patches(x, kernel, geometry), matrix, groups), responses_at(z, geometry))
    assert torch.equal(weight_of(matrix, weight.shape, geometry), weight)


def test_chosen_positions_are_rows_of_all_positions():
    x, weight = torch.randn(3, 4, 6, 5), torch.randn(6, 2, 3, 3)
    geometry = Geometry("Conv2d", 2, (1, 1), (1, 1), (1, 1), (), 2)
    z = F.conv2d(x, weight, None, 1, 1, 1, 2)
    positions = torch.stack([torch.randperm(30)[:7] for _ in range(3)])
    chosen = (torch.arange(3)[:, None] * 30 + positions).flatten()
    assert torch.equal(patches(x, (3, 3), geometry, positions), patches(x, (3, 3), geometry)[:, chosen])
    assert torch.equal(responses_at(z, geometry, positions), responses_at(z, geometry)[chosen])


def test_a_sample_without_batch_dimension():
    x, weight = torch.randn(2, 9), torch.randn(3, 2, 4)
    geometry = Geometry("Conv1d", 1, (1,), (0,), (1,), (), 1)
    z = F.conv1d(x, weight)
    torch.testing.assert_close(product(patches(x, (4,), geometry), weight.flatten(1), 1), responses_at(z, geometry))


def test_tokens_of_a_linear_layer_are_samples():
    x = torch.arange(24.0).reshape(2, 3, 4)
    geometry = Geometry("Linear")
    assert torch.equal(patches(x, (), geometry), x.reshape(1, 6, 4))
    chosen = patches(x, (), geometry, torch.tensor([[2], [0]]))
    assert torch.equal(chosen, torch.stack([x[0, 2], x[1, 0]])[None])
