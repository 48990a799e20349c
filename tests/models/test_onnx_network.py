"""The ONNX front end on hand-made graphs in many exporters' styles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from nettrim.errors import DataError, InputError, ModelError  # noqa: E402
from nettrim.models.onnx_network import OnnxNetwork  # noqa: E402
from nettrim.programs.activations import get_activation  # noqa: E402

RNG = np.random.default_rng(0)


def array(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return (RNG.standard_normal(shape) * 0.5).astype(dtype)


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    name = attributes.pop("name", "")
    domain = attributes.pop("domain", "")
    return helper.make_node(kind, inputs.split(), outputs.split(), name=name, domain=domain, **attributes)


def model(
    nodes: list[Any],
    tensors: dict[str, np.ndarray],
    shape: tuple[Any, ...] = ("N", 6),
    *,
    opset: int = 17,
    ir: int = 8,
    outputs: tuple[str, ...] = ("y",),
    dtype: int = TensorProto.FLOAT,
    listed: bool = False,
    inputs: dict[str, tuple[int, tuple[Any, ...]]] | None = None,
) -> Any:
    wanted = inputs or {"x": (dtype, shape)}
    values = [helper.make_tensor_value_info(name, kind, dims) for name, (kind, dims) in wanted.items()]
    stored = [numpy_helper.from_array(tensor, name) for name, tensor in tensors.items()]
    if listed or ir < 4:
        values += [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in stored]
    results = [helper.make_tensor_value_info(name, dtype, None) for name in outputs]
    graph = helper.make_graph(nodes, "g", values, results, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def run(proto: Any, feeds: dict[str, np.ndarray], names: list[str] | None = None) -> list[np.ndarray]:
    """ONNX Runtime on a model as it is, optionally asking for inner values."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    if names is not None:
        del copy.graph.output[:]
        copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = ort.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(names, feeds)


def verify(proto: Any, x: np.ndarray, tmp_path: Path, *, tolerance: float = 1e-5, **settings: Any) -> OnnxNetwork:
    """Everything a network has to be true to, on one batch `x` of the input "x"."""
    before = proto.SerializeToString()
    network = OnnxNetwork(proto, **settings)
    assert proto.SerializeToString() == before
    batches = [torch.from_numpy(x)]
    expected = run(proto, {"x": x})[0]
    np.testing.assert_allclose(network.outputs(batches), expected, rtol=tolerance, atol=tolerance)
    captured = network.capture(batches, [layer.name for layer in network.layers])
    for layer in network.layers:
        samples = captured[layer.name]
        check_samples(layer, samples, tolerance)
        response = network._sites[layer.name].response
        if response is not None and layer.groups == 1 and len(layer.shape) == 2:
            (truth,) = run(proto, {"x": x}, [response])
            mine = get_activation(layer.activation).apply(samples.preactivations)
            truth = np.swapaxes(truth, -1, -2) if network._sites[layer.name].side == "left" else truth
            np.testing.assert_allclose(mine, truth.reshape(mine.shape), rtol=tolerance, atol=tolerance)
    check_update(network, batches, tmp_path / "saved.onnx", tolerance, settings)
    return network


def check_samples(layer: Any, samples: Any, tolerance: float) -> None:
    groups = layer.groups
    rows = layer.weight.reshape(groups, -1, layer.weight.shape[1])
    made = torch.einsum("gsi,goi->sgo", samples.inputs, rows).flatten(1)
    for extra in (layer.bias, samples.offset):
        made = made if extra is None else made + extra
    torch.testing.assert_close(made, samples.preactivations, rtol=10 * tolerance, atol=10 * tolerance)


def check_update(network: OnnxNetwork, batches: list[Any], path: Path, tolerance: float, settings: Any) -> None:
    """New weights reach every layer, the file, and nothing else."""
    twin = network.copy()
    before = network.outputs(batches)
    for layer in twin.layers:
        weight = layer.weight * (torch.rand(layer.weight.shape) < 0.5)
        twin.update(layer.name, weight, None if layer.bias is None else layer.bias + 0.25)
    for old, new in zip(network.layers, twin.layers, strict=True):
        assert (new.weight == 0).any() or old.weight.numel() < 4
        if old.bias is not None:
            torch.testing.assert_close(new.bias, old.bias + 0.25, atol=tolerance, rtol=tolerance)
    for layer in twin.layers:
        check_samples(layer, twin.capture(batches, [layer.name])[layer.name], tolerance)
    assert torch.equal(network.outputs(batches), before)
    twin.save(path, batches)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    saved = onnx.load(path)
    onnx.checker.check_model(saved)
    feed = batches[0].numpy()
    name = twin.input_names[0]
    chunk = saved.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    if chunk in (0, len(feed)):
        np.testing.assert_allclose(run(saved, {name: feed})[0], twin.outputs(batches), rtol=tolerance, atol=tolerance)
    again = OnnxNetwork(path, **settings)
    for old, new in zip(twin.layers, again.layers, strict=True):
        assert (old.name, old.kind, old.activation, old.groups) == (new.name, new.kind, new.activation, new.groups)
        torch.testing.assert_close(old.weight, new.weight, rtol=0, atol=0)
        torch.testing.assert_close(old.bias, new.bias, rtol=0, atol=0)
    assert again.chain == twin.chain


