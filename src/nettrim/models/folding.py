"""Evaluation-mode BatchNorm folded into the layer before it: the same function with one layer less."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nettrim.models.batches import Batch
from nettrim.models.match import Use, find_uses
from nettrim.models.running import deep_copy, evaluating
from nettrim.models.trace import Node, Trace, record
from nettrim.models.weights import Weight, is_standard

_FORWARDS = (nn.modules.batchnorm._BatchNorm.forward, nn.SyncBatchNorm.forward)


def fold_all(
    module: nn.Module, trace: Trace, example: Batch, weights: Sequence[Weight], seed: int
) -> tuple[nn.Module, Trace, dict[str, list[Any]]]:
    """Fold what can be folded among the given weights: the module, its trace, and the plan of what was done.

    Where the outputs on the example would change, or the model's own code needs a norm that was removed,
    nothing is folded.
    """
    plan: dict[str, list[Any]] = {"folded": [], "biases": []}
    pairs = foldable(module, trace, weights, find_uses(trace))
    if not pairs:
        return module, trace, plan
    folded = deep_copy(module)
    for layer, norm in pairs:
        if folded.get_submodule(layer).bias is None:
            plan["biases"].append(layer)
        fold(folded, layer, norm)
        plan["folded"].append([layer, norm])
    try:
        with evaluating(folded, seed):
            after = record(folded, example.args, example.kwargs, keep=True)
    except Exception:
        return module, trace, {"folded": [], "biases": []}
    if not _close(after.result, trace.result):
        return module, trace, {"folded": [], "biases": []}
    return folded, after, plan


def foldable(
    module: nn.Module, trace: Trace, weights: Iterable[Weight], uses: Mapping[str, tuple[Use, ...]]
) -> list[tuple[str, str]]:
    """Pairs (layer, BatchNorm) of module names where the norm alone reads the layer's output, each used once."""
    norms = [(node, _norm_of(module, node)) for node in trace.nodes if node.name == "batch_norm"]
    names = [name for _, name in norms]
    pairs = []
    for weight in weights:
        found = uses.get(weight.parameter, ())
        if len(found) != 1 or len(weight.candidate.names) != 1 or not is_standard(module.get_submodule(weight.owner)):
            continue
        node = trace.nodes[found[0].node]
        if trace.raw_uses.get(weight.parameter) or len(node.outputs) != 1:
            continue
        readers = trace.users(node.outputs[0])
        after = [name for norm, name in norms if (norm.index,) == readers and norm.inputs[0] == node.outputs[0]]
        # BatchNorm works on axis 1; a Linear's features are there only for plain (samples, features).
        flat = found[0].geometry.dims > 0 or (node.call is not None and node.call.out.dim() == 2)
        if len(after) == 1 and after[0] is not None and names.count(after[0]) == 1 and flat:
            pairs.append((weight.owner, after[0]))
    return pairs


def fold(module: nn.Module, layer: str, norm: str) -> None:
    """Fold one BatchNorm into one layer in place; the norm becomes an identity.

    With scale s = gamma / sqrt(var + eps) the weight's rows are multiplied by s and the bias becomes
    beta + (bias - mean) s. Computed in float64.
    """
    target, batch_norm = module.get_submodule(layer), module.get_submodule(norm)
    if not is_batch_norm(batch_norm) or batch_norm.running_mean is None or batch_norm.running_var is None:
        raise ValueError(f"{norm!r} holds no statistics")
    weight, bias = target.weight, target.bias
    assert isinstance(weight, nn.Parameter)
    mean, variance = batch_norm.running_mean.double(), batch_norm.running_var.double()
    scale = torch.rsqrt(variance + batch_norm.eps)
    if batch_norm.weight is not None:
        scale = scale * batch_norm.weight.detach().double()
    shift = (bias.detach().double() if isinstance(bias, Tensor) else torch.zeros_like(mean)) - mean
    shift = shift * scale
    if batch_norm.bias is not None:
        shift = shift + batch_norm.bias.detach().double()
    with torch.no_grad():
        weight.copy_(_scaled(weight.detach().double(), scale, target))
    give_bias(target, shift)
    for path, part in list(module.named_modules(remove_duplicate=False)):
        if part is batch_norm:
            parent, _, attribute = path.rpartition(".")
            identity = nn.Identity()
            identity.train(batch_norm.training)
            setattr(module.get_submodule(parent), attribute, identity)


def is_batch_norm(module: nn.Module) -> TypeGuard[nn.modules.batchnorm._BatchNorm]:
    """Whether a module computes what BatchNorm does: one of PyTorch's own, or of a class that keeps their forward."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and type(module).forward in _FORWARDS


def give_bias(layer: nn.Module, bias: Tensor) -> None:
    """Set a layer's bias, creating the parameter where it has none."""
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    value = bias.detach().to(weight.device, weight.dtype)
    if isinstance(layer.bias, nn.Parameter):
        with torch.no_grad():
            layer.bias.copy_(value)
    else:
        layer.bias = nn.Parameter(value.clone(), requires_grad=weight.requires_grad)


def _scaled(weight: Tensor, scale: Tensor, layer: nn.Module) -> Tensor:
    """The weight with each output multiplied by its scale."""
    if not getattr(layer, "transposed", False):
        return weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
    groups = int(getattr(layer, "groups", 1))  # (in, out / groups, *kernel): the group decides the scales
    parts = weight.reshape(groups, -1, *weight.shape[1:])
    return (parts * scale.reshape(groups, 1, -1, *[1] * (weight.dim() - 2))).reshape(weight.shape)


def _norm_of(module: nn.Module, node: Node) -> str | None:
    """The module behind a `batch_norm` call in evaluation mode with statistics, None for any other."""
    call = node.call
    if call is None or call.argument(5, "training", False):
        return None
    mean = call.argument(1, "running_mean")
    for name, part in module.named_modules():
        if is_batch_norm(part) and mean is not None and part.running_mean is mean:
            return name
    return None


def _close(one: Any, other: Any) -> bool:
    pairs = list(zip(tree_leaves(one), tree_leaves(other), strict=True))
    for a, b in pairs:
        if isinstance(a, Tensor) and a.is_floating_point():
            tolerance = {torch.float64: 1e-9, torch.float32: 1e-4}.get(a.dtype, 5e-2)
            a, b = a.double(), b.double()
            if a.shape != b.shape or not bool((a - b).abs().max() <= tolerance * (b.abs().max() + 1e-6)):
                return False
    return True
