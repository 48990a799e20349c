"""The weights of a module, by the names a user knows, and why some of them cannot be trimmed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from nettrim.errors import ModelError, should
from nettrim.models.match import Addition, Use, without_own_bias
from nettrim.models.operations import Geometry
from nettrim.models.selection import Candidate
from nettrim.models.trace import Trace, memory

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_STANDARD = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Weight:
    """A parameter of at least two dimensions and its names."""

    name: str  # of the layer
    parameter: str
    owner: str  # path of the module that holds it
    candidate: Candidate


@dataclass(frozen=True)
class Trimmable:
    """A weight that can be trimmed and the places where it is applied."""

    name: str
    parameter: str
    owner: str
    geometry: Geometry
    activation: str
    uses: tuple[Use, ...]
    bias: str | None  # the parameter that is this layer's own bias
    fixed_bias: bool  # biases that are not its own alone stay in the offset
    may_gain_bias: bool


def weights_of(module: nn.Module) -> list[Weight]:
    """Every weight of a module in the order of registration; shared ones once, under all their names."""
    paths: dict[int, list[str]] = {}
    parameters: dict[int, Tensor] = {}
    for path, parameter in module.named_parameters(remove_duplicate=False):
        if parameter.dim() >= 2 and parameter.is_floating_point():
            paths.setdefault(id(parameter), []).append(path)
            parameters[id(parameter)] = parameter
    found: dict[str, Weight] = {}
    for key, names in paths.items():
        owner_path = names[0].rpartition(".")[0]
        owner = module.get_submodule(owner_path)
        if isinstance(owner, _NORMS):
            continue
        classes = {cls.__name__ for path in names for cls in _classes(module, path)}
        candidate = Candidate(tuple(dict.fromkeys(map(layer_name, names))), tuple(sorted(classes)))
        weight = Weight(candidate.names[0], names[0], owner_path, candidate)
        known = found.get(weight.name)
        if known is None or parameters[key].numel() > module.get_parameter(known.parameter).numel():
            found[weight.name] = weight
    return list(found.values())


def layer_name(parameter: str) -> str:
    """The name of the layer that a parameter is the weight of: its module's, or the parameter's own."""
    path, dot, attribute = parameter.partition(".parametrizations.")
    if dot:
        return path if attribute.startswith("weight.") else f"{path}.{attribute.partition('.')[0]}"
    path, _, attribute = parameter.rpartition(".")
    return path if path and attribute in ("weight", "weight_v", "weight_orig") else parameter


def check_finite(module: nn.Module) -> None:
    """Raise ModelError, naming the layer, when a parameter or buffer holds NaN or infinity."""
    for name, parameter in module.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ModelError(should("model", "initialised", f"a lazy layer {layer_name(name)!r}", "Run it once first."))
        if parameter.is_floating_point() and not torch.isfinite(parameter).all():
            raise ModelError(should("model", "a network with finite weights", f"NaN or infinity in {name!r}"))
    for name, module_ in module.named_modules():
        if isinstance(module_, nn.modules.batchnorm._NormBase) and module_.running_mean is not None:
            statistics = (module_.running_mean, module_.running_var)
            if not all(s is None or bool(torch.isfinite(s).all()) for s in statistics):
                raise ModelError(should("model", "a network with finite statistics", f"NaN or infinity in {name!r}"))


def why_not(module: nn.Module, weight: Weight, uses: tuple[Use, ...], trace: Trace) -> str | None:
    """The reason why a weight cannot be trimmed, None when it can."""
    owner = module.get_submodule(weight.owner)
    tensor = module.get_parameter(weight.parameter)
    read = ", ".join(f"`{name}`" for name in trace.raw_uses.get(weight.parameter, ()))
    if isinstance(owner, _RECURRENT):
        return "recurrent layers are not trimmed"
    if isinstance(owner, nn.Embedding | nn.EmbeddingBag) and not uses:
        return "an embedding looks rows up and multiplies nothing"
    if ".parametrizations." in weight.parameter or hasattr(owner, "weight_v") or hasattr(owner, "weight_orig"):
        return "its weight is computed from other parameters in every pass; remove the parametrization first"
    if tensor.numel() == 0:
        return "it has no entries"
    if not uses:
        return f"read by {read}, not as the weight of a layer" if read else "not used on the example batch"
    if read:
        return f"its weight is also read by {read}"
    if len({use.geometry for use in uses}) > 1:
        return "applied with different settings (stride, padding, ...) at its uses"
    others = [n for n, p in module.named_parameters() if p is not tensor and memory(p) == memory(tensor) != 0]
    if others:
        return f"its memory is shared with {others[0]!r}"
    return None


def trimmable(
    module: nn.Module, weight: Weight, uses: tuple[Use, ...], everything: dict[str, tuple[Use, ...]], trace: Trace
) -> Trimmable:
    """Settle what a weight's layer is: its activation, and whether the bias is its own."""
    biases = {use.bias for use in uses}
    bias = next(iter(biases)) if len(biases) == 1 else None
    elsewhere = {use.bias for name, found in everything.items() if name != weight.parameter for use in found}
    by_hand = {addition.node for addition in _by_hand(uses)}
    own = bias is not None and bias not in elsewhere and trace.raw_nodes.get(bias, frozenset()) <= by_hand
    own = own and bias in dict(module.named_parameters())
    if not own and _by_hand(uses):
        uses = tuple(map(without_own_bias, uses))
        biases = {use.bias for use in uses}
    owner = module.get_submodule(weight.owner)
    return Trimmable(
        weight.name,
        weight.parameter,
        weight.owner,
        uses[0].geometry,
        uses[0].activation,
        uses,
        bias if own else None,
        fixed_bias=not own and biases != {None},
        may_gain_bias=biases == {None} and is_standard(owner) and len(weight.candidate.names) == 1,
    )


def _by_hand(uses: Iterable[Use]) -> tuple[Addition, ...]:
    """The sums in which a bias is added to a product."""
    return tuple(addition for use in uses for addition in use.additions if addition.bias)


def with_bias(layer: Trimmable) -> Trimmable:
    """The same layer after it was given a bias of its own."""
    bias = f"{layer.owner}.bias" if layer.owner else "bias"
    uses = tuple(replace(use, bias=bias) for use in layer.uses)
    return replace(layer, bias=bias, uses=uses, may_gain_bias=False)


def is_standard(module: nn.Module) -> bool:
    """Whether a module runs one of PyTorch's own forwards, so that its `bias` is what it adds."""
    return any(isinstance(module, cls) and type(module).forward is cls.forward for cls in _STANDARD)


def _classes(module: nn.Module, parameter: str) -> list[type]:
    """Class names under which a parameter's module may be meant, without the common bases."""
    path = parameter.partition(".parametrizations.")[0] if ".parametrizations." in parameter else ""
    owner = module.get_submodule(path or parameter.rpartition(".")[0])
    skip = (nn.Module, object, nn.modules.conv._ConvNd, nn.modules.conv._ConvTransposeNd)
    return [cls for cls in type(owner).__mro__ if cls not in skip]