GEMM_STYLES = {
    "transB": (dict(transB=1), (4, 6), "x w b", (4,)),
    "plain": ({}, (6, 4), "x w b", (4,)),
    "scaled": (dict(alpha=0.5, beta=2.0, transB=1), (4, 6), "x w b", (4,)),
    "row bias": (dict(alpha=2.0), (6, 4), "x w b", (1, 4)),
    "scalar bias": ({}, (6, 4), "x w b", ()),
    "one bias": (dict(beta=3.0), (6, 4), "x w b", (1,)),
    "no bias": (dict(transB=1), (4, 6), "x w", None),
}


@pytest.mark.parametrize("style", GEMM_STYLES)
def test_gemm(style: str, tmp_path: Path) -> None:
    attributes, shape, inputs, bias = GEMM_STYLES[style]
    tensors = {"w": array(*shape)} | ({} if bias is None else {"b": array(*bias)})
    proto = model([node("Gemm", inputs, "h", **attributes), node("Relu", "h", "y")], tensors)
    network = verify(proto, array(9, 6), tmp_path)
    (layer,) = network.layers
    assert (layer.kind, layer.activation, tuple(layer.weight.shape), layer.shape) == ("Gemm", "relu", (4, 6), shape)
    assert network.chain == (layer.name,)


def test_gemm_with_transposed_input_and_a_matrix_added(tmp_path: Path) -> None:
    nodes = [
        node("Transpose", "x", "t", perm=[1, 0]),
        node("Gemm", "x w1 c", "h", transB=1, beta=0.5),
        node("Gemm", "t w2 h", "s", transA=1, transB=1, beta=2.0),
        node("Relu", "s", "y"),
    ]
    proto = model(nodes, {"w1": array(4, 6), "w2": array(4, 6), "c": array(5, 4)}, (5, 6))
    network = verify(proto, array(5, 6), tmp_path)
    first, second = network.layers
    assert (first.activation, second.activation) == ("linear", "relu")
    samples = network.capture([array(5, 6)], [second.name])[second.name]
    assert samples.offset is not None
    assert network.chain is None


@pytest.mark.parametrize("order", ["m b", "b m"])
@pytest.mark.parametrize("shape", [("N", 6), ("N", 3, 6), ("N", 2, 3, 6)])
def test_matmul_and_add(order: str, shape: tuple[Any, ...], tmp_path: Path) -> None:
    nodes = [node("MatMul", "x w", "m"), node("Add", order, "a"), node("Sigmoid", "a", "y")]
    network = verify(model(nodes, {"w": array(6, 4), "b": array(4)}, shape), array(7, *shape[1:]), tmp_path)
    (layer,) = network.layers
    assert layer.activation == "sigmoid" and layer.bias is not None and layer.shape == (6, 4)
    samples = network.capture([array(7, *shape[1:])], [layer.name])[layer.name]
    assert samples.inputs.shape == (1, 7 * int(np.prod(shape[1:-1])), 6)


@pytest.mark.parametrize("kind", ["MatMul", "Gemm"])
def test_dense_layers_on_sequences_as_tensorflow_writes_them(kind: str, tmp_path: Path) -> None:
    nodes = [
        node("Reshape", "x flat", "xf"),
        node(kind, "xf w", "m"),
        node("Reshape", "m back", "mb"),
        node("Add", "mb b", "a"),
        node("Add", "a x", "s"),
        node("Relu", "s", "r"),
        node("Reshape", "r flat", "rf"),
        node(kind, "rf v", "n"),
        node("Reshape", "n last", "nb"),
        node("Add", "c nb", "y"),
    ]
    tensors = {"w": array(6, 6), "b": array(6), "v": array(6, 4), "c": array(1, 1, 4)}
    tensors |= {n: np.array(v, np.int64) for n, v in {"flat": [-1, 6], "back": [-1, 3, 6], "last": [-1, 3, 4]}.items()}
    proto = model(nodes, tensors, ("N", 3, 6))
    network = verify(proto, array(5, 3, 6), tmp_path)
    assert [(layer.activation, layer.bias is not None) for layer in network.layers] == [
        ("relu", True),
        ("linear", True),
    ]
    assert OnnxNetwork(proto, positions=2).capture([array(5, 3, 6)], ["w"])["w"].inputs.shape == (1, 10, 6)


def test_token_positions_are_sampled_and_seeded() -> None:
    proto = model([node("MatMul", "x w", "m"), node("Relu", "m", "y")], {"w": array(6, 4)}, ("N", 20, 6))
    x = array(5, 20, 6)
    one, two = (OnnxNetwork(proto, positions=3, seed=1) for _ in range(2))
    a, b = (net.capture([x], ["w"])["w"] for net in (one, two))
    assert a.inputs.shape == (1, 15, 6) and torch.equal(a.inputs, b.inputs)


def test_weight_on_the_left(tmp_path: Path) -> None:
    nodes = [node("MatMul", "w x", "m"), node("Add", "m b", "a"), node("Tanh", "a", "y")]
    network = verify(model(nodes, {"w": array(4, 6), "b": array(4, 1)}, ("N", 6, 3)), array(5, 6, 3), tmp_path)
    assert network.layers[0].shape == (4, 6) and network.layers[0].bias is not None
    nodes = [node("Gemm", "w x b", "m", transA=1), node("Relu", "m", "y")]
    verify(model(nodes, {"w": array(6, 4), "b": array(4, 1)}, (6, "N")), array(6, 5), tmp_path)


