"""Blocks put together again: what was measured of each adds up, so nothing is measured twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nettrim.layerwise import Backing, LayerOutcome, Totals, record
from nettrim.models.base import Layer
from nettrim.recipe import Recipe


def merge(layer: Layer, recipe: Recipe, parts: Sequence[LayerOutcome]) -> LayerOutcome:
    """The outcome of a layer whose blocks, in order, are `parts`."""
    if len(parts) == 1:
        return parts[0]
    weight = torch.cat([part.weight for part in parts])
    totals = Totals.over([part.totals for part in parts])
    result = record(layer, parts[0].result.scheme, recipe.tolerance, totals, weight)
    neurons: Counter[str] = Counter()
    for part in parts:
        neurons.update(part.result.neurons)
    backing = [part.backing[0] for part in parts]
    return LayerOutcome(
        result=replace(
            result,
            neurons=dict(neurons),
            iterations=max(part.result.iterations for part in parts),
            seconds=sum(part.result.seconds for part in parts),
        ),
        weight=weight,
        bias=_joined([part.bias for part in parts], 0),
        backing=(Backing(torch.cat([part.weight for part in backing]), _joined([part.dual for part in backing], 1)),),
        totals=totals,
        samples=parts[0].samples,
        moved=parts[0].moved,
        kappa=parts[0].kappa,
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def _joined(tensors: Sequence[Tensor | None], dim: int) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(present, dim=dim) if len(present) == len(tensors) else None
