"""How an error can travel through a module: its trace as steps with known Lipschitz constants.

Every operation that reads a value which trimming can change is looked up here. One that is not known, or has no
constant (a product of two such values, a norm over features), leaves the network without a bound, and the reason says
which one it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from nettrim.certificates.graph import Flow, Step
from nettrim.models.lipschitz import slope_of
from nettrim.models.match import Use, branches, keeps_values
from nettrim.models.operations import MAX_POOLS, linear_call, overlap
from nettrim.models.trace import Call, Key, Node, Trace
from nettrim.models.weights import Trimmable

_AVERAGES = frozenset(f"{kind}avg_pool{d}d" for kind in ("", "adaptive_") for d in (1, 2, 3))
_SAME = -1  # stands for a value that trimming does not change
_PARAMETERS = {  # of activations, on which their slopes depend: places and names
    "leaky_relu": (1, "negative_slope"), "elu": (1, "alpha"), "celu": (1, "alpha"), "softplus": (2, "threshold"),
}  # fmt: skip
_PARTS = frozenset({"chunk", "split", "unbind", "tensor_split", "narrow", "select", "split_with_sizes"})


class _NoConstant(Exception):
    """Raised with the reason."""


def flow_of(trace: Trace, output: Key, layers: Iterable[Trimmable], left: Mapping[str, str]) -> Flow | str:
    """The steps from a module's layers to a value of its trace (with calls), or the reason why there are none.

    layers: those that are trimmed; left: the names of the others by their parameters.
    """
    walk = _Walk(trace, left)
    for layer in layers:
        for use in layer.uses:
            walk.expect(layer.name, use)
    for node in trace.nodes:
        walk.visit(node)
    if not trace.hidden.isdisjoint(walk.touched):
        return "a value is read through memory that it shares, unseen"
    if not isinstance(output, int) or output not in walk.touched:
        return "the output was not seen to depend on a trimmed layer"
    if output in walk.lost:
        return walk.lost[output]
    return Flow(tuple(walk.steps), output, walk.repeats)


@dataclass
class _Walk:
    trace: Trace
    left: Mapping[str, str]
    steps: list[Step] = field(default_factory=list)
    touched: set[int] = field(default_factory=set)  # values that trimming can change
    lost: dict[int, str] = field(default_factory=dict)  # those of them without a bound, and why
    repeats: dict[str, int] = field(default_factory=dict)
    _ends: dict[int, tuple[str, Use]] = field(default_factory=dict)  # by the node that gives a layer's responses
    _inside: set[int] = field(default_factory=set)  # nodes between a product and its responses

    def expect(self, name: str, use: Use) -> None:
        """Note where a layer's responses are given, and what stands between them and its product."""
        path = self._path(use)
        self._ends[path[-1].index] = (name, use)
        self._inside.update(node.index for node in path[:-1])

    def visit(self, node: Node) -> None:
        """The step of one operation, if it reads what trimming can change or is a layer's own."""
        if node.index in self._inside:
            return
        name, use = self._ends.get(node.index, ("", None))
        inputs = tuple(key for key in node.inputs if isinstance(key, int) and key in self.touched)
        if use is None and not inputs:
            return
        try:
            if use is not None:
                self._layer(node, name, use)
            elif node.applied is not None:
                self._kept(node)
            else:
                self._checked(inputs)
                self._add(node, inputs, *_constant(node, inputs))
        except _NoConstant as reason:
            self.touched.update(node.outputs)
            self.lost.update((value, str(reason)) for value in node.outputs)

    def _path(self, use: Use) -> list[Node]:
        """From a layer's product to the node that gives its responses; each has one reader."""
        path = [self.trace.nodes[use.node]]
        end = use.end if use.end is not None else use.additions[-1].node if use.additions else use.node
        while path[-1].index != end:
            (reader,) = self.trace.users(path[-1].outputs[0])
            path.append(self.trace.nodes[reader])
        return path

    def _layer(self, end: Node, name: str, use: Use) -> None:
        path = self._path(use)
        others = [_operand(self.trace.nodes[addition.node], addition.other) for addition in branches(use)]
        inputs = (self._source(path[0]), *(_SAME if not isinstance(key, int) else key for key in others))
        self._checked(inputs)
        # pools on the way commute with the activation; their constant applies to the responses
        factor = math.prod(_pooled(node) for node in path if node.name in MAX_POOLS)
        self.repeats[name] = _repeats(path[0])
        self._add(end, inputs, factor, layer=name, place=use.node)

    def _kept(self, node: Node) -> None:
        assert node.applied is not None
        name = self.left.get(node.applied.weight)
        if name is None:
            raise _NoConstant(f"`{node.name}` applies a weight that is not followed")
        inputs = (self._source(node),)
        self._checked(inputs)
        self.repeats[name] = _repeats(node)
        self._add(node, inputs, layer=name, place=node.index)

    def _source(self, product: Node) -> int:
        """The value that a weight is applied to."""
        assert product.applied is not None
        found = [key for key in product.inputs if isinstance(key, int) and key in self.touched]
        if len(found) > 1 or (found and product.applied.bias == "?" and product.inputs[0] != found[0]):
            raise _NoConstant(f"`{product.name}` takes more than its input from other layers")
        return found[0] if found else _SAME

    def _checked(self, inputs: tuple[int, ...]) -> None:
        for value in inputs:
            if value in self.lost:
                raise _NoConstant(self.lost[value])

    def _add(
        self, node: Node, inputs: tuple[int, ...], factor: float = 1.0, joined: bool = False, **layer: Any
    ) -> None:
        for output in node.outputs:
            self.steps.append(Step(output, inputs, factor, joined, **layer))
            self.touched.add(output)
            self.lost.pop(output, None)


