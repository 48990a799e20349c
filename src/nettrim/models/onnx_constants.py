"""Lipschitz constants of ONNX operators in the Euclidean norm (docs/bounds.md, section 7)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from nettrim.certificates.network import operator_norm
from nettrim.models.lipschitz import slope_of
from nettrim.models.onnx_convolution import Convolution, convolution_of, unfit_convolution
from nettrim.models.onnx_graph import Graph, attributes, is_standard
from nettrim.models.onnx_layers import keeps_values
from nettrim.models.operations import overlap
from nettrim.models.unfold import matrix_of

POOLS = frozenset({"MaxPool", "GlobalMaxPool", "ReduceMax"})  # that may stand between a layer and its activation
SHAPED = frozenset(  # whose constants depend on shapes
    {"Add", "Sub", "Sum", "Max", "Min", "Mul", "Div", "ReduceMean", "ReduceSum", "GlobalAveragePool"}
)
_ACTIVATIONS = {  # as `slope_of` knows them
    "Relu": "relu", "Clip": "clamp", "Tanh": "tanh", "Softplus": "softplus", "Softsign": "softsign", "Abs": "abs",
    "Neg": "neg", "Sigmoid": "sigmoid", "Erf": "erf", "Gelu": "gelu", "Mish": "mish", "HardSwish": "hardswish",
    "Softmax": "softmax", "LeakyRelu": "leaky_relu", "Elu": "elu", "Celu": "celu", "Selu": "selu",
    "HardSigmoid": "hardsigmoid", "PRelu": "prelu",
    "Swish": "silu",  # whatever its alpha is: that stretches both axes
}  # fmt: skip
_PARAMETERS = {  # attributes on which slopes depend: their names there, and what ONNX takes where they are left out
    "LeakyRelu": {"alpha": ("negative_slope", 0.01)}, "Elu": {"alpha": ("alpha", 1.0)},
    "Celu": {"alpha": ("alpha", 1.0)}, "HardSigmoid": {"alpha": ("slope", 0.2)},
    "Selu": {"gamma": ("scale", 1.0508), "alpha": ("alpha", 1.6733)},
}  # fmt: skip
_SAME = frozenset({"Slice", "Split", "DepthToSpace", "SpaceToDepth", "GlobalMaxPool", "ReduceMax", "ReduceMin"})
_ROUNDING = 1 + 1e-6  # for the norm of a layer that is kept, whose rounding nobody else counts


class NoConstant(Exception):
    """Raised with the reason."""


class Shapes:
    """The shapes of values on some samples, computed where they are asked for first.

    `measure` answers them, and how many samples there were. Raises NoConstant where they may differ from batch to
    batch in more than the number of samples.
    """

    def __init__(self, measure: Callable[[], tuple[Mapping[str, tuple[int, ...]], int]]) -> None:
        self._measure = measure
        self._found: tuple[Mapping[str, tuple[int, ...]], int] | None = None

    def of(self, value: str) -> tuple[int, ...]:
        """The shape of a value, whose first axis are the samples."""
        if self._found is None:
            self._found = self._measure()
        shapes, samples = self._found
        shape = shapes.get(value)
        if not shape or shape[0] != samples:
            raise NoConstant(f"the first axis of {value!r} was not seen to be that of the samples")
        return shape


def constant_of(graph: Graph, node: Any, read: frozenset[str], shapes: Shapes) -> tuple[float, bool]:
    """The constant of a node, and whether it puts its inputs side by side; `read`: its inputs that can change.

    Raises NoConstant where there is none, or none is known.
    """
    if is_standard(node):
        fields = attributes(node)
        if node.op_type == "Concat":
            return 1.0, True
        if node.op_type in ("Add", "Sub", "Sum", "Max", "Min"):
            return max(spread(node, name, node.output[0], shapes) for name in read), False
        if node.op_type in ("MatMul", "Gemm", "Conv", "ConvTranspose"):
            return _kept(graph, node, fields, read), False
        if node.op_type in ("Mul", "Div") and len(read) == 1:
            return _scale(graph, node, read, shapes), False
        if read == {node.input[0]}:
            found = _of_one(graph, node, fields, shapes)
            if found is not None:
                return found, False
    called = f"{node.op_type} node {node.name!r}" if node.name else node.op_type
    raise NoConstant(f"{called} has no constant that bounds what it does to an error")


def pooled(graph: Graph, node: Any, shapes: Shapes) -> float:
    """The constant of a pool: a window's maximum changes by at most the norm of its entries' changes, its mean by that
    over sqrt(entries)."""
    if node.op_type in ("GlobalMaxPool", "ReduceMax"):
        return 1.0
    fields = attributes(node)
    if node.op_type == "GlobalAveragePool":
        return 1 / math.sqrt(math.prod(shapes.of(node.input[0])[2:]))
    kernel = tuple(fields["kernel_shape"])
    stride = tuple(fields.get("strides") or (1,) * len(kernel))
    dilation = tuple(fields.get("dilations") or (1,) * len(kernel))
    factor = math.sqrt(math.prod(map(overlap, kernel, stride, dilation)))
    if node.op_type == "MaxPool":
        return factor
    padded = any(fields.get("pads") or ()) or fields.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
    partial = (padded and not fields.get("count_include_pad", 0)) or fields.get("ceil_mode", 0)
    return factor if partial else factor / math.sqrt(math.prod(kernel))  # windows at the border may have fewer entries


def repeats_of(convolution: Convolution | None) -> int:
    """How many patches of a convolution one entry of its input can be part of; 1 for a plain product."""
    if convolution is None:
        return 1
    if convolution.transposed:
        return math.prod(convolution.kernel)
    return math.prod(map(overlap, convolution.kernel, convolution.stride, convolution.dilation))


def spread(node: Any, operand: str, result: str, shapes: Shapes) -> float:
    """By how much an operand's norm grows when it is repeated to the result's shape."""
    before, after = shapes.of(operand), shapes.of(result)
    if len(before) != len(after):
        raise NoConstant(f"{node.op_type} repeats a value over other axes")
    return math.sqrt(math.prod(after) / math.prod(before)) if math.prod(before) else 1.0


def turned(node: Any) -> bool:
    """Whether a node moves the first axis, that of the samples, to another place."""
    return node.op_type == "Transpose" and (attributes(node).get("perm") or [1])[0] != 0


def _of_one(graph: Graph, node: Any, fields: dict[str, Any], shapes: Shapes) -> float | None:
    """The constant of a node whose first input alone can change; None where none is known."""
    kind = node.op_type
    if turned(node):
        raise NoConstant("Transpose moves the samples to another axis")
    if keeps_values(graph, node):
        return 1.0
    if kind in _SAME:
        return 1.0
    if kind in _ACTIVATIONS:
        return _slope(graph, node, fields)
    match kind:
        case "MaxPool" | "AveragePool" | "GlobalAveragePool":
            return pooled(graph, node, shapes)
        case "ReduceMean" | "ReduceSum":
            return _reduced(graph, node, fields, shapes)
        case "BatchNormalization":
            return _normalised(graph, node, fields)
        case "Pad":
            return _padded(graph, node, fields)
        case _:
            return None


def _slope(graph: Graph, node: Any, fields: dict[str, Any]) -> float | None:
    """The largest slope of an activation; None where none is known."""
    given = {name: float(fields.get(key, usual)) for key, (name, usual) in _PARAMETERS.get(node.op_type, {}).items()}
    slopes = graph.constant(node.input[1]) if node.op_type == "PRelu" else None
    if slopes is not None:
        given["negative_slope"] = float(np.abs(slopes.array.astype(np.float64)).max())
    return slope_of(_ACTIVATIONS[node.op_type], **given)


def _kept(graph: Graph, node: Any, fields: dict[str, Any], read: frozenset[str]) -> float:
    """The norm of a product with a constant weight that is not trimmed."""
    slot = 1 if node.input[0] in read else 0
    constant = graph.constant(node.input[slot])
    if constant is None or read != {node.input[1 - slot]} or list(node.input).count(node.input[1 - slot]) > 1:
        raise NoConstant(f"{node.op_type} multiplies by another value")
    weight = torch.from_numpy(constant.array.astype(np.float64))
    if not node.op_type.startswith("Conv"):
        if weight.ndim != 2:
            raise NoConstant(f"{node.op_type} has a weight of {weight.ndim} dimensions")
        alpha = abs(float(fields.get("alpha", 1.0))) if node.op_type == "Gemm" else 1.0
        return alpha * operator_norm(weight) * _ROUNDING
    if slot != 1 or unfit_convolution(node) is not None:
        raise NoConstant(f"{node.op_type} is none whose norm is known")
    convolution = convolution_of(node, tuple(weight.shape))
    rows = matrix_of(weight, convolution.geometry).chunk(convolution.groups)
    return max(operator_norm(part, repeats_of(convolution)) for part in rows) * _ROUNDING


def _scale(graph: Graph, node: Any, read: frozenset[str], shapes: Shapes) -> float:
    """The largest factor of a product with, or a quotient by, a constant."""
    (name,) = read
    slot = list(node.input).index(name)
    constant = graph.constant(node.input[1 - slot])
    if constant is None or (node.op_type == "Div" and slot == 1):
        raise NoConstant(f"{node.op_type} of two values that can change, or of the data, has no constant")
    with np.errstate(divide="ignore"):
        sizes = np.abs(constant.array.astype(np.float64))
        factor = float((sizes if node.op_type == "Mul" else 1 / sizes).max(initial=0.0))
    return factor * spread(node, name, node.output[0], shapes)


def _normalised(graph: Graph, node: Any, fields: dict[str, Any]) -> float:
    constants = [graph.constant(name) for name in (node.input[1], node.input[4])]
    evaluated = fields.get("is_test", 0) if graph.opset < 7 else not fields.get("training_mode", 0)
    evaluated = evaluated and not any(node.output[1:])
    arrays = [constant.array.astype(np.float64) for constant in constants if constant is not None]
    if len(arrays) != 2 or not evaluated:
        raise NoConstant("BatchNormalization normalises by the data")
    scale, variance = arrays
    return float((np.abs(scale) / np.sqrt(variance + float(fields.get("epsilon", 1e-5)))).max(initial=0.0))


def _reduced(graph: Graph, node: Any, fields: dict[str, Any], shapes: Shapes) -> float:
    shape = shapes.of(node.input[0])
    axes = fields.get("axes")
    if len(node.input) > 1 and node.input[1]:
        constant = graph.constant(node.input[1])
        if constant is None:
            raise NoConstant(f"{node.op_type} over axes that are computed")
        axes = constant.array.reshape(-1).tolist()
    if not axes and fields.get("noop_with_empty_axes", 0):
        return 1.0
    axes = {int(axis) % len(shape) for axis in axes} if axes else {0}
    if 0 in axes:
        raise NoConstant(f"{node.op_type} mixes samples")
    count = math.prod(shape[axis] for axis in axes)
    return math.sqrt(count) if node.op_type == "ReduceSum" else 1 / math.sqrt(count)


def _padded(graph: Graph, node: Any, fields: dict[str, Any]) -> float:
    mode = fields.get("mode", b"constant")
    mode = mode.decode() if isinstance(mode, bytes) else mode
    if mode == "constant":
        return 1.0
    pads = fields.get("pads")
    if pads is None and len(node.input) > 1:
        constant = graph.constant(node.input[1])
        pads = None if constant is None else constant.array.reshape(-1).tolist()
    if mode != "reflect" or pads is None or any(node.input[3:]):
        raise NoConstant(f"Pad with mode {mode!r} has no constant here")
    half = len(pads) // 2
    axes = sum(bool(pads[axis] or pads[axis + half]) for axis in range(half))
    return math.sqrt(3**axes)  # an entry appears at most three times along each axis
