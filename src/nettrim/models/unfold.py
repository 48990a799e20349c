"""Convolutions as the matrices they are: patches of the input, and the kernel flattened to (out, in)."""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from nettrim.models.operations import Geometry


def matrix_of(weight: Tensor, geometry: Geometry) -> Tensor:
    """A weight tensor as (out, in), where `in` counts one group's patch entries.

    A plain product stores (in, out). A transposed convolution stores (in, out / groups, *kernel) and lays its
    kernel down; seen from an output position it is a convolution with the kernel turned round.
    """
    if geometry.flipped:
        return weight.T
    if not geometry.transposed:
        return weight.flatten(1)
    groups = geometry.groups
    parts = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1).flip(-1)  # (g, in/g, out/g, k)
    return parts.transpose(1, 2).reshape(groups * weight.shape[1], -1)


def weight_of(matrix: Tensor, shape: torch.Size | tuple[int, ...], geometry: Geometry) -> Tensor:
    """The inverse of `matrix_of` for a weight of the given shape."""
    if geometry.flipped:
        return matrix.T
    if not geometry.transposed:
        return matrix.reshape(shape)
    groups = geometry.groups
    parts = matrix.reshape(groups, shape[1], shape[0] // groups, -1)
    return parts.transpose(1, 2).flip(-1).reshape(shape)


def rows_per_sample(inputs: Tensor, responses: Tensor, geometry: Geometry) -> tuple[int, int]:
    """How many samples of the batch a response holds, and how many positions each of them."""
    if geometry.dims == 0:
        batch = responses.shape[0] if responses.dim() > 1 else 1
        return batch, responses.numel() // max(batch * responses.shape[-1], 1)
    batched = responses.dim() == geometry.dims + 2
    return (responses.shape[0] if batched else 1), prod(responses.shape[-geometry.dims :])


def patches(inputs: Tensor, kernel: tuple[int, ...], geometry: Geometry, positions: Tensor | None = None) -> Tensor:
    """What each output position reads, (groups, samples * positions, in), sample by sample.

    `inputs` is what the operation received: (samples, ..., in) for a product, (samples, channels,
    *space) or (channels, *space) for a convolution. `positions` (samples, count) chooses flat output
    positions; None takes all of them in order.
    """
    if geometry.dims == 0:
        return _at(inputs.reshape(inputs.shape[0] if inputs.dim() > 1 else 1, -1, inputs.shape[-1]), positions)[None]
    if inputs.dim() == geometry.dims + 1:
        inputs = inputs[None]
    windows = _windows(_padded(inputs, kernel, geometry), kernel, geometry)  # (b, c, *out, *kernel)
    batch, channels = windows.shape[:2]
    dims = geometry.dims
    space = windows.shape[2 : 2 + dims]
    if positions is None:
        order = (0, *range(2, 2 + dims), 1, *range(2 + dims, 2 + 2 * dims))
        chosen = windows.permute(order)
    else:
        positions = positions.to(inputs.device)
        sample = torch.arange(batch, device=inputs.device)[:, None].expand_as(positions)
        place = torch.unravel_index(positions, space)
        # The channel axis stays a slice between the index tensors, so the indexed axes come first.
        chosen = windows[(sample, slice(None), *place)]
    rows = chosen.reshape(-1, geometry.groups, (channels // geometry.groups) * prod(kernel))
    return rows.transpose(0, 1)


def responses_at(responses: Tensor, geometry: Geometry, positions: Tensor | None = None) -> Tensor:
    """A layer's responses in the order of `patches`, (samples * positions, out)."""
    if geometry.dims == 0:
        batch = responses.shape[0] if responses.dim() > 1 else 1
        return _at(responses.reshape(batch, -1, responses.shape[-1]), positions)
    if responses.dim() == geometry.dims + 1:
        responses = responses[None]
    return _at(responses.flatten(2).transpose(1, 2), positions)


def _at(rows: Tensor, positions: Tensor | None) -> Tensor:
    """Rows (samples, places, features) at the positions (samples, count), flattened."""
    if positions is not None:
        sample = torch.arange(rows.shape[0], device=rows.device)[:, None]
        rows = rows[sample, positions.to(rows.device)]
    return rows.reshape(-1, rows.shape[-1])


def _padded(inputs: Tensor, kernel: tuple[int, ...], geometry: Geometry) -> Tensor:
    """The input on which the kernel slides with stride 1 (transposed) or its own stride, without padding."""
    sides: list[int] = []
    if geometry.transposed:
        inputs = _spread(inputs, geometry.stride)
        settings = zip(kernel, geometry.padding, geometry.dilation, geometry.output_padding, strict=True)
        for size, pad, dilation, extra in settings:
            edge = dilation * (size - 1) - int(pad)
            sides = [edge, edge + extra, *sides]
    elif isinstance(geometry.padding, str):
        for size, dilation in zip(kernel, geometry.dilation, strict=True):
            total = dilation * (size - 1) if geometry.padding == "same" else 0
            sides = [total // 2, total - total // 2, *sides]
    else:
        for pad in geometry.padding:
            sides = [pad, pad, *sides]
    return F.pad(inputs, sides) if any(sides) else inputs


def _spread(inputs: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Put stride - 1 zeros between the entries."""
    if all(step == 1 for step in stride):
        return inputs
    space = [(size - 1) * step + 1 for size, step in zip(inputs.shape[2:], stride, strict=True)]
    wide = inputs.new_zeros(*inputs.shape[:2], *space)
    wide[(slice(None), slice(None), *(slice(None, None, step) for step in stride))] = inputs
    return wide


def _windows(inputs: Tensor, kernel: tuple[int, ...], geometry: Geometry) -> Tensor:
    """Sliding windows as a view, (batch, channels, *out, *kernel)."""
    stride = (1,) * geometry.dims if geometry.transposed else geometry.stride
    for axis, (size, step, dilation) in enumerate(zip(kernel, stride, geometry.dilation, strict=True)):
        inputs = inputs.unfold(2 + axis, dilation * (size - 1) + 1, step)[..., ::dilation]
    return inputs
