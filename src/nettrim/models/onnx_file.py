"""Reading ONNX files nobody vouches for: bytes to a checked, self-contained ModelProto."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from nettrim.errors import ModelError, should
from nettrim.models.onnx_import import onnx

MAX_BYTES = 2**31 - 1  # protobuf's own limit, and what ONNX Runtime takes as bytes
_NOISE = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : |/onnxruntime_src/\S+:\d+ .*?\) (?=[A-Z])")  # C++ signatures
_PICKLE, _ZIP = b"\x80", b"PK"


def operations_digest(model: onnx.ModelProto) -> str:
    """SHA-256 of a model's nodes, inputs and outputs: all but the tensors it stores."""
    sha = hashlib.sha256()
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, *model.opset_import):
        sha.update(part.SerializeToString(deterministic=True))
    return sha.hexdigest()


def read_model(
    source: str | os.PathLike[str] | onnx.ModelProto,
    *,
    allow_external_data: bool = False,
    allowing: str = "pass allow_external_data=True",
) -> Any:
    """A private, checked copy of an ONNX model with all its tensors inside.

    Nothing outside the file is opened unless `allow_external_data` is true, and then only regular files
    inside the model's own folder. `allowing` says how, for a message. Raises ModelError for anything that is not a
    sound model.
    """
    if isinstance(source, onnx.ModelProto):
        model, folder = onnx.ModelProto(), None
        model.CopyFrom(source)
    else:
        path = Path(source)
        model, folder = _parse(path), path.parent
    if not model.graph.node:
        raise ModelError(should("model", "an ONNX model with at least one node", _name(source)))
    external = [tensor for tensor in all_tensors(model) if tensor.data_location == onnx.TensorProto.EXTERNAL]
    if external:
        _load_external(model, external, folder, allow_external_data, allowing)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    _complete(model)
    _name_apart(model.graph)
    check(model, _name(source))
    return model


def check(model: Any, name: str) -> None:
    """Run ONNX's checker on the whole model. Raises ModelError in one sentence.

    Outputs whose number of dimensions cannot be known have no shape, which the checker alone minds.
    """
    bare = _bare_outputs(model)
    for value in bare:
        value.type.tensor_type.shape.SetInParent()
    try:
        data = model.SerializeToString()
    except Exception as error:
        raise ModelError(should("model", "at most 2 GB in one piece", f"{name}, which is larger")) from error
    finally:
        for value in bare:
            value.type.tensor_type.ClearField("shape")
    try:
        onnx.checker.check_model(data)
    except Exception as error:
        raise ModelError(should("model", "a valid ONNX model", f"{name}: {first_line(error)}")) from error


