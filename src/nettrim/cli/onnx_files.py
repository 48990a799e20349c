"""ONNX files as `eval` and `bench` see them: something to run, with weights to count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nettrim.cli.opening import Opened
from nettrim.cli.output import make_parent
from nettrim.models.batches import normalise_batches
from nettrim.models.onnx_file import read_model
from nettrim.models.onnx_graph import main_output, to_array
from nettrim.models.onnx_run import Part, chunks
from nettrim.models.onnx_shrink import shrink_onnx
from nettrim.models.onnx_write import write_model
from nettrim.models.shrink import Summary
from nettrim.onnx_saving import read_onnx_trim


def read_onnx(opened: Opened) -> Any:
    """A checked model with all its tensors inside. Raises ModelError."""
    assert opened.path is not None
    return read_model(opened.path, allow_external_data=opened.external, allowing="say --allow-external-data")


def predict_onnx(model: Any, inputs: Any) -> Tensor:
    """The first floating output of an ONNX model on all samples, by ONNX Runtime."""
    output = main_output(model)
    part = Part(model, [output])
    found = []
    for batch in normalise_batches(inputs):
        for chunk in chunks(part.inputs, batch):
            found.append(torch.from_numpy(chunk.trim(part.run(chunk)[output]).copy()))
    return torch.cat(found) if found[0].dim() else torch.stack(found)


def weights_onnx(model: Any) -> list[Tensor]:
    """The stored floating tensors of two dimensions or more."""
    arrays = [to_array(tensor) for tensor in model.graph.initializer]
    for node in model.graph.node:
        if node.op_type == "Constant":
            arrays += [to_array(entry.t) for entry in node.attribute if entry.name == "value"]
    return [torch.from_numpy(array != 0) for array in arrays if array is not None and array.ndim > 1 and _real(array)]


def _real(array: Any) -> bool:
    return array.dtype.kind in "fV"  # V: types that NumPy has no name for, such as bfloat16


def shrink_to(directory: Path, example: Any, target: Path, *, pick_inputs: bool = True) -> Summary:
    """Write the smaller form of the ONNX file of a trim, whose files are as they were saved."""
    if example is not None:
        example = normalise_batches(example)[0]
    found = shrink_onnx(read_onnx_trim(directory).model, example, pick_inputs=pick_inputs)
    make_parent(target)
    write_model(found.model, target, lambda model: None)
    return found.summary