def test_weights_behind_other_nodes(tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(array(4, 4), ""))
    nodes = [
        node("Identity", "w1", "w1i"),
        node("Transpose", "w1i", "w1t"),
        node("MatMul", "x w1t", "m1"),
        node("Relu", "m1", "r1"),
        node("Cast", "w2", "w2c", to=TensorProto.FLOAT),
        node("Gemm", "r1 w2c", "m2"),
        node("Relu", "m2", "r2"),
        constant,
        node("MatMul", "r2 k", "m3"),
        node("Relu", "m3", "r3"),
        node("Reshape", "w4 s", "w4r"),
        node("MatMul", "r3 w4r", "y"),
    ]
    tensors = {
        "w1": array(4, 6),
        "w2": array(4, 4, dtype=np.float16),
        "w4": array(12),
        "s": np.array([4, 3], dtype=np.int64),
    }
    network = verify(model(nodes, tensors), array(8, 6), tmp_path)
    assert [layer.activation for layer in network.layers] == ["relu", "relu", "relu", "linear"]
    assert network.chain == tuple(layer.name for layer in network.layers)
    left = {n.op_type for n in network.model.graph.node}
    assert left == {"MatMul", "Gemm", "Relu"}, "nodes that only prepared the weights are gone"


def test_quantised_and_computed_weights_are_left_alone() -> None:
    nodes = [
        node("DequantizeLinear", "q s z", "w1"),
        node("MatMul", "x w1", "h"),
        node("Mul", "w2 f", "w2f"),
        node("MatMul", "h w2f", "k"),
        node("MatMul", "k w3", "y"),
    ]
    tensors = {
        "q": np.ones((6, 4), np.int8),
        "s": np.array(0.1, np.float32),
        "z": np.array(0, np.int8),
        "w2": array(4, 4),
        "f": array(1),
        "w3": array(4, 2),
    }
    network = OnnxNetwork(model(nodes, tensors))
    assert [layer.name for layer in network.layers] == ["w3"]
    first, second = network.skipped
    assert "quantised" in first.reason and "Mul" in second.reason
    assert network.chain is None


def test_merged_initialisers_are_untied(tmp_path: Path) -> None:
    nodes = [
        node("Gemm", "x w b", "h1", name="a", transB=1),
        node("Relu", "h1", "r1"),
        node("Gemm", "r1 w b", "h2", name="b", transB=1),
        node("Relu", "h2", "r2"),
        node("Mul", "r2 b", "y"),
    ]
    tensors = {"w": array(6, 6), "b": array(6)}
    network = verify(model(nodes, tensors), array(8, 6), tmp_path)
    x = array(8, 6)
    layer = network.layers[0]
    network.update("a", torch.zeros(6, 6), torch.zeros(6))
    hidden = np.maximum(np.maximum(tensors["b"], 0), -np.inf)  # the second layer sees zeros and answers its bias
    np.testing.assert_allclose(network.outputs([x]), np.tile(hidden * tensors["b"], (8, 1)), atol=1e-6)
    assert torch.equal(network.layers[1].weight, layer.weight)
    assert len(network.notes) == 1 and "'w' had 2 uses" in network.notes[0]


@pytest.mark.parametrize("ir", [3, 8])
def test_initialisers_listed_as_inputs(ir: int, tmp_path: Path) -> None:
    nodes = [node("Gemm", "x w b", "h", transB=1), node("Relu", "h", "r"), node("Gemm", "r w b", "y", transB=1)]
    proto = model(nodes, {"w": array(6, 6), "b": array(6)}, opset=8, ir=ir, listed=True)
    network = verify(proto, array(4, 6), tmp_path)
    assert network.input_names == ("x",)
    assert len(network.layers) == 2


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 18, 21])
def test_old_and_new_operator_sets(opset: int, tmp_path: Path) -> None:
    axes = dict(axes=[1]) if opset < 13 else {}
    nodes = [
        node("Unsqueeze", "x" if axes else "x one", "u", **axes),
        node("Conv", "u w1", "c", pads=[1, 1]),
        node("Relu", "c", "r"),
        node("Flatten", "r", "f"),
        node("Dropout", "f", "d"),
        node("Gemm", "d w2 b", "g", transB=1),
        node("Clip", "g", "y", min=0.0, max=6.0) if opset < 11 else node("Clip", "g lo hi", "y"),
    ]
    tensors = {"w1": array(2, 1, 3), "w2": array(3, 12), "b": array(3)}
    tensors |= {} if axes else {"one": np.array([1], np.int64)}
    tensors |= {} if opset < 11 else {"lo": np.array(0, np.float32), "hi": np.array(6, np.float32)}
    network = verify(model(nodes, tensors, opset=opset), array(5, 6), tmp_path)
    assert [layer.activation for layer in network.layers] == ["relu", "relu6"]


def test_versions_newer_than_onnx_runtime_knows(tmp_path: Path) -> None:
    nodes = [node("Gemm", "x w b", "h", transB=1), node("Relu", "h", "y")]
    tensors = {"w": array(6, 6), "b": array(6)}
    known = model(nodes, tensors)
    newest = model(nodes, tensors, opset=onnx.defs.onnx_opset_version(), ir=onnx.IR_VERSION)
    x = array(4, 6)
    network = OnnxNetwork(newest)
    np.testing.assert_allclose(network.outputs([x]), run(known, {"x": x})[0], atol=1e-6)
    network.save(tmp_path / "m.onnx", [x])
    saved = onnx.load(tmp_path / "m.onnx")
    assert saved.ir_version == onnx.IR_VERSION