def _repeats(product: Node) -> int:
    """How many patches of a convolution one entry of its input can be part of; 1 for a plain product."""
    call = _call(product)
    linear = linear_call(product.name, call.args, call.kwargs)
    assert linear is not None
    geometry, kernel = linear.geometry, tuple(linear.weight.shape[2:])
    if geometry.transposed:
        return math.prod(kernel)
    return math.prod(map(overlap, kernel, geometry.stride, geometry.dilation)) if geometry.dims else 1


def _pooled(node: Node) -> float:
    """The constant of a max pool or an average pool in the Euclidean norm.

    A window's maximum changes by at most the norm of its entries' changes, its mean by that over sqrt(entries).
    """
    call = _call(node)
    name = node.name
    dims = int(name[-2])
    if name.startswith("adaptive"):
        before, after = call.args[0].shape[-dims:], call.out.shape[-dims:]
        sizes = list(zip(before, after, strict=True))
        if "avg" in name and all(size % count == 0 for size, count in sizes):
            return math.sqrt(math.prod(after) / math.prod(before))
        return math.sqrt(math.prod(1 if size % count == 0 else math.ceil(count / size) + 1 for size, count in sizes))
    kernel = _each(call.argument(1, "kernel_size"), dims)
    stride = _each(call.argument(2, "stride") or kernel, dims)
    if "max" in name:
        dilation = _each(call.argument(4, "dilation", 1), dims)
        return math.sqrt(math.prod(map(overlap, kernel, stride, dilation)))
    whole = math.sqrt(math.prod(map(overlap, kernel, stride, (1,) * dims)))
    if call.argument(6, "divisor_override") is not None:
        raise _NoConstant(f"`{name}` with a divisor of its own has no constant here")
    padded = any(_each(call.argument(3, "padding", 0), dims)) and not call.argument(5, "count_include_pad", True)
    partial = padded or call.argument(4, "ceil_mode", False)  # windows at the border with fewer entries
    return whole if partial else whole / math.sqrt(math.prod(kernel))


def _constant(node: Node, inputs: tuple[int, ...]) -> tuple[float, bool]:
    """The Lipschitz constant of an operation, and whether it puts its inputs side by side. Raises _NoConstant."""
    call, name = _call(node), node.name
    plain = name if name.startswith("__") else name.removesuffix("_")
    first = call.argument(0, "input")
    if plain in ("cat", "concat", "concatenate", "stack"):
        return 1.0, True
    if plain in ("add", "sub"):
        alpha = call.argument(2, "alpha", 1)
        return max(1.0, abs(float(alpha))) * _spread(node, inputs), False
    if len(inputs) == 1 and node.inputs[0] == inputs[0] and isinstance(first, Tensor):
        if keeps_values(node) or plain in _PARTS or (plain == "__getitem__" and _is_slice(call.args[1])):
            return 1.0, False
        slope = _slope(node, plain)
        if slope is not None:
            return slope, False
        if plain in ("mul", "div"):
            return _scale(node, plain) * _spread(node, inputs), False
        if plain == "batch_norm":
            return _normalised(node), False
        if node.name in MAX_POOLS or plain in _AVERAGES:
            return _pooled(node), False
        if plain in ("mean", "sum"):
            return _reduced(node, first), False
        if plain == "pad":
            return _padded(call), False
    raise _NoConstant(f"`{name}` has no constant that bounds what it does to an error")


