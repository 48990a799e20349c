"""What given weights do to a layer's responses, in float64, streamed over the samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nettrim.layerwise.matrices import augmented, preactivations, row_chunks, with_ones
from nettrim.layerwise.task import LayerTask
from nettrim.models.base import Layer
from nettrim.programs import get_activation


@dataclass(frozen=True)
class Measured:
    """How far weights are from the original responses: absolute Frobenius norms, float64."""

    discrepancy: float  # ||sigma(z) - Y||
    distance: float  # of z to the preimages of Y
    norm: float  # ||Y||
    row_distances: tuple[float, ...]  # one a row


def measure(task: LayerTask, weight: Tensor, bias: Tensor | None) -> Measured:
    """Discrepancy and distance of any weights at the task's inputs, in float64, streaming over samples."""
    layer = task.layer
    activation = get_activation(layer.activation)
    count = layer.weight.shape[0] // layer.groups
    rows: list[Tensor] = []
    totals = torch.zeros(2, dtype=torch.float64)
    for group in range(layer.groups):
        part = slice(group * count, (group + 1) * count)
        dense = augmented(layer.weight[part], None if layer.bias is None else layer.bias[part])
        new = augmented(weight[part], None if bias is None else bias[part])
        squares = torch.zeros(count, dtype=torch.float64)
        for chunk in row_chunks(task.inputs.shape[1], layer.weight.shape[1] + 2 * count):
            inputs = task.inputs[group, chunk]
            inputs = with_ones(inputs) if layer.bias is not None else inputs
            offset = None if task.offset is None else task.offset[chunk, part]
            z = preactivations(inputs, new, offset)
            if task.responses is None:
                responses = activation.apply(preactivations(inputs, dense, offset))
            else:
                responses = task.responses[chunk, part].to(torch.float64)
            lower, upper = activation.preimage(responses)
            squares += (z - z.clamp(lower, upper)).square().sum(dim=0).cpu()
            totals[0] += (activation.apply(z) - responses).square().sum().cpu()
            totals[1] += responses.square().sum().cpu()
        rows.append(squares)
    squares = torch.cat(rows)
    return Measured(
        discrepancy=math.sqrt(float(totals[0])),
        distance=math.sqrt(float(squares.sum())),
        norm=math.sqrt(float(totals[1])),
        row_distances=tuple(squares.sqrt().tolist()),
    )


def original_responses(layer: Layer, preactivations: Tensor) -> Tensor:
    """sigma of captured pre-activations, (samples, out) float64."""
    return get_activation(layer.activation).apply(preactivations.to(torch.float64))
