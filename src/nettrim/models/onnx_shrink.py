"""Exact shrinking of an ONNX graph: the same function with smaller dense layers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from nettrim.errors import InputError
from nettrim.models.batches import Batch
from nettrim.models.onnx_edit import Editor
from nettrim.models.onnx_file import check, first_line, read_model
from nettrim.models.onnx_graph import Graph, stored_floats
from nettrim.models.onnx_import import onnx
from nettrim.models.onnx_run import Chunk, Part, as_batch, chunks
from nettrim.models.onnx_shrink_read import OnnxLayer, OnnxReading, read_graph
from nettrim.models.shrink import ShrunkLayer, Summary
from nettrim.models.shrink_channels import Kept, Solution

_TOLERANCE = 1e-4  # relative, of float32 sums in another order
_SPREADS = (1.0, 9.0, 0.01, 100.0)  # of the random inputs on which a result is compared
_ATTEMPTS = ((True, True), (False, True), (False, False))
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)


@dataclass(frozen=True, eq=False)
class ShrunkOnnx:
    """A smaller ONNX model (a checked ModelProto) and what was done."""

    model: Any
    summary: Summary


def shrink_onnx(
    source: str | os.PathLike[str] | Any,
    example: Any = None,
    *,
    pick_inputs: bool = True,
    allow_external_data: bool = False,
) -> ShrunkOnnx:
    """The same function as a smaller dense ONNX model, equal to rounding; see `nettrim.models.shrink.shrink`.

    source: a path or a ModelProto, which is not changed. example: one batch as the model takes it (a tensor, an array,
    a dict of them); random numbers of the declared shapes where it is left out. Layers are Gemm, MatMul and Conv; what
    cannot be proved removable stays. The result is compared with the model in ONNX Runtime on the example and on random
    inputs; where they differ less is removed, at worst nothing, which `summary.note` says. Raises ModelError for a file
    that is no sound model, DataError for an example that it cannot take.
    """
    model = read_model(source, allow_external_data=allow_external_data)
    size = _size(model)
    graph = Graph(model)
    given = None if example is None else _chunk(graph, example)
    try:
        feeds = given or random_feeds(graph, np.random.default_rng(0), None)
        values = _all_values(model, graph, feeds)
    except Exception as error:
        if given is not None:
            raise
        return _unchanged(model, size, f"it could not be run on random inputs ({first_line(error)})")
    note = "a smaller network would have differed from the original"
    for free_sizes, picking in _ATTEMPTS:
        try:
            found = _attempt(model, values, free_sizes=free_sizes, picking=picking and pick_inputs)
            if _same_function(model, found.model, graph, feeds):
                return found
        except InputError as error:
            note = f"a smaller network was not sound: {first_line(error)}"
    return _unchanged(model, size, note)


def _all_values(model: Any, graph: Graph, feeds: Chunk) -> dict[str, np.ndarray]:
    """What every node makes on a batch; what Constant nodes hold is read, in types that ONNX Runtime cannot return."""
    stored = {name: graph.stored_array(name) for name in graph.constants}
    made = [name for node in graph.nodes for name in node.output if name and stored.get(name) is None]
    return {**{n: array for n, array in stored.items() if array is not None}, **Part(model, made, threads=1).run(feeds)}


def _attempt(model: Any, values: dict[str, np.ndarray], *, free_sizes: bool, picking: bool) -> ShrunkOnnx:
    smaller = onnx.ModelProto()
    smaller.CopyFrom(model)
    editor = Editor(smaller)
    reading = read_graph(editor.graph, values, free_sizes=free_sizes)
    solution = reading.channels.solve()
    layers = solution.layers(picking=picking)
    if any(_changed(layer, layers[name]) for name, layer in reading.layers.items()):
        _Writer(editor, reading, solution).write(layers)
        editor.finish()
        del smaller.graph.value_info[:]
        check(smaller, "the shrunk model")
    records = [_record(layer, layers[name]) for name, layer in reading.layers.items()]
    return ShrunkOnnx(smaller, Summary(_size(model), _size(smaller), tuple(records), tuple(reading.left.items())))


class _Writer:
    """Puts what is left of each layer into the graph."""

    def __init__(self, editor: Editor, reading: OnnxReading, solution: Solution) -> None:
        self.editor, self.reading, self.solution = editor, reading, solution
        self.taken: dict[tuple[str, int], np.ndarray] = {}  # what an Add behind a MatMul takes over

    def write(self, layers: dict[str, Kept]) -> None:
        for name, layer in self.reading.layers.items():
            if _changed(layer, layers[name]):
                self._layer(layer, layers[name])
        for (output, slot), use in self.reading.vectors.items():
            kept = self.solution.kept(use.value)
            array = use.array if use.array.shape[use.axis] == 1 else np.take(use.array, kept, axis=use.axis)
            extra = self.taken.get((output, slot))
            if array.shape != use.array.shape or extra is not None:
                if extra is not None:
                    shape = [-1 if axis == use.axis % array.ndim else 1 for axis in range(array.ndim)]
                    array = array.astype(np.float64) + extra.reshape(shape)
                self._own(output, slot, array.astype(use.array.dtype))
        for output, (value, place) in self.reading.sizes.items():
            node = self.editor.graph.made_by(output)
            constant = self.editor.graph.constant(node.input[1]) if node is not None else None
            count = len(self.solution.kept(value))
            if constant is not None and constant.array[place] > 0 and constant.array[place] != count:
                sizes = constant.array.copy()
                sizes[place] = count
                self._own(output, 1, sizes)

    def _own(self, output: str, slot: int, array: np.ndarray) -> None:
        node = self.editor.graph.made_by(output)
        assert node is not None
        self.editor.own(node, slot, array, f"{node.input[slot]}_kept", keep=False)

    def _layer(self, layer: OnnxLayer, kept: Kept) -> None:
        node = self.editor.graph.made_by(layer.output)
        assert node is not None
        if kept.gather:
            node = self._pick(layer, kept)
        places = np.isin(kept.rows, kept.held)
        weight = _cut(layer, kept)  # (out, in / groups, ...)
        weight[places] = 0
        if layer.kind != "Conv" and not layer.transposed:
            weight = weight.T
        self.editor.own(node, 1, weight, f"{node.input[1]}_kept", keep=False)
        if layer.kind == "Conv" and kept.groups != layer.groups:
            next(a for a in node.attribute if a.name == "group").i = kept.groups
        shift = kept.shift[kept.rows]
        if layer.kind == "MatMul":
            self._shift_product(layer, kept, np.where(places, kept.level[kept.rows], shift))
        else:
            bias = np.where(places, kept.level[kept.rows], layer.bias[kept.rows] + shift)
            self._set_bias(node, layer, bias)

    def _set_bias(self, node: Any, layer: OnnxLayer, bias: np.ndarray) -> None:
        present = len(node.input) > 2 and bool(node.input[2])
        if not present and not bias.any():
            return
        for index in reversed(range(len(node.attribute))):
            if node.attribute[index].name == "beta":
                del node.attribute[index]
        if len(node.input) < 3:
            node.input.append("")
        base = f"{node.input[2]}_kept" if present else f"{layer.name}.bias"
        self.editor.own(node, 2, bias.astype(layer.weight.dtype), base, keep=False)

    def _shift_product(self, layer: OnnxLayer, kept: Kept, shift: np.ndarray) -> None:
        """A MatMul has no bias: the Add behind it takes the shift, or a new one does."""
        if not shift.any():
            return
        use = self.editor.graph.only_use(layer.output)
        if use is not None:
            adder = self.editor.graph.nodes[use.node]
            key = (adder.output[0], 1 - use.slot)
            vector = self.reading.vectors.get(key)
            if adder.op_type == "Add" and vector is not None and vector.array.shape[vector.axis] > 1:
                self.taken[key] = shift
                return
        node = self.editor.graph.made_by(layer.output)
        assert node is not None
        inner, name = self.editor.fresh(f"{layer.output}_product"), self.editor.fresh(f"{layer.name}.bias")
        self.editor.store(name, shift.astype(layer.weight.dtype))
        node.output[0] = inner
        added = onnx.helper.make_node("Add", [inner, name], [layer.output], name=self.editor.fresh(f"{layer.name}.add"))
        self.editor.insert(inner, added)

    def _pick(self, layer: OnnxLayer, kept: Kept) -> Any:
        """A Gather of the inputs that are still read, in front of the layer, whose node is returned."""
        nodes = self.editor.model.graph.node
        place = next(i for i, node in enumerate(nodes) if layer.output in node.output)
        columns, picked = self.editor.fresh(f"{layer.name}.columns"), self.editor.fresh(f"{layer.source}_picked")
        self.editor.store(columns, kept.columns.astype(np.int64))
        name = self.editor.fresh(f"{layer.name}.pick")
        gather = onnx.helper.make_node("Gather", [layer.source, columns], [picked], name=name, axis=layer.axis)
        nodes[place].input[0] = picked
        nodes.insert(place, gather)
        self.editor.refresh()
        return self.editor.graph.made_by(layer.output)


def _cut(layer: OnnxLayer, kept: Kept) -> np.ndarray:
    weight = layer.weight  # (out, in / groups, ...)
    inside = weight.shape[1]
    if layer.groups > 1 and inside == 1:
        return weight[kept.rows].copy()
    mine = kept.columns.reshape(kept.groups, -1) - np.arange(kept.groups)[:, None] * inside
    group = kept.rows // (weight.shape[0] // kept.groups)
    return weight[kept.rows[:, None], mine[group]]


def _changed(layer: OnnxLayer, kept: Kept) -> bool:
    inputs = layer.weight.shape[1] * layer.groups
    return len(kept.rows) < len(layer.weight) or len(kept.columns) < inputs or bool(kept.shift.any())


def _record(layer: OnnxLayer, kept: Kept) -> ShrunkLayer:
    before = tuple(layer.weight.shape)
    after = (len(kept.rows), len(kept.columns) // (kept.groups if layer.kind == "Conv" else 1), *before[2:])
    picked = (len(kept.columns), before[1]) if kept.gather else None
    return ShrunkLayer(layer.name, layer.kind, before, after, **kept.lost, inputs_picked=picked)


def _unchanged(model: Any, size: int, note: str) -> ShrunkOnnx:
    return ShrunkOnnx(model, Summary(size, size, (), (), f"left as it is: {note}"))


def _same_function(one: Any, other: Any, graph: Graph, feeds: Chunk) -> bool:
    random = np.random.default_rng(1)
    parts = [Part(model, list(graph.outputs), threads=1) for model in (one, other)]
    half = any(value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16 for value in graph.inputs)
    spreads = _SPREADS[:-1] if half else _SPREADS  # the largest would overflow
    for chunk in (feeds, *(random_feeds(graph, random, feeds, spread) for spread in spreads)):
        wanted, got = (part.run(chunk) for part in parts)
        for name in graph.outputs:
            a, b = np.asarray(wanted[name]), np.asarray(got[name])
            if a.dtype.kind != "f":
                continue  # labels may flip between equal scores; the scores are compared
            if a.shape != b.shape or not np.array_equal(np.isnan(a), np.isnan(b)):
                return False
            tolerance = 5e-2 if a.dtype == np.float16 else _TOLERANCE
            difference = np.abs(np.nan_to_num(a.astype(np.float64)) - np.nan_to_num(b.astype(np.float64)))
            if a.size and difference.max() > tolerance * (np.abs(np.nan_to_num(a)).max() + 1e-12):
                return False
    return True


def _chunk(graph: Graph, example: Any) -> Chunk:
    item = as_batch(example, len(graph.inputs))
    if isinstance(item, Batch):
        batch = item
    elif isinstance(item, dict):
        kwargs = {name: entry if isinstance(entry, Tensor) else np.asarray(entry) for name, entry in item.items()}
        batch = Batch((), kwargs, None, next((len(entry) for entry in kwargs.values() if entry.ndim), 1))
    else:
        batch = Batch((item,), {}, None, len(item))
    return next(chunks(graph.inputs, batch))


def random_feeds(graph: Graph, random: np.random.Generator, like: Chunk | None, spread: float = 1.0) -> Chunk:
    """Random numbers in place of floating inputs, of the shapes of a chunk or as declared (2 where that is free)."""
    feeds: dict[str, np.ndarray] = {}
    fixed = [
        value.type.tensor_type.shape.dim[0].dim_value for value in graph.inputs if value.type.tensor_type.shape.dim
    ]
    samples = max([size for size in fixed if size > 0][:1], default=2)
    for value in graph.inputs:
        kind = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        sizes = [samples, *[2] * len(kind.shape.dim)]
        declared = [d.dim_value if d.dim_value > 0 else size for d, size in zip(kind.shape.dim, sizes, strict=False)]
        shape = like.feeds[value.name].shape if like is not None else tuple(declared)
        if kind.elem_type in _FLOATS:
            feeds[value.name] = np.asarray(random.standard_normal(shape) * spread).astype(dtype)
        else:
            feeds[value.name] = like.feeds[value.name] if like is not None else np.zeros(shape, dtype)
    size = next((len(array) for array in feeds.values() if array.ndim), 1)
    return Chunk(feeds, size, size)


def _size(model: Any) -> int:
    """Floating numbers stored in a model."""
    return sum(array.size for array in stored_floats(model).values())