def test_newer_operators_are_converted_for_onnx_runtime(tmp_path: Path) -> None:
    nodes = [
        node("Cast", "x", "c", to=TensorProto.FLOAT),
        node("Gemm", "c w b", "h", transB=1),
        node("Relu", "h", "r"),
        node("Reshape", "r s", "v"),
        node("Identity", "v", "y"),
    ]
    tensors = {"w": array(6, 6), "b": array(6), "s": np.array([0, 2, 3], np.int64)}
    newest = model(nodes, tensors, opset=onnx.defs.onnx_opset_version(), ir=onnx.IR_VERSION)
    network = OnnxNetwork(newest)
    x = array(4, 6)
    expected = np.maximum(x @ tensors["w"].T + tensors["b"], 0)
    np.testing.assert_allclose(network.outputs([x]).reshape(4, 6), expected, atol=1e-6)
    samples = network.capture([x], ["w"])["w"]
    check_samples(network.layers[0], samples, 1e-6)
    network.save(tmp_path / "m.onnx", [x])


ACTIVATIONS = {
    "relu": node("Relu", "h", "y"),
    "leaky_relu:0.01": node("LeakyRelu", "h", "y"),
    "leaky_relu:0.25": node("LeakyRelu", "h", "y", alpha=0.25),
    "prelu:0.5": node("PRelu", "h slope", "y"),
    "relu6": node("Clip", "h zero six", "y"),
    "hardtanh:-1.0:2.0": node("Clip", "h minus two", "y"),
    "hardtanh:-1.0:inf": node("Clip", "h minus", "y"),
    "sigmoid": node("Sigmoid", "h", "y"),
    "tanh": node("Tanh", "h", "y"),
    "softplus": node("Softplus", "h", "y"),
    "hardsigmoid": node("HardSigmoid", "h", "y", alpha=1 / 6),
}
OTHERS = {
    "default hard sigmoid": node("HardSigmoid", "h", "y"),
    "elu": node("Elu", "h", "y"),
    "slopes": node("PRelu", "h slopes", "y"),
    "steep": node("LeakyRelu", "h", "y", alpha=1.5),
    "negative": node("LeakyRelu", "h", "y", alpha=-0.5),
    "softmax": node("Softmax", "h", "y"),
    "empty clip": node("Clip", "h two minus", "y"),
}
NUMBERS = {"zero": 0.0, "six": 6.0, "minus": -1.0, "two": 2.0}


def with_activation(last: Any) -> Any:
    tensors = {name: np.array(value, np.float32) for name, value in NUMBERS.items()}
    tensors |= {"w": 3 * array(5, 6), "b": array(5), "slope": np.array([0.5], np.float32), "slopes": array(5)}
    return model([node("Gemm", "x w b", "h", transB=1), last], tensors)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str, tmp_path: Path) -> None:
    network = verify(with_activation(ACTIVATIONS[name]), array(20, 6), tmp_path)
    assert network.layers[0].activation == name


@pytest.mark.parametrize("name", OTHERS)
def test_everything_else_is_linear(name: str, tmp_path: Path) -> None:
    network = verify(with_activation(OTHERS[name]), array(20, 6), tmp_path)
    assert network.layers[0].activation == "linear"


def test_two_clips_of_zero_and_infinity_are_relus(tmp_path: Path) -> None:
    for last in (node("Clip", "h zero", "y"), node("Max", "zero h", "y"), node("Max", "h zero", "y")):
        assert verify(with_activation(last), array(9, 6), tmp_path).layers[0].activation == "relu"


@pytest.mark.parametrize("reader", ["output", "node", "both"])
def test_a_second_reader_of_the_preactivation_makes_it_linear(reader: str, tmp_path: Path) -> None:
    nodes = [node("Gemm", "x w b", "h", transB=1), node("Relu", "h", "r")]
    nodes.append(node("Mul", "r h", "y") if reader != "output" else node("Identity", "r", "y"))
    outputs = ("y",) if reader == "node" else ("y", "h")
    network = verify(model(nodes, {"w": array(5, 6), "b": array(5)}, outputs=outputs), array(9, 6), tmp_path)
    assert network.layers[0].activation == "linear" and network.chain is None


