"""What shrinking needs to know of a PyTorch module: its trace read as layers, ties between channels, and ranges.

Every operation is looked up here. One that is not known pins the channels it reads: they stay as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nettrim.models.operations import DROPOUTS, MAX_POOLS, RESHAPES, SAME_LAYOUT, LinearCall, linear_call
from nettrim.models.shrink_channels import Channels
from nettrim.models.shrink_values import (
    Value,
    channel_ids,
    channel_map,
    joined,
    mapped,
    multiplied,
    scaled,
    summed,
    unknown,
    widened,
    with_zero,
)
from nettrim.models.trace import Call, Key, Node, Trace, memory
from nettrim.models.weights import is_standard

_INCREASING = frozenset(
    "relu relu6 sigmoid tanh hardtanh hardsigmoid selu softplus softsign logsigmoid clamp clip clamp_min clamp_max "
    "exp".split()
)
_ELEMENTWISE = _INCREASING | frozenset(
    "leaky_relu elu celu threshold gelu silu mish hardswish tanhshrink abs neg square sqrt erf prelu".split()
)
_ARGUMENTS = {"leaky_relu": 1, "elu": 1, "celu": 1, "clamp_min": 1, "clamp_max": 1, "prelu": 1} | {
    name: 2 for name in ("softplus", "threshold", "hardtanh", "clamp", "clip")
}
_SUMS = {"add": 1.0, "__iadd__": 1.0, "__radd__": 1.0, "sub": -1.0, "__isub__": -1.0}
_PRODUCTS = frozenset({"mul", "__imul__", "__rmul__"})
_AVERAGES = frozenset([f"{kind}avg_pool{d}d" for kind in ("", "adaptive_") for d in (1, 2, 3)])
_OVER_AXES = frozenset({"mean", "sum", "amax", "amin"})
_NUMBERS = frozenset(
    "item tolist numpy __array__ __dlpack__ __bool__ __float__ __int__ __index__ __complex__ __contains__ "
    "is_nonzero equal allclose".split()
)
_SIZED = frozenset({"view", "reshape", "unflatten"})  # may spell out numbers of channels


@dataclass
class Reading:
    """The layers and norms found in a trace."""

    channels: Channels = field(default_factory=Channels)
    layers: dict[str, str] = field(default_factory=dict)  # module -> kind
    norms: dict[str, Value] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)  # module -> why it stays as it is


def numbers_read(trace: Trace) -> tuple[str, ...]:
    """The operations by which the code reads numbers that depend on the network's inputs: limits, sizes, branches.

    What it does with them is not in the trace, and may be something else on other inputs.
    """
    live: set[Key] = set(trace.inputs)
    found = []
    for node in trace.nodes:
        if live.isdisjoint(node.inputs):
            continue
        if node.name in _NUMBERS:
            found.append(node.name)
        live.update(node.outputs)
    return tuple(dict.fromkeys(found))


def read_trace(module: nn.Module, trace: Trace, *, free_sizes: bool) -> Reading:
    """Read a trace. With `free_sizes` a reshape to spelled-out sizes is taken to follow the channels."""
    walk = _Walk(module, trace, free_sizes)
    for node in trace.nodes:
        walk.visit(node)
    walk.finish()
    return walk.reading


class _Walk:
    def __init__(self, module: nn.Module, trace: Trace, free_sizes: bool) -> None:
        self.module, self.trace, self.free_sizes = module, trace, free_sizes
        self.reading = Reading()
        self.channels = self.reading.channels
        self.values: dict[int, Value] = {}
        self.entries: set[int] = set(trace.inputs)
        self.buffers = dict(module.named_buffers())

    def visit(self, node: Node) -> None:
        """Find the result of one operation, or pin what it reads."""
        call = node.call
        assert call is not None
        name = node.name
        plain = name.removesuffix("_") if not name.startswith("__") else name
        leaves = [leaf for leaf in tree_leaves((call.args, call.kwargs)) if isinstance(leaf, Tensor)]
        keys = {id(leaf): key for leaf, key in zip(leaves, node.inputs, strict=False)}
        result: Value | None = None
        if isinstance(call.out, Tensor) and len(node.outputs) == 1:
            result = self._result(node, plain, call, keys)
            first = node.inputs[0] if node.inputs else None
            if first in self.entries and (plain in SAME_LAYOUT or plain in RESHAPES or plain in DROPOUTS):
                self.entries.add(node.outputs[0])
        if result is not None:
            self.values[node.outputs[0]] = result
        else:
            self._pin(node.inputs)

    def finish(self) -> None:
        """What leaves the network, or is read unseen, stays."""
        self._pin(self.trace.outputs)
        self._pin(tuple(self.trace.hidden))

    def _pin(self, keys: tuple[Key, ...]) -> None:
        for key in keys:
            if isinstance(key, int) and key in self.values:
                self.channels.pin(self.values[key].labels)

    def _result(self, node: Node, name: str, call: Call, keys: dict[int, Key]) -> Value | None:
        linear = linear_call(node.name, call.args, call.kwargs)
        if linear is not None:
            return self._layer(node, call, linear, keys)
        if name in ("cat", "concat", "concatenate"):
            return self._joined(call, keys)
        source_tensor = call.argument(0, "input")
        value = self._value(source_tensor, keys)
        if value is None or not isinstance(source_tensor, Tensor) or not isinstance(call.out, Tensor):
            return None
        if not call.out.is_floating_point():
            return None
        if name == "batch_norm":
            return self._norm(call, value, keys)
        if name in _SUMS or name in _PRODUCTS or name == "div":
            return self._combined(name, call, value, keys)
        if name in _ELEMENTWISE:
            computed = any(isinstance(key, int) for key in node.inputs[1:])  # such as a limit taken from the data
            return None if computed else self._elementwise(name, call, value)
        if name in DROPOUTS:
            training = call.argument(2, "training" if "training" in call.kwargs else "train", True)
            return None if training else value
        if name in MAX_POOLS or name in _AVERAGES or name == "pad":
            return self._spatial(name, call, value, source_tensor)
        if name in _OVER_AXES:
            return self._reduced(name, call, value, source_tensor)
        if name in SAME_LAYOUT:
            return value if call.out.shape == source_tensor.shape else None
        if name in RESHAPES and call.out.numel() == source_tensor.numel():
            return self._reshaped(name, call, value, source_tensor)
        return None

    def _value(self, tensor: Any, keys: dict[int, Key]) -> Value | None:
        key = keys.get(id(tensor))
        return self.values.get(key) if isinstance(key, int) else None

    def _layer(self, node: Node, call: Call, linear: LinearCall, keys: dict[int, Key]) -> Value | None:
        weight, bias = keys.get(id(linear.weight)), keys.get(id(linear.bias))
        name = weight.rpartition(".")[0] if isinstance(weight, str) else None
        reason = self._why_not(node, name, weight, bias, linear)
        if name is None or reason is not None:
            if name is not None:
                self.reading.left[name] = reason or ""
            return None
        geometry = linear.geometry
        axis = call.out.dim() - (1 if geometry.dims == 0 else geometry.dims + 1)
        source = self._value(linear.inputs, keys)
        if source is not None and source.axis != axis:
            return None
        key = keys.get(id(linear.inputs))
        if source is None:
            labels = self.channels.fresh(linear.inputs.shape[axis], pinned=True)
            source = unknown(labels, axis, entry=key in self.entries)
        array = linear.weight.detach().double().cpu().numpy()
        shift = np.zeros(len(array)) if linear.bias is None else linear.bias.detach().double().cpu().numpy()
        padded = geometry.padding == "same" or (geometry.padding != "valid" and any(map(bool, geometry.padding)))
        self.reading.layers[name] = geometry.kind
        matrix = array.reshape(*array.shape[:2], -1)
        return self.channels.affine(name, matrix, shift, geometry.groups, source, axis, padded=padded)

    def _why_not(self, node: Node, name: str | None, weight: Key, bias: Key, linear: LinearCall) -> str | None:
        """Why a layer is left as it is; None when it may shrink."""
        if name is None or not isinstance(weight, str):
            return "its weight is not a parameter"
        owner = self.module.get_submodule(name)
        if linear.geometry.transposed:
            return "transposed convolutions are left as they are"
        if not is_standard(owner) or getattr(owner, "weight", None) is not linear.weight:
            return "it is not one of PyTorch's own layers"
        if linear.bias is not None and bias != (f"{name}.bias" if name else "bias"):
            return "its bias is not its own"
        mine = [other.index for other in self.trace.nodes if weight in other.inputs or (bias and bias in other.inputs)]
        if mine != [node.index] or self.trace.raw_uses.get(weight) or self.trace.raw_uses.get(str(bias)):
            return "its weight is used at several places"
        holders = {id(part) for part in self.module.modules() for p in part._parameters.values() if _same(p, linear)}
        if len(holders) > 1:
            return "its weight is shared"
        if owner._forward_pre_hooks or owner._forward_hooks:
            return "it has hooks"
        return None

    def _norm(self, call: Call, value: Value, keys: dict[int, Key]) -> Value | None:
        key = keys.get(id(call.argument(1, "running_mean")))
        name = key.rpartition(".")[0] if isinstance(key, str) else None
        if name is None or call.argument(5, "training", False) or value.axis != 1 or name in self.reading.norms:
            return None
        owner = self.module.get_submodule(name)
        uses = [node for node in self.trace.nodes if key in node.inputs]
        if not isinstance(owner, nn.modules.batchnorm._BatchNorm) or len(uses) != 1:
            return None
        mean, variance = call.argument(1, "running_mean"), call.argument(2, "running_var")
        weight, bias = call.argument(3, "weight"), call.argument(4, "bias")
        if weight is not owner.weight or bias is not owner.bias or variance is not owner.running_var:
            return None
        scale = torch.rsqrt(variance.double() + call.argument(7, "eps", 1e-5))
        if weight is not None:
            scale = scale * weight.detach().double()
        shift = -mean.double() * scale + (0 if bias is None else bias.detach().double())
        result = scaled(value, scale.cpu().numpy(), shift.cpu().numpy())
        self.reading.norms[name] = result
        return result

    def _elementwise(self, name: str, call: Call, value: Value) -> Value | None:
        function = getattr(F, name) if hasattr(F, name) else getattr(torch, name)
        rest = _doubles(call.args[1 : 1 + _ARGUMENTS.get(name, 0)])  # what may follow is `inplace`
        kwargs = {key: entry for key, entry in call.kwargs.items() if key not in ("inplace", "input", "out")}
        if any(isinstance(entry, Tensor) and entry.numel() != 1 for entry in (*rest, *kwargs.values())):
            return None
        monotone = name in _INCREASING
        if name == "leaky_relu":
            monotone = call.argument(1, "negative_slope", 0.01) >= 0

        def evaluate(ends: np.ndarray) -> np.ndarray:
            return function(torch.from_numpy(np.array(ends)), *rest, **kwargs).numpy()

        return mapped(value, evaluate, monotone=monotone)

    def _combined(self, name: str, call: Call, value: Value, keys: dict[int, Key]) -> Value | None:
        """A sum, difference or product with a number or with another value, channel by channel."""
        one, other = call.argument(0, "input"), call.argument(1, "other")
        sign = _SUMS.get(name, 1.0) * float(call.argument(2, "alpha", 1) if name in _SUMS else 1)
        if isinstance(other, int | float) and not isinstance(other, bool):
            count = len(value.labels)
            if name == "div":
                scale, shift = (1 / other if other else math.nan), 0.0
            elif name in _PRODUCTS:
                scale, shift = float(other), 0.0
            else:
                scale, shift = 1.0, sign * other
            return scaled(value, np.full(count, scale), np.full(count, shift))
        partner = self._value(other, keys)
        if partner is None or not isinstance(other, Tensor) or name == "div" or call.kwargs.get("rounding_mode"):
            return None
        same = call.out.dim() - one.dim() + value.axis == call.out.dim() - other.dim() + partner.axis
        if not same or one.shape[value.axis] != other.shape[partner.axis] or len(value.labels) < 2:
            return None
        self.channels.tie(value.labels, partner.labels)
        result = multiplied(value, partner) if name in _PRODUCTS else summed(value, partner, sign)
        return replace(result, axis=call.out.dim() - one.dim() + value.axis)

    def _joined(self, call: Call, keys: dict[int, Key]) -> Value | None:
        tensors = call.argument(0, "tensors")
        axis = call.argument(1, "dim", 0) % call.out.dim()
        parts = []
        for tensor in tensors:
            value = self._value(tensor, keys)
            if value is None and tensor.dim() == call.out.dim():
                value = unknown(self.channels.fresh(tensor.shape[axis], pinned=True), axis)
            if value is None or value.axis != axis:
                return None
            parts.append(value)
        return self.channels.watch(joined(parts))

    def _spatial(self, name: str, call: Call, value: Value, tensor: Tensor) -> Value | None:
        """Pools and pads, which leave the channels alone."""
        if name == "pad":
            widths = call.argument(1, "pad")
            if value.axis >= tensor.dim() - len(widths) // 2:
                return None
            fill = call.argument(3, "value") or 0.0
            mode = call.argument(2, "mode", "constant")
            if mode != "constant":
                return value
            if fill == 0:
                return replace(with_zero(value), entry=False)
            return value.ranged(np.full_like(value.low, -np.inf), np.full_like(value.high, np.inf))
        dims = int(name[-2])
        if value.axis >= tensor.dim() - dims:
            return None
        if name in MAX_POOLS or name.startswith("adaptive"):
            return value
        padding, divisor = call.argument(3, "padding", 0), call.argument(6, "divisor_override")
        padded = padding if isinstance(padding, int) else any(padding)
        if divisor:
            return widened(value)
        return with_zero(value) if padded else value

    def _reduced(self, name: str, call: Call, value: Value, tensor: Tensor) -> Value | None:
        dims = call.argument(1, "dim")
        keep = bool(call.argument(2, "keepdim", False))
        if dims is None or call.kwargs.get("dtype") is not None:
            return None
        dims = {d % tensor.dim() for d in ([dims] if isinstance(dims, int) else dims)}
        if value.axis in dims or not dims:
            return None
        axis = value.axis if keep else value.axis - sum(d < value.axis for d in dims)
        return replace(widened(value) if name == "sum" else value, axis=axis)

    def _reshaped(self, name: str, call: Call, value: Value, tensor: Tensor) -> Value | None:
        if name in _SIZED and not self.free_sizes:
            return None
        if name in ("__get__ T", "__get__ mT"):
            ids = getattr(torch.from_numpy(channel_ids(tensor.shape, value.axis)), name.removeprefix("__get__ "))
        else:
            kwargs = {key: entry for key, entry in call.kwargs.items() if key != "input"}
            ids = getattr(torch.from_numpy(channel_ids(tensor.shape, value.axis)), name)(*call.args[1:], **kwargs)
        found = channel_map(ids.numpy(), len(value.labels))
        return None if found is None else value.taken(found[1], found[0])


def _same(parameter: Tensor | None, linear: LinearCall) -> bool:
    tensors = [tensor for tensor in (linear.weight, linear.bias) if tensor is not None and tensor.numel()]
    return parameter is not None and any(parameter is t or memory(parameter) == memory(t) != 0 for t in tensors)


def _doubles(rest: Any) -> list[Any]:
    return [r.detach().double().cpu() if isinstance(r, Tensor) and r.is_floating_point() else r for r in rest]
