"""ONNX files through the public functions: as modules, and as at the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import nettrim
from nettrim.errors import DataError, InputError, ModelError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402  # needs the extra

OPTIONS = {"epsilon": 0.1, "progress": False}


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 4))


def two_inputs(split: bool) -> onnx.ModelProto:
    """y = relu((a - b) W' + c) V', of two inputs, or of b = 0 in one."""
    model = small()
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    stored = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    nodes = [helper.make_node("Sub", ["a", "b"], ["x"])] if split else []
    nodes += [
        helper.make_node("Gemm", ["x" if split else "a", "0.weight", "0.bias"], ["z"], "first", transB=1),
        helper.make_node("Relu", ["z"], ["r"]),
        helper.make_node("Gemm", ["r", "2.weight", "2.bias"], ["y"], "last", transB=1),
    ]
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 12]) for n in ("ab" if split else "a")]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])]
    graph = helper.make_graph(nodes, "small", inputs, outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.fixture
def data() -> torch.Tensor:
    return torch.randn(60, 12, generator=torch.Generator().manual_seed(1))


def predict(model: onnx.ModelProto, **feeds: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {name: tensor.numpy() for name, tensor in feeds.items()})[0]


def weights(model: onnx.ModelProto) -> list[np.ndarray]:
    return [numpy_helper.to_array(tensor) for tensor in model.graph.initializer]


def timeless(report: dict) -> dict:
    for entry in (report, *report["layers"]):
        entry.pop("seconds")
    return report


def test_a_path_a_loaded_model_and_the_command_line_give_one_result(tmp_path: Path, data: torch.Tensor) -> None:
    typer_testing = pytest.importorskip("typer.testing")
    from nettrim.cli import app  # noqa: PLC0415  # needs the extra

    path, file = tmp_path / "small.onnx", tmp_path / "data.npy"
    onnx.save(two_inputs(False), path)
    np.save(file, data.numpy())
    words = ("trim", path, "--data", file, "--epsilon", "0.1", "-o", tmp_path / "cli", "--json", "--quiet")
    result = typer_testing.CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    told = timeless(json.loads(result.stdout))
    for place, model in enumerate((path, str(path), two_inputs(False))):
        trimmed = nettrim.trim(model, data, **OPTIONS)
        assert timeless(trimmed.report.to_dict()) == told
        directory = trimmed.save(tmp_path / f"python{place}")
        assert (directory / "model.onnx").read_bytes() == (tmp_path / "cli" / "model.onnx").read_bytes()
        assert trimmed.model == onnx.load(directory / "model.onnx")


def test_a_file_is_trimmed_as_the_module_it_was_made_from(data: torch.Tensor) -> None:
    model = small()
    one, two = (nettrim.trim(source, data, **OPTIONS) for source in (model, two_inputs(False)))
    for left, right in zip(one.report.layers, two.report.layers, strict=True):
        assert left.objective == pytest.approx(right.objective, rel=1e-3)
    with torch.no_grad():
        np.testing.assert_allclose(one.model(data), predict(two.model, a=data), atol=0.05)


def test_the_given_model_stays_as_it_was(data: torch.Tensor) -> None:
    model = two_inputs(False)
    before = model.SerializeToString()
    assert nettrim.trim(model, data, **OPTIONS).report.sparsity > 0
    assert model.SerializeToString() == before


def test_verify_starts_from_the_directory_or_from_the_model(tmp_path: Path, data: torch.Tensor) -> None:
    model = two_inputs(False)
    directory = nettrim.trim(model, data, **OPTIONS).save(tmp_path / "out")
    assert nettrim.verify(directory, None, data).holds
    assert nettrim.verify(directory, model, data).holds
    model.graph.initializer[0].raw_data = bytes(len(model.graph.initializer[0].raw_data))
    with pytest.raises(ModelError, match="the one that was trimmed"):
        nettrim.verify(directory, model, data)
    with pytest.raises(DataError, match="other data"):
        nettrim.verify(directory, None, data + 1)
    with pytest.raises(InputError, match="onnx.load"):
        nettrim.load(directory, small())


def test_shrinking_keeps_the_function(data: torch.Tensor) -> None:
    trimmed = nettrim.trim(two_inputs(False), data, epsilon=0.9, refit=False, progress=False)
    shrunk = trimmed.shrink()
    assert shrunk.summary.changed
    np.testing.assert_allclose(predict(shrunk.model, a=data), predict(trimmed.model, a=data), atol=1e-5)


def test_an_interrupted_trim_goes_on(tmp_path: Path, data: torch.Tensor) -> None:
    first = nettrim.trim(two_inputs(False), data, checkpoint=tmp_path / "kept", **OPTIONS)
    again = nettrim.trim(two_inputs(False), data, checkpoint=tmp_path / "kept", **OPTIONS)
    assert again.model == first.model
    other = two_inputs(False)
    array = np.full_like(numpy_helper.to_array(other.graph.initializer[1]), 0.5)
    other.graph.initializer[1].CopyFrom(numpy_helper.from_array(array, other.graph.initializer[1].name))
    with pytest.raises(InputError, match="of another model"):
        nettrim.trim(other, data, checkpoint=tmp_path / "kept", **OPTIONS)


@pytest.mark.parametrize("ignore", ["first", "last"])
def test_layers_that_are_left_alone_count_in_the_bound(data: torch.Tensor, ignore: str) -> None:
    """As in the module: with the norm of their weights (in, out) or (out, in)."""
    options = {"epsilon": 0.3, "refit": False, "progress": False}
    one = nettrim.trim(two_inputs(False), data, ignore=ignore, **options).report
    two = nettrim.trim(small(), data, ignore={"first": "0", "last": "2"}[ignore], **options).report
    assert [layer.skipped for layer in one.layers] == [layer.skipped for layer in two.layers]
    assert one.network.bound == pytest.approx(two.network.bound, rel=1e-2)
    assert 0 < one.network.discrepancy <= one.network.bound


@pytest.mark.parametrize(("between", "ignore", "bounded"), [
    ("Softsign", (), True), ("Exp", (), False), ("Exp", "first", True), ("Exp", "last", False)
])  # fmt: skip
def test_a_bound_where_what_stands_between_the_layers_has_a_constant(data: torch.Tensor, between, ignore, bounded):
    """Before the first layer that is trimmed anything may stand."""
    model = two_inputs(False)
    model.graph.node[1].op_type = between
    network = nettrim.trim(model, data, ignore=ignore, **OPTIONS).report.network
    assert (network.bound is not None) == bounded
    if bounded:
        assert 0 < network.discrepancy <= network.bound
    else:
        assert "Exp" in network.bound_reason


def bfloat16(cast: bool) -> onnx.ModelProto:
    """`two_inputs(False)` with its weights in bfloat16, computing in float32 behind casts or in bfloat16."""
    model = two_inputs(False)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.BFLOAT16, array.shape, array.ravel()))
    if not cast:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.elem_type = TensorProto.BFLOAT16
        return model
    casts = [
        helper.make_node("Cast", [t.name], [f"{t.name}.32"], to=TensorProto.FLOAT) for t in model.graph.initializer
    ]
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = f"{name}.32" if "." in name else name
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def test_weights_kept_in_bfloat16(tmp_path: Path, data: torch.Tensor) -> None:
    model = bfloat16(True)
    trimmed = nettrim.trim(model, data, **OPTIONS)
    before, after = predict(model, a=data), predict(trimmed.model, a=data)
    assert trimmed.report.certified and trimmed.report.sparsity > 0
    notes = trimmed.report.to_dict()["notes"]
    assert any(note.startswith("2 weights, the first that of first, were stored in bfloat16") for note in notes)
    assert 0 < np.linalg.norm(after - before) / np.linalg.norm(before) <= trimmed.report.network.bound * 1.2
    assert nettrim.verify(trimmed.save(tmp_path / "out"), model, data).holds


def test_computing_in_bfloat16_is_refused(data: torch.Tensor) -> None:
    with pytest.raises(ModelError, match="do not compute in bfloat16"):
        nettrim.trim(bfloat16(False), data, **OPTIONS)


@pytest.mark.parametrize("form", ["dict", "tuples", "whole", "labelled"])
def test_several_inputs_in_any_form(data: torch.Tensor, form: str) -> None:
    a, b = data + 1, torch.ones_like(data)
    labels = torch.zeros(60)
    given = {
        "dict": {"b": b, "a": a},
        "tuples": [(a[:30], b[:30]), (a[30:], b[30:])],
        "whole": (a, b),
        "labelled": [(a, b, labels)],
    }[form]
    one = nettrim.trim(two_inputs(True), given, **OPTIONS)
    two = nettrim.trim(two_inputs(False), data, **OPTIONS)
    for left, right in zip(one.report.layers, two.report.layers, strict=True):
        assert left.objective == pytest.approx(right.objective, rel=1e-3)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("net.pt", "path of an .onnx file"),
        ("absent.onnx", "No such file"),
        (3, "an onnx.ModelProto. Got a int"),
    ],
    ids=["pickle", "absent", "number"],
)
def test_other_models_are_refused(model: object, words: str, data: torch.Tensor) -> None:
    with pytest.raises(ModelError, match=words):
        nettrim.trim(model, data, **OPTIONS)


@pytest.mark.parametrize("seed", range(6))
def test_the_bound_of_a_network_in_float16_leaves_room_for_its_rounding(seed: int) -> None:
    """ONNX Runtime answers in float32 where the file computes in float16."""
    random = np.random.default_rng(seed)
    shapes = {"w": (8, 12), "v": (12, 3)}
    stored = {name: (random.standard_normal(shape) * 0.3).astype(np.float16) for name, shape in shapes.items()}
    _bounded(stored, TensorProto.FLOAT16, [], random.standard_normal((60, 8)).astype(np.float16))


@pytest.mark.parametrize("seed", range(4))
def test_quantised_weights_are_computed_with_alike_in_parts_and_in_the_whole(seed: int) -> None:
    """Operators that ONNX Runtime fuses depend on which values are asked for."""
    random = np.random.default_rng(seed)
    stored = {
        "q": random.integers(-100, 100, (8, 12)).astype(np.int8),
        "scale": np.float32(0.01),
        "zero": np.int8(0),
        "v": random.standard_normal((12, 3)).astype(np.float32),
    }
    first = [helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["w"])]
    _bounded(stored, TensorProto.FLOAT, first, random.standard_normal((60, 8)).astype(np.float32))


def _bounded(stored: dict[str, np.ndarray], kind: int, first: list[onnx.NodeProto], data: np.ndarray) -> None:
    """relu(x w) v, trimmed in cascade, where the bound is sharp: it is not below what is measured."""
    nodes = [
        *first,
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["c"]),
        helper.make_node("MatMul", ["c", "v"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", kind, ["n", 8])]
    outputs = [helper.make_tensor_value_info("y", kind, ["n", 3])]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "two", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    network = nettrim.trim(model, data, scheme="cascade", holdout=0.0, **OPTIONS).report.network
    assert network.discrepancy <= network.bound
