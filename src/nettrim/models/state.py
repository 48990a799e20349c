"""A module's tensors as a flat dictionary for safetensors, and back into a fresh model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nettrim.checkpoint import digest_tensors
from nettrim.errors import ModelError, near, should
from nettrim.models.folding import fold, give_bias
from nettrim.models.running import deep_copy


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers on the CPU, contiguous; tensors with several names under the first."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in _distinct(module).items()}


def model_digest(module: nn.Module) -> str:
    """SHA-256 of a module's parameters and persistent buffers: names, types, shapes and bytes."""
    return digest_tensors(_distinct(module))


def restore(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy a state into a module of the same structure. Raises ModelError when names or shapes differ."""
    own = _distinct(module)
    for name in tensors:
        if name not in own:
            raise ModelError(should("model", "the one that was trimmed", f"one without {name!r}", near(name, own)))
    for name, tensor in own.items():
        if name not in tensors:
            raise ModelError(should("model", "the one that was trimmed", f"one with {name!r} besides"))
        if tensor.shape != tensors[name].shape:
            got = f"{tuple(tensor.shape)} for {name!r} where {tuple(tensors[name].shape)} was saved"
            raise ModelError(should("model", "the one that was trimmed", got))
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], plan: Mapping[str, Any]) -> nn.Module:
    """A copy of the user's model with a trimmed network's structure and state.

    `plan` is what `TorchNetwork.plan` gave, `tensors` what `state` gave. Raises ModelError when the model is
    not the one that was trimmed.
    """
    module = deep_copy(model)
    try:
        replay(module, plan)
    except (AttributeError, ValueError) as error:
        raise ModelError(should("model", "the one that was trimmed", f"one without its layers: {error}")) from None
    restore(module, tensors)
    return module


def replay(module: nn.Module, plan: Mapping[str, Any]) -> None:
    """Change a module's structure in place as a plan says: fold norms, and add biases of zero where there are none.

    Raises AttributeError or ValueError where the module does not fit.
    """
    for layer, norm in plan.get("folded", ()):
        fold(module, layer, norm)
    for layer in plan.get("biases", ()):
        owner = module.get_submodule(layer)
        if owner.bias is None:
            give_bias(owner, torch.zeros(_outputs(owner)))


def _outputs(layer: nn.Module) -> int:
    return int(getattr(layer, "out_features", None) or layer.out_channels)  # type: ignore[arg-type]


def _distinct(module: nn.Module) -> dict[str, Tensor]:
    """The module's own tensors, those that are one and the same once."""
    seen: set[tuple[object, ...]] = set()
    found: dict[str, Tensor] = {}
    for name, tensor in module.state_dict().items():
        if not isinstance(tensor, Tensor):
            continue
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else (name,)
        if key not in seen:
            seen.add(key)
            found[name] = tensor
    return found
