"""ONNX files nobody vouches for: broken, disguised, reaching out of their folder, or telling too much."""

from __future__ import annotations

import importlib
import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from nettrim.errors import MissingExtraError, ModelError  # noqa: E402
from nettrim.models.onnx_file import read_model  # noqa: E402
from nettrim.models.onnx_network import OnnxNetwork  # noqa: E402


def small(weight: Any = None, kind: str = "MatMul", domain: str = "") -> Any:
    tensor = numpy_helper.from_array(np.ones((6, 4), np.float32), "w") if weight is None else weight
    nodes = [helper.make_node(kind, ["x", "w"], ["h"], domain=domain), helper.make_node("Relu", ["h"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])
    opsets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(helper.make_graph(nodes, "g", [x], [y], [tensor]), opset_imports=opsets, ir_version=8)


def refused(path: Any, match: str, **settings: Any) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        OnnxNetwork(path, **settings)
    assert "\n" not in str(caught.value) and "ONNXRuntimeError" not in str(caught.value)


def test_things_that_are_not_models(tmp_path: Path) -> None:
    refused(tmp_path / "none.onnx", "No such file")
    refused(tmp_path, "regular file")
    path = tmp_path / "m.onnx"
    path.write_bytes(b"")
    refused(path, "0 bytes")
    path.write_text("not a model at all, whatever its name says")
    refused(path, "an ONNX file")
    path.write_bytes(pickle.dumps({"weight": [1, 2, 3]}))
    refused(path, "pickle")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"x")
    refused(path, "zip archive")
    path.write_bytes(onnx.ModelProto(ir_version=8).SerializeToString())
    refused(path, "at least one node")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    data = small().SerializeToString()
    path = tmp_path / "m.onnx"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(ModelError):
            OnnxNetwork(path)
    path.write_bytes(data)
    assert len(OnnxNetwork(path).layers) == 1


def test_flipped_bytes_never_escape_as_foreign_errors(tmp_path: Path) -> None:
    data = bytearray(small().SerializeToString())
    rng = np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(data)
        for place in rng.integers(0, len(data), 3):
            broken[place] = rng.integers(0, 256)
        (tmp_path / "m.onnx").write_bytes(broken)
        try:
            network = OnnxNetwork(tmp_path / "m.onnx")
            network.outputs([torch.ones(2, 6)])
        except ValueError as error:  # every error of nettrim's about inputs is one
            assert type(error).__module__ == "nettrim.errors", repr(error)


@pytest.mark.parametrize("dims", [[6, 5], [10**6, 10**6], [-1, 4], [0, 4]])
def test_shapes_that_contradict_the_data(dims: list[int]) -> None:
    tensor = TensorProto(name="w", dims=dims, data_type=TensorProto.FLOAT, raw_data=np.ones(24, np.float32).tobytes())
    refused(small(tensor), "should be")


def test_unknown_operators() -> None:
    refused(small(kind="Teleport"), "valid ONNX model")
    refused(small(kind="Teleport", domain="com.example"), "not a registered")


def external(folder: Path, location: str, *, length: int = 96) -> Path:
    tensor = TensorProto(name="w", dims=[6, 4], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    (folder / "m.onnx").write_bytes(small(tensor).SerializeToString())
    return folder / "m.onnx"


def test_external_data_only_by_permission(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.float32)
    (tmp_path / "w.bin").write_bytes(values.tobytes())
    path = external(tmp_path, "w.bin")
    refused(path, "allow_external_data=True")
    refused(onnx.load(path, load_external_data=False), "or a path", allow_external_data=True)
    network = OnnxNetwork(path, allow_external_data=True)
    np.testing.assert_array_equal(network.layers[0].weight, values.reshape(6, 4).T)
    network.save(tmp_path / "one.onnx")
    (tmp_path / "w.bin").unlink()
    assert len(OnnxNetwork(tmp_path / "one.onnx").layers) == 1
    refused(path, "beside its external data", allow_external_data=True)


def test_external_data_stay_in_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(96))
    for location in ("../secret", str(secret), "..\\secret", "a/../../secret", ""):
        refused(external(folder, location), "own folder", allow_external_data=True)
    (folder / "link").symlink_to(secret)
    refused(external(folder, "link"), "own folder", allow_external_data=True)
    (folder / "inner").symlink_to(tmp_path)
    refused(external(folder, "inner/secret"), "own folder", allow_external_data=True)
    os.link(secret, folder / "hard")
    refused(external(folder, "hard"), "regular files", allow_external_data=True)
    (folder / "short").write_bytes(bytes(95))
    refused(external(folder, "short"), "complete", allow_external_data=True)
    refused(external(folder, "short", length=10**12), "complete", allow_external_data=True)


