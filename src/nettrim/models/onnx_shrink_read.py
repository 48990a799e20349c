"""What shrinking needs to know of an ONNX graph: its nodes read as layers, ties between channels, and ranges.

Shapes come from one run of the model. A node that is not known pins the channels it reads: they stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from nettrim.models.onnx_graph import INSIDE, Graph, attributes, is_standard
from nettrim.models.onnx_import import onnx
from nettrim.models.onnx_sites import per_feature
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
    with_zero,
)

_INCREASING = frozenset("Relu Sigmoid Tanh HardSigmoid Softplus Softsign Clip Exp Selu".split())
_ELEMENTWISE = _INCREASING | frozenset(
    "LeakyRelu Elu Celu Gelu HardSwish Mish Abs Neg Sqrt Erf ThresholdedRelu".split()
)
_SAME = frozenset({"Identity", "Dropout", "Cast"})
_LAYOUT = frozenset({"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"})
_FLOATS = (np.float16, np.float32, np.float64)


@dataclass(frozen=True, eq=False)
class OnnxLayer:
    """A Gemm, MatMul or Conv whose weight is stored."""

    name: str
    kind: str
    output: str
    source: str
    axis: int
    weight: np.ndarray  # (out, in / groups, ...) as stored, alpha not in it
    transposed: bool  # a Gemm's transB
    bias: np.ndarray  # (out,) float64
    groups: int


@dataclass(frozen=True, eq=False)
class Vector:
    """A stored operand with one number per channel."""

    array: np.ndarray
    axis: int  # of the array, where the channels are
    value: Value


@dataclass
class OnnxReading:
    """What was found in a graph."""

    channels: Channels = field(default_factory=Channels)
    layers: dict[str, OnnxLayer] = field(default_factory=dict)
    vectors: dict[tuple[str, int], Vector] = field(default_factory=dict)  # (node's first output, slot)
    sizes: dict[str, tuple[Value, int]] = field(default_factory=dict)  # Reshape's output -> value and its axis
    left: dict[str, str] = field(default_factory=dict)


def read_graph(graph: Graph, arrays: Mapping[str, np.ndarray], *, free_sizes: bool) -> OnnxReading:
    """Read a graph; `arrays` are all its values on one batch. With `free_sizes` computed shapes may follow."""
    walk = _Walk(graph, arrays, free_sizes)
    for index, node in enumerate(graph.nodes):
        walk.visit(index, node)
    walk.finish()
    return walk.reading


class _Walk:
    def __init__(self, graph: Graph, arrays: Mapping[str, np.ndarray], free_sizes: bool) -> None:
        self.graph, self.arrays, self.free_sizes = graph, arrays, free_sizes
        self.reading = OnnxReading()
        self.channels = self.reading.channels
        self.values: dict[str, Value] = {}
        self.entries = {value.name for value in graph.inputs}

    def visit(self, index: int, node: Any) -> None:
        """Find the result of one node, or pin what it reads."""
        result = None
        outputs = [name for name in node.output if name]
        known = is_standard(node) and len(outputs) == 1 and outputs[0] in self.graph.live
        if known and np.asarray(self.arrays[outputs[0]]).dtype in _FLOATS:
            result = self._result(index, node, attributes(node))
            if node.op_type in _SAME | _LAYOUT and node.input[0] in self.entries:
                self.entries.add(outputs[0])
        if result is not None:
            self.values[outputs[0]] = result
        elif not (self.free_sizes and is_standard(node) and node.op_type in ("Shape", "Size")):
            for name in node.input:
                self._pin(name)

    def finish(self) -> None:
        """What leaves the graph, or is read in a sub-graph, stays."""
        for name in self.graph.outputs:
            self._pin(name)
        for name, uses in self.graph.consumers.items():
            if any(use.slot == INSIDE for use in uses):
                self._pin(name)

    def _pin(self, name: str) -> None:
        if name in self.values:
            self.channels.pin(self.values[name].labels)

    def _result(self, index: int, node: Any, fields: dict[str, Any]) -> Value | None:
        kind = node.op_type
        if kind in ("Gemm", "MatMul", "Conv"):
            return self._layer(node, fields)
        if kind == "Concat":
            return self._joined(node, fields)
        if kind in ("Add", "Sub", "Mul", "Div", "PRelu"):
            return self._binary(node)
        value = self.values.get(node.input[0])
        if value is None:
            return None
        if kind in _SAME:
            return value
        if kind == "BatchNormalization":
            return self._norm(node, fields, value)
        if kind in _ELEMENTWISE:
            return self._elementwise(node, fields, value)
        if kind in _LAYOUT:
            return self._reshaped(node, value)
        return self._spatial(node, fields, value)

    def _shape(self, name: str) -> tuple[int, ...]:
        return np.asarray(self.arrays[name]).shape

    def _layer(self, node: Any, fields: dict[str, Any]) -> Value | None:
        name = node.name or node.output[0]
        constant = self.graph.constant(node.input[1])
        source_name = node.input[0]
        if constant is None or source_name not in self.graph.live or constant.array.dtype not in _FLOATS:
            return None
        if len(self.graph.consumers.get(constant.stored, ())) > 1:
            self.reading.left[name] = "its weight is shared"
            return None
        array, kind = constant.array, node.op_type
        rank = len(self._shape(node.output[0]))
        groups = int(fields.get("group", 1)) if kind == "Conv" else 1
        transposed = bool(fields.get("transB", 0)) if kind == "Gemm" else False
        if fields.get("transA", 0) or array.ndim < 2 or (kind != "Conv" and array.ndim != 2):
            return None
        axis = 1 if kind == "Conv" else rank - 1
        weight = array if kind == "Conv" or transposed else array.T
        bias: np.ndarray | None = np.zeros(len(weight))
        if kind != "MatMul" and len(node.input) > 2 and node.input[2]:
            stored = self.graph.constant(node.input[2])
            bias = None if stored is None else per_feature(stored.array, 1 if kind == "Conv" else 2, -1, len(weight))
            bias = None if bias is None else bias.astype(np.float64) * float(fields.get("beta", 1.0))
        if bias is None:
            self.reading.left[name] = "its bias is not one number per output"
            return None
        source = self.values.get(source_name)
        if source is not None and (source.axis != axis or len(self._shape(source_name)) != rank):
            return None
        if source is None:
            labels = self.channels.fresh(weight.shape[1] * groups, pinned=True)
            source = unknown(labels, axis, entry=source_name in self.entries)
        padded = any(fields.get("pads", ())) or fields.get("auto_pad", b"NOTSET") in (b"SAME_UPPER", b"SAME_LOWER")
        while name in self.reading.layers:
            name += "'"
        self.reading.layers[name] = OnnxLayer(
            name, kind, node.output[0], source_name, axis, weight, transposed, bias, groups
        )
        matrix = weight.astype(np.float64).reshape(*weight.shape[:2], -1) * float(fields.get("alpha", 1.0))
        return self.channels.affine(name, matrix, bias, groups, source, axis, padded=bool(padded) and kind == "Conv")

    def _norm(self, node: Any, fields: dict[str, Any], value: Value) -> Value | None:
        constants = [self.graph.constant(name) for name in node.input[1:5]]
        if fields.get("training_mode", 0) or not fields.get("spatial", 1) or value.axis != 1:
            return None
        arrays = [c.array for c in constants if c is not None]
        if len(arrays) != 4 or any(array.shape != value.labels.shape for array in arrays):
            return None
        gamma, beta, mean, variance = (array.astype(np.float64) for array in arrays)
        scale = gamma / np.sqrt(variance + float(fields.get("epsilon", 1e-5)))
        result = scaled(value, scale, beta - mean * scale)
        for slot, array in enumerate(arrays, start=1):
            self.reading.vectors[node.output[0], slot] = Vector(array, 0, result)
        return result

    def _elementwise(self, node: Any, fields: dict[str, Any], value: Value) -> Value | None:
        rest: dict[str, np.ndarray] = {}
        for name in node.input[1:]:
            constant = self.graph.constant(name) if name else None
            if name and (constant is None or constant.array.size != 1):
                return None
            if constant is not None:
                rest[name] = constant.array.astype(np.float64)
        monotone = node.op_type in _INCREASING or (node.op_type == "LeakyRelu" and fields.get("alpha", 0.01) >= 0)

        def evaluate(ends: np.ndarray) -> np.ndarray:
            feeds = {node.input[0]: np.array(ends, dtype=np.float64), **rest}
            return _evaluated(node, self.graph.opset, feeds).astype(np.float64)

        try:
            return mapped(value, evaluate, monotone=monotone)
        except Exception:  # ONNX's own evaluator does not know every version of every operator
            return value.ranged(np.full_like(value.low, -np.inf), np.full_like(value.high, np.inf))

    def _binary(self, node: Any) -> Value | None:
        """Sums and products: with a stored number or vector, or of two values channel by channel."""
        one, other = self.values.get(node.input[0]), self.values.get(node.input[1])
        if one is not None and other is not None:
            return self._combined(node, one, other)
        value, slot = (one, 1) if one is not None else (other, 0)
        constant = self.graph.constant(node.input[slot])
        if value is None or constant is None or (slot == 0 and node.op_type not in ("Add", "Mul")):
            return None
        rank = len(self._shape(node.output[0]))
        if len(self._shape(node.input[1 - slot])) != rank or constant.array.ndim > rank:
            return None
        vector = per_feature(constant.array, rank, value.axis, len(value.labels))
        if vector is None:
            return None
        vector = vector.astype(np.float64)
        with np.errstate(all="ignore"):
            if node.op_type == "PRelu":
                slope = vector
                result = mapped(
                    value, lambda x: np.maximum(x, 0) + slope * np.minimum(x, 0), monotone=bool((slope > 0).all())
                )
            else:
                one_each, none = np.ones_like(vector), np.zeros_like(vector)
                scale, shift = {
                    "Add": (one_each, vector),
                    "Sub": (one_each, -vector),
                    "Mul": (vector, none),
                    "Div": (1 / vector, none),
                }[node.op_type]
                result = scaled(value, scale, shift)
        if constant.array.ndim >= rank - value.axis:  # otherwise one number for all channels
            place = constant.array.ndim - rank + value.axis
            self.reading.vectors[node.output[0], slot] = Vector(constant.array, place, result)
        return result

    def _combined(self, node: Any, one: Value, other: Value) -> Value | None:
        shapes = [self._shape(name) for name in (*node.input, node.output[0])]
        places = [value.axis - len(shape) for value, shape in zip((one, other), shapes, strict=False)]
        same = places[0] == places[1] and len(one.labels) == len(other.labels) > 1
        if not same or node.op_type in ("Div", "PRelu"):
            return None
        self.channels.tie(one.labels, other.labels)
        if node.op_type == "Mul":
            result = multiplied(one, other)
        else:
            result = summed(one, other, -1.0 if node.op_type == "Sub" else 1.0)
        return replace(result, axis=len(shapes[2]) + places[0])

    def _joined(self, node: Any, fields: dict[str, Any]) -> Value | None:
        axis = int(fields["axis"]) % len(self._shape(node.output[0]))
        parts = []
        for name in node.input:
            value = self.values.get(name)
            if value is None:
                array = self.arrays.get(name)
                if array is None:
                    return None
                value = unknown(self.channels.fresh(np.asarray(array).shape[axis], pinned=True), axis)
            if value.axis != axis:
                return None
            parts.append(value)
        return self.channels.watch(joined(parts))

    def _reshaped(self, node: Any, value: Value) -> Value | None:
        ids = channel_ids(self._shape(node.input[0]), value.axis)
        computed = [name for name in node.input[1:] if name and self.graph.constant(name) is None]
        if computed and not self.free_sizes:
            return None
        rest: dict[str, np.ndarray] = {}
        for name in filter(None, node.input[1:]):
            constant = self.graph.constant(name)
            rest[name] = constant.array if constant is not None else np.asarray(self.arrays[name])
        try:
            result = _evaluated(node, self.graph.opset, {node.input[0]: ids, **rest})
        except Exception:
            return None
        found = channel_map(result, len(value.labels))
        if found is None:
            return None
        taken = value.taken(found[1], found[0])
        if node.op_type == "Reshape":
            self.reading.sizes[node.output[0]] = (taken, found[0])
        return taken

    def _spatial(self, node: Any, fields: dict[str, Any], value: Value) -> Value | None:
        """Pools, pads and means, which leave the channels alone."""
        kind = node.op_type
        if kind in ("MaxPool", "GlobalAveragePool", "GlobalMaxPool"):
            return value if value.axis == 1 else None
        if kind == "AveragePool":
            padded = any(fields.get("pads", ())) or fields.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
            return None if value.axis != 1 else with_zero(value) if padded or fields.get("ceil_mode") else value
        if kind == "Pad":
            return self._padded(node, fields, value)
        if kind in ("ReduceMean", "ReduceMax", "ReduceMin"):
            axes = fields.get("axes")
            if axes is None and len(node.input) > 1:
                constant = self.graph.constant(node.input[1])
                axes = None if constant is None else constant.array.tolist()
            rank = len(self._shape(node.input[0]))
            places = {axis % rank for axis in axes or ()}
            if not places or value.axis in places:
                return None
            return (
                value
                if fields.get("keepdims", 1)
                else replace(value, axis=value.axis - sum(p < value.axis for p in places))
            )
        return None

    def _padded(self, node: Any, fields: dict[str, Any], value: Value) -> Value | None:
        pads = fields.get("pads")
        if pads is None and len(node.input) > 1:
            constant = self.graph.constant(node.input[1])
            pads = None if constant is None else constant.array.tolist()
        rank = len(self._shape(node.input[0]))
        if pads is None or len(pads) != 2 * rank or pads[value.axis] or pads[value.axis + rank]:
            return None
        if fields.get("mode", b"constant") != b"constant":
            return value
        fill = self.graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        zero = not fields.get("value") and (fill is None or not fill.array.any())
        return (
            with_zero(value)
            if zero
            else value.ranged(np.full_like(value.low, -np.inf), np.full_like(value.high, np.inf))
        )


def _evaluated(node: Any, opset: int, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """One node computed by ONNX's own evaluator in the model's operator set."""
    inputs = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    outputs = [onnx.ValueInfoProto(name=node.output[0])]
    graph = onnx.helper.make_graph([node], "node", inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    found: Any = onnx.reference.ReferenceEvaluator(model).run(None, feeds)
    return np.asarray(found[0])
