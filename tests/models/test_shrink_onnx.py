"""Shrinking ONNX graphs: the same predictions from smaller layers, whatever style the file is written in."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from nettrim.errors import DataError, ModelError  # noqa: E402
from nettrim.gain.onnx_export import export_onnx  # noqa: E402
from nettrim.models import onnx_shrink  # noqa: E402
from nettrim.models.onnx_shrink import ShrunkOnnx, shrink_onnx  # noqa: E402


def run(model: Any, inputs: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: inputs})[0]


def graph(nodes: list[Any], tensors: dict[str, np.ndarray], shape: list[Any], opset: int = 17) -> Any:
    stored = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in tensors.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    made = helper.make_graph(nodes, "net", inputs, outputs, initializer=stored)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def check(model: Any, shape: tuple[int, ...], *, smaller: bool = True) -> ShrunkOnnx:
    before = model.SerializeToString()
    found = shrink_onnx(model, np.random.standard_normal((3, *shape)).astype(np.float32))
    assert model.SerializeToString() == before
    assert not found.summary.note
    assert (found.summary.parameters_after < found.summary.parameters_before) == smaller
    onnx.checker.check_model(found.model)
    for size in (5, 1):
        inputs = np.random.standard_normal((size, *shape)).astype(np.float32)
        wanted, got = run(model, inputs), run(found.model, inputs)
        assert np.abs(wanted - got).max() <= 1e-5 * np.abs(wanted).max()
    return found


def normal(*shape: int) -> np.ndarray:
    return np.random.standard_normal(shape).astype(np.float32)


def sparse_matrices() -> list[np.ndarray]:
    """Weights (out, in) and biases of a 20-8-6-3 net: two dead, two constant, one unused unit; ten inputs unread."""
    w1, b1, w2, b2, w3, b3 = normal(8, 20), normal(8), normal(6, 8), normal(6), normal(3, 6), normal(3)
    w1[:4] = 0
    b1[:4] = (-1, -1, 1, 2)
    w1[:, 10:] = 0
    w2[:, 5] = 0
    w3[:, 1] = 0
    return [w1, b1, w2, b2, w3, b3]


EXPECTED = [(3, 10), (5, 3), (3, 5)]


def test_gemm() -> None:
    w1, b1, w2, b2, w3, _ = sparse_matrices()
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h1"], transB=1),
        helper.make_node("Relu", ["h1"], ["a1"]),
        helper.make_node("Gemm", ["a1", "w2", "b2"], ["h2"], alpha=0.5, beta=2.0),
        helper.make_node("Relu", ["h2"], ["a2"]),
        helper.make_node("Gemm", ["a2", "w3"], ["y"], transB=1),
    ]
    tensors = {"w1": w1, "b1": b1, "w2": w2.T, "b2": b2[None], "w3": w3}
    found = check(graph(nodes, tensors, ["n", 20]), (20,))
    assert [layer.after for layer in found.summary.layers] == EXPECTED
    first = found.summary.layers[0]
    assert (first.dead, first.constant, first.unused, first.inputs_picked) == (2, 2, 1, (10, 20))
    assert {tensor.name for tensor in found.model.graph.initializer}.isdisjoint({"w1", "w2", "w3"})


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_matmul_and_add_in_either_order(first: bool, bias: bool) -> None:
    w1, b1, w2, b2, w3, _ = sparse_matrices()
    middle = [helper.make_node("MatMul", ["a1", "w2"], ["m2" if bias else "h2"])]
    middle += [helper.make_node("Add", ["b2", "m2"] if first else ["m2", "b2"], ["h2"])] if bias else []
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["m1"]),
        helper.make_node("Add", ["b1", "m1"] if first else ["m1", "b1"], ["h1"]),
        helper.make_node("Relu", ["h1"], ["a1"]),
        *middle,
        helper.make_node("Sigmoid", ["h2"], ["a2"]),
        helper.make_node("MatMul", ["a2", "w3"], ["y"]),
    ]
    tensors = {"w1": w1.T, "b1": b1, "w2": w2.T, "w3": w3.T} | ({"b2": b2} if bias else {})
    found = check(graph(nodes, tensors, ["n", 20]), (20,))
    assert [layer.after for layer in found.summary.layers] == EXPECTED
    sequences = graph(nodes, tensors, ["n", 4, 20])
    assert [layer.after for layer in check(sequences, (4, 20)).summary.layers] == EXPECTED


def conv_nodes(shape: list[int], **second: Any) -> list[Any]:
    return [
        helper.make_node("Conv", ["x", "w1"], ["c1"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c1", "g", "s", "m", "v"], ["n1"]),
        helper.make_node("Relu", ["n1"], ["a1"]),
        helper.make_node("Conv", ["a1", "w2", "b2"], ["c2"], kernel_shape=[3, 3], **second),
        helper.make_node("Clip", ["c2", "zero", "six"], ["a2"]),
        helper.make_node("MaxPool", ["a2"], ["p2"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Reshape", ["p2", "shape"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], transB=1),
    ]


@pytest.mark.parametrize("group", [1, 2, 8])
def test_convolutions_norms_groups_and_reshapes(group: int) -> None:
    tensors = {
        "w1": normal(8, 3, 3, 3), "g": np.abs(normal(8)) + 0.5, "s": normal(8), "m": normal(8),
        "v": np.abs(normal(8)) + 0.5,
        "w2": normal(8, 8 // group, 3, 3), "b2": normal(8), "w3": normal(4, 8 * 9), "b3": normal(4),
        "zero": np.float32(0), "six": np.float32(6),
    }  # fmt: skip
    tensors["g"][[0, 1, 4]] = 0
    tensors["s"][[0, 1, 4]] = (-1, -1, -1)
    tensors["w2"][[1, 5]] = 0
    tensors["b2"][[1, 5]] = (0.5, 0.0)
    for shape in ([-1, 72], [0, -1]):
        tensors["shape"] = np.array(shape)
        model = graph(conv_nodes(shape, group=group), tensors, ["n", 3, 8, 8])
        found = check(model, (3, 8, 8))
        shapes = [layer.after for layer in found.summary.layers]
        assert shapes[1][0] == {1: 6, 2: 6, 8: 4}[group]
        assert shapes[2] == (4, 9 * shapes[1][0])
        assert shapes[0][0] == {1: 5, 2: 6, 8: 4}[group]


def test_a_constant_behind_zero_padding_is_not_folded() -> None:
    for pads, units in (([1, 1, 1, 1], 3), ([0, 0, 0, 0], 2)):
        w1, b1 = normal(3, 2, 1, 1), np.array([0.7, 0.5, 0.1], np.float32)
        w1[0] = 0
        nodes = [
            helper.make_node("Conv", ["x", "w1", "b1"], ["c"]),
            helper.make_node("Relu", ["c"], ["a"]),
            helper.make_node("Conv", ["a", "w2"], ["y"], pads=pads),
        ]
        model = graph(nodes, {"w1": w1, "b1": b1, "w2": normal(2, 3, 3, 3)}, ["n", 2, 5, 5])
        found = check(model, (2, 5, 5), smaller=units < 3)
        assert found.summary.layers[0].after[0] == units


def test_shared_weights_and_unknown_nodes_stay() -> None:
    w = normal(6, 6)
    w[:, 0] = 0
    v = normal(6, 6)
    v[:, 1] = 0
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h1"]),
        helper.make_node("Relu", ["h1"], ["a1"]),
        helper.make_node("MatMul", ["a1", "w"], ["h2"]),
        helper.make_node("MatMul", ["h2", "v"], ["h3"]),
        helper.make_node("Softmax", ["h3"], ["a3"]),
        helper.make_node("MatMul", ["a3", "u"], ["y"]),
    ]
    found = check(graph(nodes, {"w": w, "v": v, "u": normal(6, 2)}, ["n", 6]), (6,), smaller=False)
    assert {reason for _, reason in found.summary.left} == {"its weight is shared"}


def test_residual_sums_and_concatenations() -> None:
    w1, w2, w3 = normal(6, 4), normal(6, 6), normal(12, 3)
    w1[[0, 1]] = 0  # dead in the first branch; the second is dead in 0 only
    w2[:, 0] = 0
    nodes = [
        helper.make_node("Gemm", ["x", "w1"], ["h1"], transB=1),
        helper.make_node("Relu", ["h1"], ["a1"]),
        helper.make_node("MatMul", ["a1", "w2"], ["h2"]),
        helper.make_node("Add", ["a1", "h2"], ["s"]),
        helper.make_node("Concat", ["s", "h2"], ["both"], axis=1),
        helper.make_node("MatMul", ["both", "w3"], ["y"]),
    ]
    found = check(graph(nodes, {"w1": w1, "w2": w2, "w3": w3}, ["n", 4]), (4,))
    assert [layer.after for layer in found.summary.layers] == [(5, 4), (5, 5), (3, 10)]


def test_everything_dead_and_nothing_to_shrink() -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["a"]),
        helper.make_node("Gemm", ["a", "w2"], ["y"], transB=1),
    ]
    tensors = {"w1": np.zeros((5, 4), np.float32), "b1": np.ones(5, np.float32), "w2": normal(2, 5)}
    found = check(graph(nodes, tensors, ["n", 4]), (4,))
    assert [layer.after for layer in found.summary.layers] == [(1, 1), (2, 1)]
    found = check(graph(nodes, tensors | {"w1": normal(5, 4)}, ["n", 4]), (4,), smaller=False)
    assert not found.summary.changed


def test_exports_from_pytorch(tmp_path: Path) -> None:
    """What PyTorch writes: an MLP and a net of convolutions with a computed reshape."""
    pytest.importorskip("onnxscript")
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(24, 5), nn.GELU(), nn.Linear(5, 3),
    ).eval()  # fmt: skip
    with torch.no_grad():
        net.get_parameter("0.weight")[[1, 2]] = 0
        net.get_parameter("1.bias")[[1, 2]] = -1
        net.get_parameter("5.weight")[[0, 4]] = 0
    path = tmp_path / "net.onnx"
    export_onnx(net, torch.randn(2, 2, 6, 6), path)
    found = check(onnx.load(path), (2, 6, 6))
    assert [layer.after for layer in found.summary.layers] == [(4, 2, 3, 3), (3, 16), (3, 3)]
    assert shrink_onnx(path).summary.to_dict()["parameters_after"] == found.summary.parameters_after


def test_a_wrong_shrink_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["a"]),
        helper.make_node("Gemm", ["a", "w2", "b2"], ["y"], transB=1),
    ]
    w1, b1 = normal(5, 4), np.ones(5, np.float32)
    w1[0] = 0
    model = graph(nodes, {"w1": w1, "b1": b1, "w2": normal(2, 5), "b2": normal(2)}, ["n", 4])
    assert shrink_onnx(model).summary.changed
    right = onnx_shrink._Writer._set_bias
    monkeypatch.setattr(
        onnx_shrink._Writer, "_set_bias", lambda me, node, layer, bias: right(me, node, layer, bias + 1)
    )
    found = shrink_onnx(model)
    assert not found.summary.changed and "note" in str(found.summary)
    inputs = normal(3, 4)
    assert np.array_equal(run(found.model, inputs), run(model, inputs))


def test_errors(tmp_path: Path) -> None:
    model = graph([helper.make_node("Gemm", ["x", "w"], ["y"])], {"w": normal(4, 2)}, ["n", 4])
    with pytest.raises(DataError):
        shrink_onnx(model, normal(3, 5))
    (tmp_path / "no.onnx").write_bytes(b"\x80pickle")
    with pytest.raises(ModelError):
        shrink_onnx(tmp_path / "no.onnx")


@pytest.mark.parametrize("seed", range(12))
def test_random_masks_on_random_chains(seed: int) -> None:
    random = np.random.default_rng(seed)
    np.random.seed(seed)
    sizes = random.integers(2, 9, size=random.integers(3, 6))
    nodes, tensors, value = [], {}, "x"
    for index, (one, other) in enumerate(itertools.pairwise(sizes.tolist())):
        kept = random.random((one, other)) < random.choice([0.0, 0.15, 0.4])
        tensors[f"w{index}"] = normal(one, other) * kept
        tensors[f"b{index}"] = normal(other)
        nodes.append(helper.make_node("MatMul", [value, f"w{index}"], [f"m{index}"]))
        nodes.append(helper.make_node("Add", [f"m{index}", f"b{index}"], [f"h{index}"]))
        value = "y" if index == len(sizes) - 2 else f"a{index}"
        nodes.append(helper.make_node(str(random.choice(["Relu", "Tanh", "LeakyRelu", "Elu"])), [f"h{index}"], [value]))
    model = graph(nodes, tensors, ["n", int(sizes[0])])
    found = shrink_onnx(model, normal(3, int(sizes[0])))
    assert not found.summary.note
    inputs = normal(5, int(sizes[0]))
    wanted = run(model, inputs)
    assert np.abs(run(found.model, inputs) - wanted).max() <= 1e-5 * (1 + np.abs(wanted).max())


def test_weights_in_constant_nodes_count() -> None:
    w1, b1, w2, b2, w3, _ = sparse_matrices()
    tensors = {"w1": w1, "b1": b1, "w2": w2, "b2": b2, "w3": w3}
    layers = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h1"], transB=1),
        helper.make_node("Relu", ["h1"], ["a1"]),
        helper.make_node("Gemm", ["a1", "w2", "b2"], ["h2"], transB=1),
        helper.make_node("Relu", ["h2"], ["a2"]),
        helper.make_node("Gemm", ["a2", "w3"], ["y"], transB=1),
    ]
    stored = check(graph(layers, tensors, ["n", 20]), (20,))
    made = [helper.make_node("Constant", [], [k], value=numpy_helper.from_array(v)) for k, v in tensors.items()]
    found = check(graph([*made, *layers], {}, ["n", 20]), (20,))
    assert found.summary == stored.summary and found.summary.parameters_before == sum(a.size for a in tensors.values())
