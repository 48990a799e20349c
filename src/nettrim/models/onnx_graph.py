"""An ONNX graph as relations: who makes a value, who reads it, and which values are constants."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from nettrim.errors import ModelError, should
from nettrim.models.onnx_import import onnx

INSIDE = -1  # the slot of a use inside a node's sub-graph
FLOATS = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
)
_RANDOM = frozenset({"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial"})


@dataclass(frozen=True)
class Use:
    """One reading of a value: the reader's index in the node list and its input slot."""

    node: int
    slot: int


@dataclass(frozen=True, eq=False)
class Constant:
    """A value known before the network runs, and where it is stored."""

    value: str  # the name the reader sees
    stored: str  # the initializer (or Constant node's output) behind it
    path: tuple[int, ...]  # nodes between the two
    array: np.ndarray


class Graph:
    """Index of one ModelProto's main graph; rebuild it after the model has changed."""

    def __init__(self, model: Any, *, ranks: dict[str, int] | None = None) -> None:
        graph = model.graph
        self.nodes: list[Any] = list(graph.node)
        self.initializers: dict[str, Any] = {tensor.name: tensor for tensor in graph.initializer}
        self.sparse = frozenset(sparse.values.name for sparse in graph.sparse_initializer)
        self.inputs = tuple(v for v in graph.input if v.name not in self.initializers and v.name not in self.sparse)
        self.outputs = tuple(value.name for value in graph.output)
        self.opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)
        self.producer: dict[str, int] = {}
        self.consumers: dict[str, list[Use]] = {}
        for index, node in enumerate(self.nodes):
            for slot, name in enumerate(node.input):
                if name:
                    self.consumers.setdefault(name, []).append(Use(index, slot))
            for name in sorted(set(names_inside(node))):
                self.consumers.setdefault(name, []).append(Use(index, INSIDE))
            self.producer.update({name: index for name in node.output if name})
        self.live = self._live_values()
        self._output_set = frozenset(self.outputs)
        self._ranks = ranks
        self._model = model

    def made_by(self, value: str) -> Any | None:
        """The node that makes a value; None for graph inputs and initializers."""
        index = self.producer.get(value)
        return None if index is None else self.nodes[index]

    def only_use(self, value: str) -> Use | None:
        """The one use of a value that nothing else reads, not even the caller of the graph; else None."""
        uses = self.consumers.get(value, [])
        if len(uses) != 1 or value in self._output_set or uses[0].slot == INSIDE:
            return None
        return uses[0]

    @property
    def constants(self) -> tuple[str, ...]:
        """The values that Constant nodes make."""
        return tuple(node.output[0] for node in self.nodes if node.op_type == "Constant" and is_standard(node))

    @property
    def ranks(self) -> dict[str, int]:
        """Number of dimensions of every value for which it is declared or inferable."""
        if self._ranks is None:
            self._ranks = _infer_ranks(self._model)
        return self._ranks

    def constant(self, value: str) -> Constant | None:
        """Resolve a value through Identity, Transpose, Cast and shape changes to what is stored; None if it is not."""
        path: list[int] = []
        name = value
        while name not in self.initializers:
            index = self.producer.get(name)
            if index is None:
                return None
            node = self.nodes[index]
            path.append(index)
            if node.op_type == "Constant" and is_standard(node):
                break
            if not is_standard(node) or node.op_type not in _STEPS:
                return None
            name = node.input[0]
        array = self.stored_array(name)
        for index in reversed(path):
            if array is None:
                return None
            node = self.nodes[index]
            if node.op_type != "Constant":
                array = self._step(node, array)
        return None if array is None else Constant(value, name, tuple(path), array)

    def frozen_by(self, value: str) -> str | None:
        """Why a value that `constant` does not resolve is nevertheless fixed; None when it depends on the inputs."""
        if value in self.live:
            return None
        if value in self.sparse:
            return "its weight is stored as a sparse tensor"
        kinds = [self.nodes[index].op_type for index in self.ancestors([value])]
        if any(kind in ("DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear") for kind in kinds):
            return "its weight is quantised"
        computed = [kind for kind in kinds if kind != "Constant" and kind not in _STEPS]
        return f"its weight is computed by {computed[-1]} in the graph" if computed else "its weight cannot be read"

    def _live_values(self) -> frozenset[str]:
        """Values that depend on the graph's inputs or on chance."""
        live = {value.name for value in self.inputs}
        for node in self.nodes:
            if node.op_type in _RANDOM or any(name in live for name in (*node.input, *names_inside(node))):
                live.update(node.output)
        live.discard("")
        return frozenset(live)

    def ancestors(self, values: Iterable[str]) -> list[int]:
        """Indices of all nodes the values depend on, in execution order."""
        found: set[int] = set()
        waiting = list(values)
        while waiting:
            index = self.producer.get(waiting.pop())
            if index is None or index in found:
                continue
            found.add(index)
            waiting.extend(name for name in (*self.nodes[index].input, *names_inside(self.nodes[index])) if name)
        return sorted(found)

    def stored_array(self, name: str) -> np.ndarray | None:
        """What an initializer, or the Constant node that makes a value, holds; None where it cannot be read."""
        if name in self.initializers:
            return to_array(self.initializers[name])
        fields = attributes(self.nodes[self.producer[name]])
        if "value" in fields:
            return to_array(fields["value"])
        for key, dtype in (("value_float", np.float32), ("value_floats", np.float32), ("value_int", np.int64)):
            if key in fields:
                return np.asarray(fields[key], dtype=dtype)
        return np.asarray(fields["value_ints"], dtype=np.int64) if "value_ints" in fields else None

    def _step(self, node: Any, array: np.ndarray) -> np.ndarray | None:
        fields = attributes(node)
        try:
            match node.op_type:
                case "Identity":
                    return array
                case "Transpose":
                    return array.transpose(fields.get("perm"))
                case "Cast":
                    return array.astype(onnx.helper.tensor_dtype_to_np_dtype(fields["to"]))
                case "Reshape":
                    shape = self.constant(node.input[1])
                    if shape is None:
                        return None
                    return array.reshape(_reshape_to(array.shape, shape.array, bool(fields.get("allowzero", 0))))
                case _:
                    axes = fields.get("axes")
                    if axes is None and len(node.input) > 1:
                        found = self.constant(node.input[1])
                        axes = None if found is None else found.array.tolist()
                    if node.op_type == "Squeeze":
                        return np.squeeze(array, axis=None if axes is None else tuple(axes))
                    return None if axes is None else np.expand_dims(array, tuple(axes))
        except (ValueError, KeyError, TypeError, IndexError, np.exceptions.AxisError):
            return None