def first_line(error: BaseException) -> str:
    """The part of a foreign error message worth repeating: its first line, shortened."""
    lines = [line.strip() for line in _NOISE.sub("", str(error)).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text[:300].rstrip(".")


def all_tensors(model: Any) -> Iterator[Any]:
    """Every TensorProto of a model: initializers and attributes, in sub-graphs and functions too."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)


def _graph_tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for sparse in [attribute.sparse_tensor, *attribute.sparse_tensors]:
            yield from (sparse.values, sparse.indices)
        if attribute.HasField("g"):
            yield from _graph_tensors(attribute.g)
        for graph in attribute.graphs:
            yield from _graph_tensors(graph)


def _parse(path: Path) -> Any:
    try:
        info = path.stat()
    except OSError as error:
        raise ModelError(should("model", "the path of an ONNX file", f"{str(path)!r}: {error.strerror}")) from error
    if not stat.S_ISREG(info.st_mode):
        raise ModelError(should("model", "the path of an ONNX file", f"{str(path)!r}, which is not a regular file"))
    if not 0 < info.st_size <= MAX_BYTES:
        raise ModelError(should("model", f"a file of 1 to {MAX_BYTES} bytes", f"{path.name!r} of {info.st_size} bytes"))
    data = path.read_bytes()
    try:
        return onnx.load_model_from_string(data)
    except Exception as error:
        kind = "truncated or another format"
        if data[:1] == _PICKLE:
            kind = "it looks like a Python pickle, which nettrim never opens because pickles run code"
        elif data[:2] == _ZIP:
            kind = "it looks like a zip archive (a PyTorch file?), which nettrim does not open as a model"
        raise ModelError(should("model", "an ONNX file", f"{path.name!r}, which is not one ({kind})")) from error


def _complete(model: Any) -> None:
    """Give outputs without a shape the inferred one: some exporters leave it out, and the checker wants it."""
    bare = [
        v for v in model.graph.output if v.type.HasField("tensor_type") and not v.type.tensor_type.HasField("shape")
    ]
    if not bare:
        return
    try:
        found = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.output}
    except Exception:  # the checker will say what is wrong with it
        return
    for value in bare:
        if found[value.name].type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.CopyFrom(found[value.name].type.tensor_type.shape)


def _name_apart(graph: Any) -> None:
    """Give nodes that share a name different ones: the checker lets them pass, ONNX Runtime does not."""
    taken = {node.name for node in graph.node}
    seen: set[str] = set()
    for node in graph.node:
        base, count = node.name, 1
        while node.name in seen:
            count += 1
            candidate = f"{base}_{count}"
            if candidate not in taken:
                node.name = candidate
                taken.add(candidate)
        if node.name:
            seen.add(node.name)


def _bare_outputs(model: Any) -> list[Any]:
    tensors = [value for value in model.graph.output if value.type.HasField("tensor_type")]
    return [value for value in tensors if not value.type.tensor_type.HasField("shape")]


def _load_external(model: Any, tensors: list[Any], folder: Path | None, allowed: bool, allowing: str) -> None:
    if not allowed:
        got = f"one with {len(tensors)} tensors in other files"
        raise ModelError(should("model", "self-contained", got, f"If you trust it, {allowing}."))
    if folder is None:
        raise ModelError(should("model", "self-contained, or a path", "a ModelProto with tensors in other files"))
    total = 0
    for tensor in tensors:
        total += _external_size(tensor, folder)
    if total > MAX_BYTES:
        raise ModelError(should("model", "at most 2 GB in all", f"external data of {total} bytes"))
    try:
        onnx.external_data_helper.load_external_data_for_model(model, str(folder))
    except Exception as error:
        raise ModelError(should("model", "readable external data", first_line(error))) from error


def _external_size(tensor: Any, folder: Path) -> int:
    """Bytes one external tensor takes, after making sure it stays inside the model's folder."""
    fields = {entry.key: entry.value for entry in tensor.external_data}
    location = fields.get("location", "")
    relative = PurePosixPath(location)
    inside = bool(location) and not relative.is_absolute() and ".." not in relative.parts and "\\" not in location
    path = folder / relative
    if not inside or not path.resolve().is_relative_to(folder.resolve()):
        raise ModelError(should("model", "one whose external data lies in its own folder", repr(location)))
    try:
        info = path.lstat()
    except OSError as error:
        raise ModelError(should("model", "beside its external data", f"{location!r}: {error.strerror}")) from error
    if not stat.S_ISREG(info.st_mode) or info.st_nlink > 1:
        raise ModelError(should("model", "one whose external data are regular files", f"a link or device {location!r}"))
    try:
        offset, length = int(fields.get("offset") or 0), int(fields.get("length") or -1)
    except ValueError as error:
        raise ModelError(should("model", "one with whole external offsets", f"{location!r}")) from error
    length = info.st_size - offset if length < 0 else length
    if offset < 0 or length < 0 or offset + length > info.st_size:
        raise ModelError(should("model", "one whose external data are complete", f"{location!r}, which is too short"))
    return length


def _name(source: object) -> str:
    return "a ModelProto" if isinstance(source, onnx.ModelProto) else repr(Path(str(source)).name)