def test_activation_behind_reshapes_and_pools(tmp_path: Path) -> None:
    nodes = [
        node("Conv", "x w1 b1", "c"),
        node("MaxPool", "c", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Relu", "p", "r"),
        node("Flatten", "r", "f"),
        node("MatMul", "f w2", "m"),
        node("Reshape", "m s", "v"),
        node("Relu", "v", "y"),
    ]
    tensors = {"w1": array(3, 1, 3, 3), "b1": array(3), "w2": array(12, 4), "s": np.array([-1, 2, 2], np.int64)}
    network = verify(model(nodes, tensors, ("N", 1, 6, 6)), array(5, 1, 6, 6), tmp_path)
    assert [layer.activation for layer in network.layers] == ["relu", "relu"]


def test_residual_sum_before_relu_is_an_offset_of_one_branch(tmp_path: Path) -> None:
    nodes = [
        node("Conv", "x w0", "s", name="shortcut"),
        node("Conv", "x w1 b1", "c1", pads=[1, 1, 1, 1], name="one"),
        node("Relu", "c1", "r1"),
        node("Conv", "r1 w2 b2", "c2", pads=[1, 1, 1, 1], name="two"),
        node("Add", "s c2", "a"),
        node("Relu", "a", "y"),
    ]
    tensors = {
        "w0": array(3, 2, 1, 1),
        "w1": array(3, 2, 3, 3),
        "w2": array(3, 3, 3, 3),
        "b1": array(3),
        "b2": array(3),
    }
    network = verify(model(nodes, tensors, ("N", 2, 5, 5)), array(4, 2, 5, 5), tmp_path)
    assert {layer.name: layer.activation for layer in network.layers} == {
        "shortcut": "linear",
        "one": "relu",
        "two": "relu",
    }
    x = array(4, 2, 5, 5)
    samples = network.capture([x], ["two"])["two"]
    (added,) = run(model(nodes, tensors, ("N", 2, 5, 5)), {"x": x}, ["s"])
    assert samples.offset is not None
    np.testing.assert_allclose(samples.offset, np.moveaxis(added, 1, -1).reshape(-1, 3), atol=1e-6)


CONVOLUTIONS: dict[str, tuple[dict[str, Any], tuple[int, ...], tuple[int, ...]]] = {
    "1d": (dict(pads=[1, 0], strides=[2]), (4, 3, 3), (3, 9)),
    "2d": (dict(kernel_shape=[3, 2]), (4, 3, 3, 2), (3, 6, 7)),
    "3d": (dict(pads=[1, 0, 1, 0, 1, 1]), (4, 2, 2, 2, 3), (2, 4, 5, 4)),
    "asymmetric": (dict(pads=[0, 2, 1, 0], strides=[2, 1]), (4, 3, 3, 3), (3, 6, 7)),
    "dilated": (dict(dilations=[2, 1], pads=[2, 1, 2, 1]), (4, 3, 3, 3), (3, 6, 7)),
    "grouped": (dict(group=2, pads=[1, 1, 1, 1]), (6, 2, 3, 3), (4, 5, 5)),
    "depthwise": (dict(group=4), (4, 1, 3, 3), (4, 5, 5)),
    "same upper": (dict(auto_pad="SAME_UPPER", strides=[2, 2]), (4, 3, 3, 2), (3, 6, 7)),
    "same lower": (dict(auto_pad="SAME_LOWER", strides=[2, 1]), (4, 3, 4, 2), (3, 6, 7)),
    "valid": (dict(auto_pad="VALID"), (4, 3, 3, 3), (3, 6, 7)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_convolutions(name: str, bias: bool, tmp_path: Path) -> None:
    attributes, shape, space = CONVOLUTIONS[name]
    tensors = {"w": array(*shape)} | ({"b": array(shape[0])} if bias else {})
    nodes = [node("Conv", "x w b" if bias else "x w", "c", **attributes), node("Relu", "c", "y")]
    x = array(3, *space)
    proto = model(nodes, tensors, ("N", *space))
    network = verify(proto, x, tmp_path)
    (layer,) = network.layers
    samples = network.capture([x], [layer.name])[layer.name]
    truth = np.moveaxis(run(proto, {"x": x}, ["c"])[0], 1, -1).reshape(-1, shape[0])
    np.testing.assert_allclose(samples.preactivations, truth, atol=1e-6)
    assert layer.groups == attributes.get("group", 1) and network.chain is None


TRANSPOSED: dict[str, tuple[dict[str, Any], tuple[int, ...], tuple[int, ...]]] = {
    "plain": ({}, (3, 4, 3, 3), (3, 4, 5)),
    "strided": (dict(strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 0]), (3, 4, 3, 3), (3, 4, 5)),
    "asymmetric": (dict(strides=[2, 1], pads=[0, 1, 1, 0]), (3, 4, 3, 3), (3, 4, 5)),
    "grouped": (dict(group=2, dilations=[2]), (4, 3, 3), (4, 6)),
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolutions(name: str, tmp_path: Path) -> None:
    attributes, shape, space = TRANSPOSED[name]
    out = shape[1] * attributes.get("group", 1)
    stats = {"g": array(out), "o": array(out), "m": array(out), "v": array(out) ** 2 + 0.5}
    nodes = [
        node("ConvTranspose", "x w b", "c", **attributes),
        node("BatchNormalization", "c g o m v", "n"),
        node("Relu", "n", "y"),
    ]
    x = array(3, *space)
    network = verify(model(nodes, {"w": array(*shape), "b": array(out), **stats}, ("N", *space)), x, tmp_path)
    assert network.layers[0].activation == "relu"


def test_transposed_convolution_with_output_shape_is_skipped() -> None:
    nodes = [node("ConvTranspose", "x w", "c", output_shape=[8]), node("Conv", "c v", "y")]
    network = OnnxNetwork(model(nodes, {"w": array(3, 2, 3), "v": array(2, 2, 1)}, ("N", 3, 6)))
    assert len(network.layers) == len(network.skipped) == 1 and "output shape" in network.skipped[0].reason


@pytest.mark.parametrize("style", ["conv", "conv bias", "gemm", "matmul", "matmul add", "tensorflow"])
def test_batch_normalization_is_folded(style: str, tmp_path: Path) -> None:
    spatial = style.startswith(("conv", "tensorflow"))
    tensors = {"g": array(4), "o": array(4), "m": array(4), "v": array(4) ** 2 + 0.5, "b": array(4)}
    tensors["w"] = array(4, 3, 3, 3) if spatial else array(6, 4)
    match style:
        case "conv":
            nodes = [node("Conv", "x w", "h")]
        case "conv bias":
            nodes = [node("Conv", "x w b", "h")]
        case "tensorflow":
            tensors["b"] = tensors["b"].reshape(1, 4, 1, 1)
            nodes = [node("Conv", "x w", "h0"), node("Add", "h0 b", "h")]
        case "gemm":
            nodes = [node("Gemm", "x w b", "h")]
        case "matmul":
            nodes = [node("MatMul", "x w", "h")]
        case _:
            nodes = [node("MatMul", "x w", "h0"), node("Add", "b h0", "h")]
    nodes += [node("BatchNormalization", "h g o m v", "n", epsilon=0.01), node("Relu", "n", "y")]
    shape: tuple[Any, ...] = ("N", 3, 5, 5) if spatial else ("N", 6)
    network = verify(model(nodes, tensors, shape), array(8, *shape[1:]), tmp_path, tolerance=3e-5)
    assert network.layers[0].activation == "relu" and network.layers[0].bias is not None
    assert "BatchNormalization" not in {n.op_type for n in network.model.graph.node}


def test_batch_normalization_over_another_axis_stays(tmp_path: Path) -> None:
    tensors = {"g": array(4), "o": array(4), "m": array(4), "v": array(4) ** 2 + 0.5, "w": array(6, 4)}
    nodes = [node("MatMul", "x w", "h"), node("BatchNormalization", "h g o m v", "n"), node("Relu", "n", "y")]
    network = verify(model(nodes, tensors, ("N", 4, 6)), array(8, 4, 6), tmp_path)
    assert network.layers[0].activation == "linear"


def test_ignored_layers_keep_their_batch_normalization(tmp_path: Path) -> None:
    tensors = {"g": array(4), "o": array(4), "m": array(4), "v": array(4) ** 2, "w": array(6, 4), "u": array(4, 2)}
    nodes = [
        node("MatMul", "x w", "h", name="first"),
        node("BatchNormalization", "h g o m v", "n"),
        node("MatMul", "n u", "y", name="second"),
    ]
    network = verify(model(nodes, tensors), array(8, 6), tmp_path, ignore=["first"])
    assert [layer.name for layer in network.layers] == ["second"]
    assert network.skipped[0].reason == "not in targets"
    np.testing.assert_array_equal(numpy_helper.to_array(network._tensors["w"]), tensors["w"])


def test_constant_scales_are_folded(tmp_path: Path) -> None:
    nodes = [
        node("Conv", "x w", "c"),
        node("Mul", "c s", "m"),
        node("Sub", "m t", "a"),
        node("Div", "a s", "d"),
        node("Relu", "d", "y"),
    ]
    tensors = {"w": array(4, 3, 3), "s": array(4, 1) + 2, "t": array(1, 4, 1)}
    network = verify(model(nodes, tensors, ("N", 3, 7)), array(8, 3, 7), tmp_path)
    assert network.layers[0].activation == "relu" and {n.op_type for n in network.model.graph.node} == {"Conv", "Relu"}


@pytest.mark.parametrize("kind", ["Conv", "Gemm", "MatMul"])
def test_a_layer_may_gain_a_bias(kind: str, tmp_path: Path) -> None:
    shape: tuple[Any, ...] = ("N", 6, 6) if kind == "Conv" else ("N", 6)
    weight = array(4, 6, 3) if kind == "Conv" else array(6, 4)
    proto = model([node(kind, "x w", "h"), node("Relu", "h", "y")], {"w": weight}, shape)
    network = OnnxNetwork(proto)
    x = array(5, *shape[1:])
    network.update("w", torch.zeros_like(network.layers[0].weight), torch.tensor([1.0, -1.0, 2.0, 0.0]))
    expected = (
        torch.tensor([1.0, 0.0, 2.0, 0.0]).reshape(1, 4, *[1] * (len(shape) - 2)).expand(5, 4, *[4][: len(shape) - 2])
    )
    torch.testing.assert_close(network.outputs([x]), expected)
    check_samples(network.layers[0], network.capture([x], ["w"])["w"], 1e-6)
    network.save(tmp_path / "m.onnx", [x])
    np.testing.assert_allclose(run(onnx.load(tmp_path / "m.onnx"), {"x": x})[0], expected)


def test_half_precision(tmp_path: Path) -> None:
    tensors = {"w": array(4, 6, dtype=np.float16), "b": array(4, dtype=np.float16)}
    proto = model([node("Gemm", "x w b", "h", transB=1), node("Relu", "h", "y")], tensors, dtype=TensorProto.FLOAT16)
    network = OnnxNetwork(proto)
    (layer,) = network.layers
    assert layer.weight.dtype == torch.float32 and layer.dtype == torch.float16
    x = array(7, 6)
    samples = network.capture([x], [layer.name])[layer.name]
    assert samples.inputs.dtype == torch.float32
    check_samples(layer, samples, 1e-3)
    network.update(layer.name, torch.full((4, 6), 1 / 3), None)
    assert float(network.layers[0].weight[0, 0]) == float(np.float16(1 / 3))
    network.save(tmp_path / "m.onnx", [x])
    assert onnx.load(tmp_path / "m.onnx").graph.initializer[0].data_type == TensorProto.FLOAT16
    with pytest.raises(ModelError, match="finite weights"):
        network.update(layer.name, torch.full((4, 6), 1e6), None)


def test_double_precision_stays(tmp_path: Path) -> None:
    tensors = {"w": array(4, 6, dtype=np.float64), "b": array(4, dtype=np.float64)}
    proto = model([node("Gemm", "x w b", "h", transB=1), node("Relu", "h", "y")], tensors, dtype=TensorProto.DOUBLE)
    network = verify(proto, array(5, 6, dtype=np.float64), tmp_path, tolerance=1e-12)
    assert network.layers[0].weight.dtype == torch.float64


@pytest.mark.parametrize("fixed", [1, 4])
def test_fixed_batch_dimension(fixed: int, tmp_path: Path) -> None:
    nodes = [
        node("Reshape", "x s", "f"),
        node("Gemm", "f w b", "h", transB=1),
        node("Relu", "h", "r"),
        node("MatMul", "r v", "y"),
    ]
    tensors = {"w": array(4, 6), "b": array(4), "v": array(4, 3), "s": np.array([fixed, 6], np.int64)}
    proto = model(nodes, tensors, (fixed, 2, 3))
    x = array(7, 2, 3)
    expected = np.maximum(x.reshape(7, 6) @ tensors["w"].T + tensors["b"], 0) @ tensors["v"]
    network = OnnxNetwork(proto)
    torch.testing.assert_close(network.outputs([x]), torch.from_numpy(expected), atol=1e-5, rtol=1e-5)
    samples = network.capture([x], ["w"])["w"]
    np.testing.assert_allclose(samples.inputs[0], x.reshape(7, 6))
    network.save(tmp_path / "m.onnx")
    assert len(network.chain or ()) == 2


def test_several_inputs_and_token_numbers(tmp_path: Path) -> None:
    nodes = [
        node("Gather", "table ids", "e"),
        node("MatMul", "e w", "m"),
        node("MatMul", "extra u", "n"),
        node("Add", "m n", "a"),
        node("Relu", "a", "y"),
    ]
    tensors = {"table": array(10, 6), "w": array(6, 4), "u": array(2, 4)}
    inputs = {"ids": (TensorProto.INT64, ("N", "L")), "extra": (TensorProto.FLOAT, ("N", "L", 2))}
    network = OnnxNetwork(model(nodes, tensors, inputs=inputs))
    ids, extra = RNG.integers(0, 10, (5, 3)), array(5, 3, 2)
    assert "look-up" in network.skipped[0].reason and network.input_names == ("ids", "extra")
    expected = np.maximum(tensors["table"][ids] @ tensors["w"] + extra @ tensors["u"], 0)
    forms: list[Any] = [
        [{"ids": ids, "extra": extra}],
        [{"ids": ids.astype(np.int32), "extra": extra, "labels": ids}],
        [(ids, extra)],
        [(torch.from_numpy(ids), torch.from_numpy(extra))],
    ]
    for form in forms:
        np.testing.assert_allclose(network.outputs(form), expected, atol=1e-5)
    samples = network.capture(forms[0], ["w"])["w"]
    assert samples.offset is not None
    np.testing.assert_allclose(samples.offset, (extra @ tensors["u"]).reshape(-1, 4), atol=1e-6)
    network.save(tmp_path / "m.onnx")
    for wrong in ({"ids": ids}, {"ids": ids, "extras": extra}, {"ids": ids + 0.5, "extra": extra}):
        with pytest.raises(DataError):
            network.outputs([wrong])


def test_data_that_the_model_cannot_take() -> None:
    network = OnnxNetwork(model([node("MatMul", "x w", "y")], {"w": array(6, 4)}))
    for wrong in ([array(3, 5)], [array(3, 2, 6)], [], [np.full((2, 6), np.nan, np.float32)]):
        with pytest.raises(DataError):
            network.outputs(wrong)
    np.testing.assert_array_equal(network.outputs([np.ones((2, 6), np.uint8)]).shape, (2, 4))
    with pytest.raises(InputError, match="Known: w"):
        network.capture([array(3, 6)], ["v"])
    with pytest.raises(InputError):
        network.update("w", torch.zeros(6, 4), None)


def test_weights_inside_sub_graphs_are_reported() -> None:
    inner = helper.make_graph(
        [node("MatMul", "h w2", "t", name="inside")],
        "then",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array(4, 4), "w2")],
    )
    other = helper.make_graph(
        [node("MatMul", "h w1", "e")], "else", [], [helper.make_tensor_value_info("e", TensorProto.FLOAT, None)]
    )
    choose = helper.make_node("If", ["flag"], ["y"], then_branch=inner, else_branch=other)
    nodes = [node("MatMul", "x w0", "m"), node("Relu", "m", "h"), node("MatMul", "h w1", "g"), choose]
    tensors = {"w0": array(6, 4), "w1": array(4, 4), "flag": np.array(True)}
    network = OnnxNetwork(model(nodes, tensors, outputs=("y", "g")))
    assert [layer.activation for layer in network.layers] == ["relu", "linear"]
    assert {record.reason for record in network.skipped} == {"it is inside a sub-graph of If"}
    assert {record.name for record in network.skipped} == {"inside", "e"}
    x = array(5, 6)
    before = network.outputs([x])
    network.update("w1", torch.zeros(4, 4), None)  # the sub-graph keeps the weight it shared
    assert torch.equal(network.outputs([x]), before)


def test_names_of_nameless_and_namesake_nodes() -> None:
    nodes = [
        node("Gemm", "x encoder.0.weight b", "h", transB=1),
        node("MatMul", "h onnx::MatMul_12", "k"),
        node("MatMul", "k w", "l", name="same"),
        node("MatMul", "l w", "y", name="same"),
    ]
    tensors = {"encoder.0.weight": array(4, 6), "b": array(4), "onnx::MatMul_12": array(4, 4), "w": array(4, 4)}
    network = OnnxNetwork(model(nodes, tensors))
    assert [layer.name for layer in network.layers] == ["encoder.0", "k", "same", "same_2"]
    network.outputs([array(3, 6)])  # ONNX Runtime takes no namesakes
    assert [layer.name for layer in OnnxNetwork(model(nodes, tensors), targets=["Gemm", "same*"]).layers] == [
        "encoder.0",
        "same",
        "same_2",
    ]
    with pytest.raises(InputError, match="encoder"):
        OnnxNetwork(model(nodes, tensors), targets=["encoder.1"])


def test_classifier_with_label_first(tmp_path: Path) -> None:
    """The way scikit-learn's networks are exported."""
    nodes = [
        node("Cast", "x", "c", to=TensorProto.FLOAT),
        node("MatMul", "c coefficient", "m"),
        node("Add", "m intercepts", "a"),
        node("Relu", "a", "r"),
        node("MatMul", "r coefficient1", "m1"),
        node("Add", "m1 intercepts1", "a1"),
        node("Softmax", "a1", "y"),
        node("ArgMax", "y", "label", axis=1, keepdims=0),
    ]
    tensors = {
        "coefficient": array(6, 5),
        "intercepts": array(1, 5),
        "coefficient1": array(5, 3),
        "intercepts1": array(1, 3),
    }
    proto = model(nodes, tensors, outputs=("y",))
    proto.graph.output.insert(0, helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]))
    network = OnnxNetwork(proto)
    x = array(6, 6)
    assert [layer.name for layer in network.layers] == ["coefficient", "coefficient1"]
    torch.testing.assert_close(network.outputs([x]).sum(1), torch.ones(6))
    network.save(tmp_path / "m.onnx", [x])


