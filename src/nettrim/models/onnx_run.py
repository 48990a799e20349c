"""Running ONNX models with ONNX Runtime: sessions on parts of a model, feeds, and batches of fixed size."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nettrim.errors import DataError, ModelError, near, should
from nettrim.models.batches import Batch
from nettrim.models.onnx_file import first_line
from nettrim.models.onnx_graph import Graph, to_array
from nettrim.models.onnx_import import onnx, onnxruntime

_IR_LIMIT = re.compile(r"max supported IR version: (\d+)")
_IN_FLOAT32 = "Its CPU kernels do not compute in bfloat16: keep weights in it behind a Cast, or export in float32."
_OPSET_LIMIT = re.compile(r"support for domain ai\.onnx is till opset (\d+)")


@dataclass(frozen=True, eq=False)
class Chunk:
    """One run's feeds; only the first `kept` of its `size` samples are real, the rest repeats them."""

    feeds: dict[str, np.ndarray]
    size: int
    kept: int

    def trim(self, array: np.ndarray) -> np.ndarray:
        """Drop the padding from a value whose first axis counts samples (times anything)."""
        if self.kept == self.size or array.ndim == 0 or array.shape[0] % self.size:
            return array
        return array[: array.shape[0] // self.size * self.kept]


class Part:
    """The part of a model that some values need, ready to run."""

    def __init__(self, model: Any, values: Sequence[str], *, threads: int = 0) -> None:
        graph = Graph(model, ranks={})
        wanted = list(dict.fromkeys(values))
        self._made = [value for value in wanted if value in graph.producer]
        self._stored = {v: to_array(graph.initializers[v]) for v in wanted if v in graph.initializers}
        self.inputs = graph.inputs
        self._session = open_session(_cut(model, graph, self._made), threads=threads) if self._made else None
        self._needed = {value.name for value in self._session.get_inputs()} if self._session is not None else set()

    def run(self, chunk: Chunk) -> dict[str, np.ndarray]:
        """The values for one chunk, padding included. Raises DataError when the model cannot take it."""
        found: dict[str, Any] = {**chunk.feeds, **self._stored}
        if self._session is not None:
            feeds = {name: array for name, array in chunk.feeds.items() if name in self._needed}
            try:
                results = self._session.run(self._made, feeds)
            except Exception as error:
                shapes = " and ".join(f"{name} {array.shape}" for name, array in feeds.items())
                raise DataError(
                    should("data", "batches that the model takes", f"{shapes}: ONNX Runtime says {first_line(error)}")
                ) from error
            found.update(zip(self._made, results, strict=True))
        return found


def open_session(model: Any, *, threads: int = 0) -> Any:
    """A CPU session on a model in memory: no custom operators, no files.

    A format or operator-set version newer than ONNX Runtime knows is lowered on a copy when nothing in
    the model needs it. Raises ModelError when ONNX Runtime cannot run the model.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # quantised operators that stand in for several nodes depend on which values are asked for, and compute other ones
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # waiting threads leave the cores alone
    attempts = 0
    while True:
        try:
            data = model.SerializeToString()
        except Exception as error:
            raise ModelError(should("model", "at most 2 GB in one piece", "a larger one")) from error
        try:
            return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            attempts += 1
            lowered = _lowered(model, str(error)) if attempts <= 2 else None
            if lowered is None:
                cure = _IN_FLOAT32 if _computes_in_bfloat16(model) else ""
                raise ModelError(should("model", "one that ONNX Runtime can run", first_line(error), cure)) from error
            model = lowered


def _computes_in_bfloat16(model: Any) -> bool:
    return any(value.type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16 for value in model.graph.input)


def chunks(inputs: Sequence[Any], batch: Batch) -> Iterator[Chunk]:
    """A batch as feeds, in pieces of the model's batch size where that is fixed.

    `inputs` are the graph's declared inputs. Raises DataError for missing or unknown names and for shapes
    or types that the model does not take.
    """
    feeds = {value.name: _as_declared(value, array) for value, array in _assigned(inputs, batch)}
    size = batch.size
    rows = {name for name, array in feeds.items() if array.ndim and len(array) == size}
    fixed = [d for v in inputs if v.name in rows and (d := _fixed(v, 0)) is not None]
    step = min(fixed, default=size)
    if len(set(fixed)) > 1 or step == size:
        yield Chunk(feeds, size, size)
        return
    for start in range(0, size, step):
        kept = min(step, size - start)
        pick = start + np.arange(step) % kept
        yield Chunk({n: a[pick] if n in rows else a for n, a in feeds.items()}, step, kept)


def _assigned(inputs: Sequence[Any], batch: Batch) -> list[tuple[Any, np.ndarray]]:
    """Which array goes to which input: by name, or by position."""
    names = [value.name for value in inputs]
    if len(inputs) == 1 and len(batch.kwargs) == 1 and not batch.args:
        return [(inputs[0], _array(next(iter(batch.kwargs.values()))))]
    unknown = [name for name in batch.kwargs if name not in names]
    if unknown:
        raise DataError(should("data", "named like the model's inputs", repr(unknown[0]), near(unknown[0], names)))
    if len(batch.args) > len(inputs):
        raise DataError(should("data", f"batches of {len(inputs)} inputs", f"{len(batch.args)} arrays"))
    given = {**dict(zip(names, batch.args, strict=False)), **batch.kwargs}
    missing = [name for name in names if name not in given]
    if missing:
        raise DataError(should("data", f"batches with the inputs {', '.join(names)}", f"none for {missing[0]!r}"))
    return [(value, _array(given[value.name])) for value in inputs]


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def _as_declared(value: Any, array: np.ndarray) -> np.ndarray:
    """An array in the type an input declares, after checking that the shape fits."""
    kind = value.type.tensor_type
    declared = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    if array.dtype != declared:
        if np.issubdtype(declared, np.integer) and not np.issubdtype(array.dtype, np.integer) and array.dtype != bool:
            raise DataError(should(value.name, f"whole numbers ({declared})", f"{array.dtype}"))
        array = array.astype(declared)
    if not kind.HasField("shape"):
        return np.asarray(array, order="C")
    dims = kind.shape.dim
    wrong = len(dims) != array.ndim or any(
        (size := _fixed(value, axis)) is not None and size != array.shape[axis] for axis in range(1, array.ndim)
    )
    if wrong:
        expected = ", ".join(str(d.dim_value) if d.dim_value > 0 else (d.dim_param or "any") for d in dims)
        raise DataError(should(value.name, f"of shape ({expected})", f"{array.shape}"))
    return np.asarray(array, order="C")


def _fixed(value: Any, axis: int) -> int | None:
    """The declared size of an axis, None when it is free."""
    dims = value.type.tensor_type.shape.dim
    if axis >= len(dims) or not dims[axis].HasField("dim_value") or dims[axis].dim_value <= 0:
        return None
    return int(dims[axis].dim_value)


def _cut(model: Any, graph: Graph, values: Sequence[str]) -> Any:
    """A model of only those nodes that the values need."""
    part = onnx.ModelProto(ir_version=model.ir_version)
    part.opset_import.extend(model.opset_import)
    part.graph.name = model.graph.name or "graph"
    nodes = [graph.nodes[index] for index in graph.ancestors(values)]
    part.graph.node.extend(nodes)
    kept = {part.graph.node[i].output[0] for i in range(len(nodes))}
    read = {name for name, uses in graph.consumers.items() if any(graph.nodes[u.node].output[0] in kept for u in uses)}
    part.graph.initializer.extend(t for t in model.graph.initializer if t.name in read)
    part.graph.sparse_initializer.extend(t for t in model.graph.sparse_initializer if t.values.name in read)
    part.graph.input.extend(v for v in model.graph.input if v.name in read)
    part.graph.output.extend(onnx.ValueInfoProto(name=value) for value in values)
    return part


def _lowered(model: Any, message: str) -> Any | None:
    """A copy with an older version stamp that means the same, None when there is none."""
    version, opset = _IR_LIMIT.search(message), _OPSET_LIMIT.search(message)
    if version is None and opset is None:
        return None
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if version is not None:
        copy.ir_version = int(version.group(1))
    try:
        if opset is not None:
            copy = _older(copy, int(opset.group(1)))
        onnx.checker.check_model(_with_typed_outputs(copy).SerializeToString())
    except Exception:
        return None
    return copy


def _older(model: Any, version: int) -> Any:
    """In an older operator set: restamped where every node is the same in it, else converted by ONNX."""
    entry = next(entry for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    needed = _needed_opset(model.graph, entry.version)
    if needed is not None and needed <= version:
        entry.version = version
        return model
    converted = onnx.version_converter.convert_version(_with_typed_outputs(model), version)
    del converted.graph.output[:]
    converted.graph.output.extend(model.graph.output)
    return converted


def _needed_opset(graph: Any, version: int) -> int | None:
    """The oldest operator set in which every node means what it means in this one."""
    needed = 1
    for node in graph.node:
        if node.domain not in ("", "ai.onnx"):
            continue
        try:
            needed = max(needed, onnx.defs.get_schema(node.op_type, version, "").since_version)
        except Exception:
            return None
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                below = _needed_opset(inner, version)
                if below is None:
                    return None
                needed = max(needed, below)
    return needed


def _with_typed_outputs(model: Any) -> Any:
    """The checker wants typed outputs; the parts run here leave the types to ONNX Runtime."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in copy.graph.output:
        if not value.HasField("type"):
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, []))
    return copy


def as_batch(item: Any, inputs: int) -> Any:
    """Several arrays for as many graph inputs are a batch without labels; everything else is left to `batches`."""
    if isinstance(item, tuple | list) and len(item) == inputs > 1:
        args = tuple(torch.as_tensor(part) for part in item)
        return Batch(args, {}, None, len(args[0]) if args[0].dim() else 1)
    return item