_STEPS = frozenset({"Identity", "Transpose", "Cast", "Reshape", "Squeeze", "Unsqueeze"})


def attributes(node: Any) -> dict[str, Any]:
    """A node's attributes by name, as Python values."""
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def is_standard(node: Any) -> bool:
    """Whether a node belongs to ONNX's own operator set."""
    return node.domain in ("", "ai.onnx")


def sub_graphs(node: Any) -> Iterator[Any]:
    """The graphs a control-flow node holds."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def to_array(tensor: Any) -> np.ndarray | None:
    """A TensorProto as an array, or None when its data and its shape do not agree."""
    try:
        return onnx.numpy_helper.to_array(tensor)
    except Exception:
        return None


def stored_floats(model: Any) -> dict[str, np.ndarray]:
    """The floating numbers that a model keeps, in initializers and in Constant nodes, by name."""
    graph = Graph(model, ranks={})
    arrays = {name: graph.stored_array(name) for name in (*graph.initializers, *graph.constants)}
    return {name: array for name, array in arrays.items() if array is not None and _is_floating(array)}


def _is_floating(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def main_output(model: Any) -> str:
    """The first floating output, or what a lone label was chosen from; classifiers often give the label first.

    Raises ModelError where there is neither.
    """
    for value in model.graph.output:
        if value.type.HasField("tensor_type") and value.type.tensor_type.elem_type in FLOATS:
            return value.name
    makers = {name: node for node in model.graph.node for name in node.output}
    for value in model.graph.output:
        node = makers.get(value.name)
        if node is not None and node.op_type in ("ZipMap", "ArgMax"):
            return node.input[0]
    raise ModelError(should("model", "one with an output of floating numbers", "none"))


def names_inside(node: Any) -> Iterator[str]:
    """Every value named inside a node's sub-graphs: a superset of what they read from outside."""
    for graph in sub_graphs(node):
        yield from (value.name for value in graph.output)
        for inner in graph.node:
            yield from (name for name in inner.input if name)
            yield from names_inside(inner)


def _reshape_to(shape: tuple[int, ...], wanted: np.ndarray, allow_zero: bool) -> tuple[int, ...]:
    sizes = [int(size) for size in wanted.reshape(-1)]
    return tuple(shape[i] if size == 0 and not allow_zero else size for i, size in enumerate(sizes))


def _infer_ranks(model: Any) -> dict[str, int]:
    graph = model.graph
    declared = [*graph.input, *graph.output, *graph.value_info]
    try:
        found = onnx.shape_inference.infer_shapes(model).graph
        declared += [*found.value_info, *found.output]
    except Exception:  # inference is a convenience: without it some patterns are not recognised
        pass
    ranks = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    for value in declared:
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"):
            ranks[value.name] = len(value.type.tensor_type.shape.dim)
    return ranks
