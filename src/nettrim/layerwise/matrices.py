"""A layer as one matrix: bias as a column of ones, convolution groups joined, the layer's own dtype."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from nettrim.models.base import Layer

_CHUNK = 1 << 20  # elements of a float64 temporary, 8 MB


def row_chunks(rows: int, width: int) -> Iterator[slice]:
    """Slices of so many rows that a float64 copy of `width` columns stays small, however many rows there are."""
    step = max(1, _CHUNK // max(1, width))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def preactivations(inputs: Tensor, weight: Tensor, offset: Tensor | None) -> Tensor:
    """inputs @ weight.T + offset in float64, (samples, out); the inputs, which may be on disk, are read in chunks."""
    transposed = weight.to(inputs.device, torch.float64).T
    z = inputs.new_empty(len(inputs), len(weight), dtype=torch.float64)
    for chunk in row_chunks(*inputs.shape):
        z[chunk] = inputs[chunk].to(torch.float64) @ transposed
    return z if offset is None else z.add_(offset)


def augmented(weight: Tensor, bias: Tensor | None) -> Tensor:
    """The weight with the bias, if any, as its last column."""
    return weight if bias is None else torch.cat([weight, bias[:, None]], dim=1)


def with_ones(inputs: Tensor) -> Tensor:
    """The inputs (samples, in) with a last column of ones, which the bias multiplies.

    Where they were captured with such a column behind each row, that memory is used: inputs on disk stay there.
    """
    rows, width = inputs.shape
    end = inputs.storage_offset() + rows * (width + 1)
    if inputs.stride() == (width + 1, 1) and inputs.untyped_storage().nbytes() >= end * inputs.element_size():
        whole = inputs.as_strided((rows, width + 1), (width + 1, 1))
        if bool((whole[:, -1] == 1).all()):
            return whole
    return torch.cat([inputs, inputs.new_ones(rows, 1)], dim=1)


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