def _slope(node: Node, plain: str) -> float | None:
    """The largest slope of an activation; None for anything else, or where none is known."""
    call, parameters = _call(node), dict[str, float]()
    if plain == "prelu" and len(call.args) > 1 and isinstance(_operand(node, 1), str):  # none of the data
        parameters = {"negative_slope": float(call.argument(1, "weight").detach().double().abs().max())}
    elif plain in _PARAMETERS:
        place, name = _PARAMETERS[plain]
        value = call.argument(place, name)
        parameters = {} if value is None else {name: float(value)}
    return slope_of(plain, **parameters)


def _spread(node: Node, inputs: tuple[int, ...]) -> float:
    """By how much an operand's norm grows when it is repeated to the result's shape."""
    out = _call(node).out
    tensors = [leaf for leaf in tree_leaves((_call(node).args, _call(node).kwargs)) if isinstance(leaf, Tensor)]
    spread = 1.0
    for key, operand in zip(node.inputs, tensors, strict=True):
        if key in inputs and operand.shape != out.shape:
            if operand.dim() != out.dim() or operand.shape[0] != out.shape[0]:
                raise _NoConstant(f"`{node.name}` repeats a value over samples")
            spread = max(spread, math.sqrt(out.numel() / operand.numel()))
    return spread


def _scale(node: Node, plain: str) -> float:
    """The largest factor of a product with a number, a parameter or a buffer."""
    other = _call(node).argument(1, "other")
    if isinstance(other, Tensor):
        if not isinstance(_operand(node, 1), str):
            raise _NoConstant(f"`{node.name}` multiplies by another value")
        other = other.detach().double().abs()
        return float(other.max() if plain == "mul" else 1 / other.min())
    return abs(float(other)) if plain == "mul" else 1 / abs(float(other))


def _normalised(node: Node) -> float:
    call = _call(node)
    variance, weight = call.argument(2, "running_var"), call.argument(3, "weight")
    if call.argument(5, "training", False) or variance is None:
        raise _NoConstant(f"`{node.name}` normalises by the data")
    scale = (variance.detach().double() + call.argument(7, "eps", 1e-5)).rsqrt()
    return float((scale if weight is None else scale * weight.detach().double().abs()).max())


def _reduced(node: Node, source: Tensor) -> float:
    axes = _call(node).argument(1, "dim")
    axes = [axis % source.dim() for axis in ((axes,) if isinstance(axes, int) else axes or range(source.dim()))]
    if 0 in axes:
        raise _NoConstant(f"`{node.name}` mixes samples")
    count = math.prod(source.shape[axis] for axis in axes)
    return math.sqrt(count) if node.name == "sum" else 1 / math.sqrt(count)


def _padded(call: Call) -> float:
    mode, sides = call.argument(2, "mode", "constant"), call.argument(1, "pad")
    if mode == "constant":
        return 1.0
    if mode in ("reflect", "circular"):
        return math.sqrt(3 ** (len(sides) // 2))  # an entry appears at most three times along each axis
    raise _NoConstant(f"`pad` with mode {mode!r} has no constant here")


def _operand(node: Node, place: int) -> Key:
    """The key of one of the first two arguments, None for a number."""
    keys = iter(node.inputs)
    names = [next(keys) if isinstance(operand, Tensor) else None for operand in _call(node).args[: place + 1]]
    return names[place]


def _is_slice(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return all(part is None or part is Ellipsis or isinstance(part, int | slice) for part in parts)


def _each(value: Any, dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value) * (dims if len(value) == 1 else 1)


def _call(node: Node) -> Call:
    assert node.call is not None
    return node.call