def test_external_data_of_a_constant_node(tmp_path: Path) -> None:
    tensor = TensorProto(name="k", dims=[6, 4], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/hostname")
    proto = small()
    del proto.graph.initializer[:]
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    refused(tmp_path / "m.onnx", "self-contained")
    refused(tmp_path / "m.onnx", "own folder", allow_external_data=True)


def test_saved_files_tell_nothing_about_the_machine(tmp_path: Path) -> None:
    proto = small()
    trace = 'File "/home/someone/project/train.py", line 3, in forward'
    proto.doc_string = "A network."
    proto.graph.doc_string = f"made by {trace}"
    for key, value in (
        ("classes", "cat, dog"),
        ("source", "/home/someone/project/best.pt"),
        ("s", "C:\\Users\\a\\b.pt"),
    ):
        proto.metadata_props.add(key=key, value=value)
    for part in (proto.graph.node[0], proto.graph.initializer[0], proto.graph.input[0], proto.graph):
        part.doc_string = trace
        part.metadata_props.add(key="pkg.torch.onnx.stack_trace", value=trace)
    OnnxNetwork(proto).save(tmp_path / "m.onnx")
    data = (tmp_path / "m.onnx").read_bytes()
    assert b"someone" not in data and b"Users" not in data and b"stack_trace" not in data
    saved = onnx.load(tmp_path / "m.onnx")
    assert saved.doc_string == "A network." and [entry.key for entry in saved.metadata_props] == ["classes"]


def test_a_failed_save_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"precious")
    network = OnnxNetwork(small())
    batch = [torch.ones(2, 6)]
    honest = network.outputs(batch)
    monkeypatch.setattr(network, "outputs", lambda batches: honest + 1)
    with pytest.raises(ModelError, match="different outputs"):
        network.save(path, batch)
    assert path.read_bytes() == b"precious" and os.listdir(tmp_path) == ["m.onnx"]
    monkeypatch.undo()
    with pytest.raises(ModelError, match="can be written"):
        network.save(tmp_path / "nowhere" / "m.onnx", batch)


def test_the_given_model_is_not_touched() -> None:
    proto = small()
    before = proto.SerializeToString()
    network = OnnxNetwork(proto)
    network.update(network.layers[0].name, torch.zeros(4, 6), torch.ones(4))
    assert proto.SerializeToString() == before
    assert read_model(proto) is not proto


def test_local_functions_are_inlined(tmp_path: Path) -> None:
    body = [helper.make_node("MatMul", ["a", "b"], ["m"]), helper.make_node("Relu", ["m"], ["c"])]
    function = helper.make_function("local", "Dense", ["a", "b"], ["c"], body, [helper.make_opsetid("", 17)])
    node = helper.make_node("Dense", ["x", "w"], ["y"], domain="local")
    proto = small()
    del proto.graph.node[:]
    proto.graph.node.append(node)
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("local", 1))
    network = OnnxNetwork(proto)
    assert [layer.activation for layer in network.layers] == ["relu"]
    torch.testing.assert_close(network.outputs([torch.ones(2, 6)]), torch.full((2, 4), 6.0))


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "nettrim.models.onnx_import")
    with pytest.raises(MissingExtraError, match=r'pip install "nettrim\[onnx\]"'):
        importlib.import_module("nettrim.models.onnx_import")
