"""A layer as one matrix: bias as a column of ones, convolution groups joined, the layer's own dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nettrim.models.base import Layer


def preactivations(inputs: Tensor, weight: Tensor, offset: Tensor | None) -> Tensor:
    """inputs @ weight.T + offset in float64, (samples, out)."""
    z = inputs.to(torch.float64) @ weight.to(inputs.device, torch.float64).T
    return z if offset is None else z + offset


def augmented(weight: Tensor, bias: Tensor | None) -> Tensor:
    """The weight with the bias, if any, as its last column."""
    return weight if bias is None else torch.cat([weight, bias[:, None]], dim=1)


def with_ones(inputs: Tensor) -> Tensor:
    """The inputs with a last column of ones, which the bias multiplies."""
    return torch.cat([inputs, inputs.new_ones(inputs.shape[0], 1)], dim=1)


def cast_weight(layer: Layer, weight: Tensor) -> Tensor:
    """A weight as the network will keep it: whatever is reported is measured on that."""
    return weight.to(layer.dtype or layer.weight.dtype).to(layer.weight.dtype)


def join_parts(layer: Layer, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Weights and bias of a layer from its pieces' weights, in the layer's dtype and on its device."""
    like = layer.weight
    whole = torch.cat([part.to(like) for part in parts])
    if layer.bias is None:
        return whole.contiguous(), None
    return whole[:, :-1].contiguous(), whole[:, -1].contiguous()
