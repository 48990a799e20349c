"""A shrinking plan carried out on a module: the same classes with smaller layers, and back from files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nettrim.errors import ModelError, should
from nettrim.models.folding import give_bias
from nettrim.models.running import deep_copy
from nettrim.models.shrink_channels import Kept
from nettrim.models.state import replay, restore

FORMAT = 1


class IndexSelect(nn.Module):
    """Picks some entries along one dimension: the inputs that a shrunk first layer still reads."""

    columns: Tensor

    def __init__(self, dim: int, columns: Sequence[int]) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("columns", torch.tensor(list(columns), dtype=torch.int64))

    def forward(self, inputs: Tensor) -> Tensor:
        """The picked entries."""
        return inputs.index_select(self.dim, self.columns)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"dim={self.dim}, columns={len(self.columns)}"


def restructure(module: nn.Module, plan: Mapping[str, Any]) -> nn.Module:
    """Cut a module's layers as a plan says, in place; returns the module (another one when it was a single layer).

    Weights are cut, constants are not folded: their values come from `settle` or from a file.
    """
    for name, entry in plan["layers"].items():
        _cut_layer(module.get_submodule(name), entry)
    for name, kept in plan["norms"].items():
        _cut_norm(module.get_submodule(name), torch.tensor(kept))
    for name, entry in plan["layers"].items():
        if entry["gather"]:
            module = _gather_first(module, name, entry["columns"])
    return module


def settle(layer: nn.Module, kept: Kept) -> None:
    """Fold what the removed constants gave into a cut layer's bias, and silence rows that only hold a place."""
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    shift = torch.from_numpy(kept.shift[kept.rows]).to(weight.device)
    bias = shift if layer.bias is None else shift + layer.bias.detach().double()  # type: ignore[operator]
    places = torch.isin(torch.from_numpy(kept.rows), torch.from_numpy(kept.held)).to(weight.device)
    bias = torch.where(places, torch.from_numpy(kept.level[kept.rows]).to(weight.device), bias)
    with torch.no_grad():
        weight[places] = 0
    if layer.bias is not None or bool(bias.any()):
        give_bias(layer, bias)


def load_shrunk(
    model: nn.Module, tensors: Mapping[str, Tensor], plan: Mapping[str, Any], structure: Mapping[str, Any] | None = None
) -> nn.Module:
    """A shrunk network from its files: a copy of `model` cut by `plan` (`Shrunk.plan`), with the tensors put in.

    `tensors` are what `nettrim.models.state.state_of(shrunk.module)` gave; `structure` is the plan of a trim that
    came before (`Trimmed.plan`: BatchNorm folded away). Raises ModelError when `model` does not fit.
    """
    module = deep_copy(model)
    try:
        if not isinstance(plan, Mapping):
            raise ModelError(should("plan", "a dictionary as `Shrunk.plan` is", f"a {type(plan).__name__}"))
        if plan.get("format") != FORMAT:
            raise ModelError(should("plan", f"in format {FORMAT}", repr(plan.get("format"))))
        replay(module, structure or {})
        module = restructure(module, plan)
    except (AttributeError, ValueError, IndexError, KeyError, RuntimeError, TypeError) as error:
        if isinstance(error, ModelError):
            raise
        got = f"another one, or a damaged plan: {type(error).__name__}: {error}"
        raise ModelError(should("model", "the one that was shrunk", got)) from None
    restore(module, tensors)
    return module


def layer_entry(kept: Kept, *, bias: bool) -> dict[str, Any]:
    """A layer's line in the plan, of JSON's types."""
    rows, columns = kept.rows.tolist(), kept.columns.tolist()
    return {"rows": rows, "columns": columns, "groups": kept.groups, "bias": bias, "gather": kept.gather}


def _cut_layer(layer: nn.Module, entry: Mapping[str, Any]) -> None:
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    rows, columns = torch.tensor(entry["rows"]), torch.tensor(entry["columns"])
    groups = int(getattr(layer, "groups", 1))
    inside = weight.shape[1]  # inputs a group
    if groups > 1 and inside == 1:
        cut = weight.detach()[rows]
    else:
        mine = columns.reshape(groups, -1) - torch.arange(groups)[:, None] * inside  # (groups, kept of each)
        group = rows // (weight.shape[0] // groups)
        cut = weight.detach()[rows[:, None], mine[group]]
    layer.weight = nn.Parameter(cut.clone(), requires_grad=weight.requires_grad)
    if isinstance(layer.bias, nn.Parameter):
        layer.bias = nn.Parameter(layer.bias.detach()[rows].clone(), requires_grad=layer.bias.requires_grad)
    elif entry["bias"]:
        give_bias(layer, torch.zeros(len(rows)))
    word = "features" if isinstance(layer, nn.Linear) else "channels"
    vars(layer).update({f"in_{word}": len(columns), f"out_{word}": len(rows)})
    if word == "channels":
        vars(layer)["groups"] = int(entry["groups"])


def _cut_norm(norm: nn.Module, kept: Tensor) -> None:
    vars(norm)["num_features"] = len(kept)
    for name, parameter in norm.named_parameters(recurse=False):
        setattr(norm, name, nn.Parameter(parameter.detach()[kept].clone(), requires_grad=parameter.requires_grad))
    for name, buffer in norm.named_buffers(recurse=False):
        if buffer.dim():
            setattr(norm, name, buffer[kept].clone())


def _gather_first(module: nn.Module, name: str, columns: Sequence[int]) -> nn.Module:
    layer = module.get_submodule(name)
    dim = -1 if isinstance(layer, nn.Linear) else 1 - layer.weight.dim()  # type: ignore[operator]
    select = IndexSelect(dim, columns).to(layer.weight.device)  # type: ignore[arg-type]
    pair = nn.Sequential(select, layer)
    pair.training = layer.training
    if layer is module:
        return pair
    for path, part in list(module.named_modules(remove_duplicate=False)):
        if part is layer:
            parent, _, attribute = path.rpartition(".")
            setattr(module.get_submodule(parent), attribute, pair)
    return module
