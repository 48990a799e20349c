"""What a checkpoint belongs to: the model, the data and the recipe, as names and digests that can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nettrim.checkpoint import digest_tensors
from nettrim.models.base import Network
from nettrim.recipe import Recipe

_SHORT = 16  # hexadecimal digits that tell tensors of one name apart


def identity(
    network: Network, batches: Sequence[object], data: Mapping[str, Any], recipe: Recipe
) -> dict[str, dict[str, Any]]:
    """Of a network before it is trimmed, and of data as plain values, digests among them.

    The network's tensors and operations, and, for what these do not show, the norm of its answers to all `batches`.
    """
    model: dict[str, Any] = {
        name: digest_tensors({name: tensor})[:_SHORT] for name, tensor in network.state().items()
    }
    model["operations"] = network.operations[:_SHORT]
    model["answers"] = float(torch.linalg.vector_norm(network.outputs(batches), dtype=torch.float64))
    for layer in network.layers:
        model[f"layer {layer.name}"] = f"{layer.kind} {layer.shape} {layer.activation}"
    return {"model": model, "data": dict(data), "recipe": _options(recipe)}


def _options(recipe: Recipe) -> dict[str, Any]:
    """Every option, and digests of per-entry costs."""
    options = recipe.to_dict()
    penalties = recipe.penalty if isinstance(recipe.penalty, Mapping) else {"": recipe.penalty}
    for name, penalty in penalties.items():
        for key, value in vars(penalty).items():
            if isinstance(value, Tensor) and value.ndim:
                options[f"penalty {name} {key}".replace("  ", " ")] = digest_tensors({key: value})[:_SHORT]
    return options
