"""PyTorch modules as ONNX models, and ONNX Runtime as one of the engines that are measured."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nettrim.errors import DataError, InputError, MissingExtraError, ModelError, should
from nettrim.files import atomic_write
from nettrim.gain.chain import Chain
from nettrim.models.batches import Batch, normalise_batches
from nettrim.models.onnx_file import check, first_line
from nettrim.models.onnx_graph import Graph
from nettrim.models.onnx_import import onnx
from nettrim.models.onnx_run import chunks, open_session
from nettrim.models.onnx_write import clean
from nettrim.models.running import deep_copy, evaluating

_OPSET = 17
_NODES = {"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh"}


def export_onnx(module: nn.Module, example: Any, path: str | os.PathLike[str] | None = None) -> Any:
    """A module as a checked ONNX model with a free batch size, and as a file when `path` is given.

    example: one batch as the module takes it. Needs the package `onnxscript`. Raises MissingExtraError without it,
    ModelError when PyTorch cannot export the module.
    """
    batch = example if isinstance(example, Batch) else normalise_batches([example], model=module)[0]
    few = batch.pick(torch.arange(max(2, min(batch.size, 4))) % batch.size)  # one sample would be taken for a constant
    try:
        program = _exported(deep_copy(module).cpu(), few.to("cpu"))
        model = clean(program.model_proto)
    except ModuleNotFoundError as error:
        raise MissingExtraError((error.name or "onnxscript").partition(".")[0], "onnx") from error
    except Exception as error:
        raise ModelError(should("model", "one that PyTorch can export to ONNX", first_line(error))) from error
    check(model, "the exported model")
    if path is not None:
        try:
            atomic_write(Path(path), model.SerializeToString())
        except OSError as error:
            raise InputError(should("path", "a place that can be written", f"'{path}' ({error.strerror})")) from error
    return model


def chain_model(chain: Chain) -> Any:
    """A plain chain as an ONNX model of Gemm nodes: what an exporter would write, without one."""
    nodes, tensors, value = [], [], "inputs"
    for index, step in enumerate(chain):
        if step.columns is not None:
            tensors.append(onnx.numpy_helper.from_array(step.columns.numpy(), f"columns{index}"))
            nodes.append(onnx.helper.make_node("Gather", [value, f"columns{index}"], [f"picked{index}"], axis=1))
            value = f"picked{index}"
        for name, tensor in (("weight", step.weight), ("bias", step.bias)):
            tensors.append(onnx.numpy_helper.from_array(tensor.contiguous().numpy(), f"{name}{index}"))
        product = [value, f"weight{index}", f"bias{index}"]
        nodes.append(onnx.helper.make_node("Gemm", product, [f"product{index}"], transB=1))
        value = f"product{index}"
        if step.activation:
            nodes.append(onnx.helper.make_node(_NODES[step.activation], [value], [f"response{index}"]))
            value = f"response{index}"
    kind = onnx.TensorProto.FLOAT
    features = chain[0].weight.shape[1] if chain[0].columns is None else None
    inputs = [onnx.helper.make_tensor_value_info("inputs", kind, ["samples", features])]
    outputs = [onnx.helper.make_tensor_value_info(value, kind, ["samples", len(chain[-1].weight)])]
    graph = onnx.helper.make_graph(nodes, "chain", inputs, outputs, initializer=tensors)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", _OPSET)], ir_version=8)


def onnx_runner(model: Any, threads: int) -> Callable[[dict[str, np.ndarray]], Any]:
    """A function that runs a model in ONNX Runtime."""
    session = open_session(model, threads=threads)
    return lambda feeds: session.run(None, feeds)


def feeds_of(model: Any, batch: Batch) -> dict[str, np.ndarray]:
    """A batch's tensors under the names of the model's inputs, flattened where the model wants (samples, features).

    Names that the model does not know stand for its inputs in their order. Raises DataError for more or fewer tensors
    than inputs, and for shapes and types that the model does not declare.
    """
    inputs = Graph(model, ranks={}).inputs
    names = [value.name for value in inputs]
    given = {name: leaf for name, leaf in batch.kwargs.items() if isinstance(leaf, Tensor)}
    if not given.keys() <= set(names):
        given = dict(zip(names, given.values(), strict=False)) if len(given) == len(names) else given
    arrays = [leaf for leaf in batch.args if isinstance(leaf, Tensor)]
    if len(arrays) + len(given) != len(names):
        cure = "Give one array each, in this order or by these names (in a file: inputs.NAME)."
        be = f"one array for each input of the model ({', '.join(names) or 'it has none'})"
        raise DataError(should("example", be, f"{len(arrays) + len(given)}", cure))
    free = [name for name in names if name not in given]
    given.update(zip(free, arrays, strict=False))
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in inputs}
    for name, tensor in given.items():
        if ranks.get(name) == 2 and tensor.dim() > 2:
            given[name] = tensor.reshape(len(tensor), -1)
    chunk = next(chunks(inputs, Batch((), given, None, batch.size)))
    return chunk.feeds


def fixed_batch(model: Any) -> int | None:
    """The batch size a model insists on, None when it takes any."""
    stored = {tensor.name for tensor in model.graph.initializer}
    shapes = [value.type.tensor_type.shape.dim for value in model.graph.input if value.name not in stored]
    fixed = [dims[0].dim_value for dims in shapes if len(dims) and dims[0].dim_value > 0]
    return fixed[0] if fixed else None


def _exported(module: nn.Module, batch: Batch) -> Any:
    batch_axis = torch.export.Dim("samples")

    def shape(leaf: Any) -> Any:
        return {0: batch_axis} if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == batch.size else None

    shapes = (*(shape(leaf) for leaf in batch.args), *(shape(leaf) for leaf in batch.kwargs.values()))
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), evaluating(module, 0):
            warnings.simplefilter("ignore")
            return torch.onnx.export(
                module, batch.args, kwargs=batch.kwargs, dynamo=True, dynamic_shapes=shapes, verbose=False
            )
    finally:
        logging.disable(level)