@pytest.mark.parametrize("last", ["ArgMax", "ZipMap"])
def test_outputs_of_a_network_that_only_answers_labels(last: str) -> None:
    nodes = [node("MatMul", "x w", "m"), node("Softmax", "m", "p")]
    proto = model([*nodes, node("ArgMax", "p", "y", axis=1)], {"w": array(6, 3)}, dtype=TensorProto.FLOAT)
    if last == "ZipMap":
        zipped = node("ZipMap", "p", "y", domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2])
        proto.graph.node[-1].CopyFrom(zipped)
        proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
        mapping = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
        proto.graph.output[0].type.CopyFrom(helper.make_sequence_type_proto(mapping))
    else:
        proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.INT64, ["N", 1]))
    torch.testing.assert_close(OnnxNetwork(proto).outputs([array(5, 6)]).sum(1), torch.ones(5))


def test_the_model_zoo_style_of_old_exporters(tmp_path: Path) -> None:
    """IR 3, opset 8, every tensor listed as an input, weights behind Reshape, biases as (channels, 1, 1)."""
    nodes = [
        node("Conv", "x Parameter5", "Convolution28_Output_0", kernel_shape=[5, 5], auto_pad="SAME_UPPER", group=1),
        node("Add", "Convolution28_Output_0 Parameter6", "Plus30_Output_0", name="Plus30"),
        node("Relu", "Plus30_Output_0", "ReLU32_Output_0", name="ReLU32"),
        node("MaxPool", "ReLU32_Output_0", "Pooling66_Output_0", kernel_shape=[2, 2], strides=[2, 2]),
        node("Reshape", "Pooling66_Output_0 shape0", "flat"),
        node("Reshape", "Parameter193 shape1", "Parameter193_reshape1"),
        node("MatMul", "flat Parameter193_reshape1", "Times212_Output_0", name="Times212"),
        node("Add", "Times212_Output_0 Parameter194", "y", name="Plus214"),
    ]
    tensors = {
        "Parameter5": array(4, 1, 5, 5),
        "Parameter6": array(4, 1, 1),
        "Parameter193": array(4, 4, 4, 10),
        "Parameter194": array(1, 10),
        "shape0": np.array([1, 64], np.int64),
        "shape1": np.array([64, 10], np.int64),
    }
    proto = model(nodes, tensors, (1, 1, 8, 8), opset=8, ir=3)
    network = OnnxNetwork(proto)
    assert [(layer.name, layer.activation) for layer in network.layers] == [
        ("Parameter5", "relu"),
        ("Times212", "linear"),
    ]
    assert all(layer.bias is not None for layer in network.layers)
    x = array(5, 1, 8, 8)
    single = model(nodes, tensors, (1, 1, 8, 8), opset=8, ir=3)
    expected = np.concatenate([run(single, {"x": row[None]})[0] for row in x])
    np.testing.assert_allclose(network.outputs([x]), expected, atol=1e-5)
    network.save(tmp_path / "m.onnx", [x])
    np.testing.assert_allclose(OnnxNetwork(tmp_path / "m.onnx").outputs([x]), expected, atol=1e-5)


def test_nothing_to_trim_and_weights_that_are_not_finite() -> None:
    with pytest.raises(ModelError, match="no weights"):
        OnnxNetwork(model([node("Relu", "x", "y")], {}))
    with pytest.raises(ModelError, match="NaN or infinity"):
        OnnxNetwork(model([node("MatMul", "x w", "y")], {"w": np.full((6, 2), np.inf, np.float32)}))
    nodes = [node("MatMul", "x y0", "m", name="m"), node("RandomNormal", "", "y0", shape=[6, 2])]
    with pytest.raises(ModelError):
        OnnxNetwork(model([nodes[1], nodes[0], node("Relu", "m", "y")], {}))


def test_a_layer_that_contradicts_its_weight_is_found_out() -> None:
    """A network whose samples do not follow from the weight must not pass the proof."""
    nodes = [node("MatMul", "x w", "m"), node("Relu", "m", "y")]
    network = OnnxNetwork(model(nodes, {"w": array(6, 4)}))
    site = network._sites["w"]
    network._sites["w"] = type(site)(**{**site.__dict__, "preactivation": "y"})
    with pytest.raises(ModelError, match="could not be reproduced"):
        network.capture([array(9, 6)], ["w"])
