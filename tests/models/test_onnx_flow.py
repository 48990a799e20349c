"""Bounds carried along ONNX graphs: constants that are attained, the module's bound, never less than what moves."""

from __future__ import annotations

import contextlib
import io
import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nettrim
from nettrim.certificates.graph import Flow, graph_bound
from nettrim.certificates.network import Link

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402  # needs the extra

from nettrim.models.onnx_network import OnnxNetwork  # noqa: E402

BATCH = "n"


def model_of(nodes, arrays, shape=(BATCH, 2, 6, 6), opset=17, output="y"):
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
    graph = helper.make_graph(
        [helper.make_node(kind, ins, outs, name=outs[0], **fields) for kind, ins, outs, fields in nodes],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def behind(nodes, arrays=None, **options):
    """A convolution z of x with three channels as large as x, and what follows."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((3, 2, 3, 3)), "b": rng.standard_normal(3)}
    first = ("Conv", ["x", "w", "b"], ["z"], {"pads": [1] * 4})
    given = {name: np.float32(array) for name, array in weights.items()}
    return model_of([first, *nodes], {**given, **(arrays or {})}, **options)


def node(kind, ins, outs="y", **fields):
    return (kind, ins.split(), outs.split(), fields)


ONES = {"c": np.float32([1, -3, 2]).reshape(1, 3, 1, 1)}
CONSTANTS = {
    "relu": ([node("Relu", "z")], 1.0),
    "twice": ([node("Add", "z z")], 2.0),
    "a product": ([node("Abs", "z", "a"), node("Mul", "c a")], 3.0),
    "a quotient": ([node("Abs", "z", "a"), node("Div", "a c")], 1.0),
    "side by side": ([node("Concat", "z z", axis=1)], math.sqrt(2)),
    "softmax": ([node("Softmax", "z", axis=1)], 0.5),
    "leaky": ([node("LeakyRelu", "z", alpha=2.0)], 2.0),
    "mean of all": ([node("ReduceMean", "z", axes=[-1, 2, 1])], 1 / math.sqrt(3 * 36)),
    "sum over channels": ([node("ReduceSum", "z one")], math.sqrt(3)),
    "largest": ([node("ReduceMax", "z", axes=[2])], 1.0),
    "windows apart": ([node("Abs", "z", "a"), node("MaxPool", "a", kernel_shape=[2, 2], strides=[2, 2])], 1.0),
    "windows that overlap": ([node("Abs", "z", "a"), node("MaxPool", "a", kernel_shape=[3, 3], strides=[2, 2])], 2.0),
    "windows with gaps": ([node("Abs", "z", "a"), node("MaxPool", "a", kernel_shape=[2, 2], dilations=[2, 2])], 2.0),
    "average": ([node("AveragePool", "z", kernel_shape=[2, 2], strides=[2, 2])], 0.5),
    "global average": ([node("GlobalAveragePool", "z")], 1 / 6),
    "one channel spread": ([node("Slice", "z zero one one", "s"), node("Add", "s x")], math.sqrt(2)),
    "reflected": ([node("Pad", "z pads", mode="reflect")], 3.0),
    "parts": ([node("Split", "z", "s y t", axis=1)], 1.0),
    "a norm that stays": ([node("Abs", "z", "a"), node("BatchNormalization", "a k k k v")], 2 / math.sqrt(4 + 1e-5)),
    "turned in place": ([node("Transpose", "z", "t", perm=[0, 2, 3, 1]), node("Reshape", "t flat")], 1.0),
}  # fmt: skip
ARRAYS = {
    **ONES,
    "zero": np.int64([0]),
    "one": np.int64([1]),
    "pads": np.int64([0, 0, 1, 1, 0, 0, 1, 1]),
    "k": np.float32([1, 2, 0.5]),
    "v": np.float32([4, 4, 4]),
    "flat": np.int64([0, -1]),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants(name):
    """The bound at the output when the layer's responses are 1 away, and no change of them does more."""
    nodes, constant = CONSTANTS[name]
    used = {value for _, ins, _, _ in nodes for value in ins}
    network = OnnxNetwork(behind(nodes, {key: array for key, array in ARRAYS.items() if key in used}))
    (layer,) = network.layers
    flow = network.flow
    assert isinstance(flow, Flow), flow
    assert graph_bound(flow, {layer.name: Link(layer.name, "parallel", 1.0, 0.0, 0.0)}) == pytest.approx(constant)
    data = torch.randn(5, 2, 6, 6)
    before, response = network.outputs([data]), network.capture([data], [layer.name])[layer.name].preactivations
    for scale in (1e-2, 1.0, 10.0):
        network.update(layer.name, layer.weight + scale * torch.randn(layer.weight.shape), layer.bias)
        moved = network.capture([data], [layer.name])[layer.name].preactivations
        change = float((network.outputs([data]) - before).norm())
        assert 0 < change <= constant * float((moved - response).norm()) * (1 + 1e-5)


UNKNOWN = {
    "product of two": ([node("Sigmoid", "z", "s"), node("Mul", "z s")], "Mul"),
    "product with the data": ([node("Concat", "x x", "t", axis=1), node("Slice", "t zero three one", "u"),
                               node("Mul", "z u")], "Mul"),
    "samples mixed": ([node("ReduceMean", "z", "m", axes=[0]), node("Sub", "z m")], "ReduceMean mixes samples"),
    "sample repeated": ([node("Slice", "z zero one zero", "s"), node("Add", "s z")], "first axis of 's'"),
    "samples moved": ([node("Transpose", "z", perm=[1, 0, 2, 3])], "another axis"),
    "attention": ([node("Transpose", "z", "t", perm=[0, 1, 3, 2]), node("MatMul", "z t")], "MatMul"),
    "normed": ([node("LpNormalization", "z")], "LpNormalization node 'y'"),
    "inside": ([("If", ["yes"], ["y"], {"then_branch": None, "else_branch": None})], "sub-graph"),
    "second value": ([node("MaxPool", "z", "m i", kernel_shape=[2, 2]), node("Cast", "i", to=TensorProto.FLOAT)],
                     "more than one value"),
}  # fmt: skip
MORE = {**ARRAYS, "three": np.int64([3]), "yes": np.asarray(True)}


def branch(kind):
    """A sub-graph that reads z from outside."""
    value = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    return helper.make_graph([helper.make_node(kind, ["z"], ["inner"])], "branch", [], [value])


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_has_no_constant_has_no_bound(name):
    nodes, said = UNKNOWN[name]
    if name == "inside":
        nodes = [("If", ["yes"], ["y"], {"then_branch": branch("Relu"), "else_branch": branch("Abs")})]
    used = {value for _, ins, _, _ in nodes for value in ins}
    flow = OnnxNetwork(behind(nodes, {key: array for key, array in MORE.items() if key in used})).flow
    assert isinstance(flow, str) and said in flow


def test_sizes_that_are_left_open_have_no_bound_where_it_depends_on_them():
    open_sizes = (BATCH, 2, "height", "width")
    flow = OnnxNetwork(behind([node("GlobalAveragePool", "z")], shape=open_sizes)).flow
    assert isinstance(flow, str) and "sizes open" in flow
    assert isinstance(OnnxNetwork(behind([node("Relu", "z")], shape=open_sizes)).flow, Flow)


def test_only_some_positions_have_no_bound():
    flow = OnnxNetwork(behind([node("Relu", "z")]), positions=3).flow
    assert isinstance(flow, str) and "some positions" in flow


class Residual(nn.Module):
    """A stem, a block with a shortcut layer that runs after it, pools, a branch that joins, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.one, self.two, self.down = nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(4, 6, 1, 2)
        self.three, self.four = nn.Conv2d(6, 6, 3, padding=1, groups=2), nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(12, 3, bias=False)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.stem(x)), 2, 1)
        x = F.relu(self.two(F.relu(self.one(x))) + self.down(x))
        y = F.leaky_relu(self.four(F.relu(self.three(x))) + x, 0.1)
        return torch.softmax(self.head(torch.cat([x, y], 1).mean((2, 3))), 1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    model, path = Residual().eval(), tmp_path_factory.mktemp("flow") / "residual.onnx"
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        batch = torch.export.Dim("batch")
        options = {"dynamo": True, "dynamic_shapes": ({0: batch},), "external_data": False, "verbose": False}
        torch.onnx.export(model, (torch.randn(3, 2, 6, 6),), path, **options)
    return model, onnx.load(path)


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("scheme", ["parallel", "cascade"])
def test_a_file_has_the_bound_of_the_module_it_was_made_from(exported, scheme, ignored):
    """Also where a layer is left as it is; and no network moves further than its bound."""
    module, model = exported
    data = torch.randn(60, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    options = {"epsilon": 0.3, "tolerance": 1e-2, "scheme": scheme, "progress": False}
    four = [layer.name for layer in OnnxNetwork(model).layers if layer.shape == (6, 6, 3, 3)][-1]
    one = nettrim.trim(model, data, ignore=four if ignored else (), **options).report.network
    two = nettrim.trim(module, data, ignore="four" if ignored else (), **options).report.network
    assert one.bound is not None, one.bound_reason
    assert 0 < one.discrepancy <= one.bound
    assert one.bound == pytest.approx(two.bound, rel=0.05)
    assert "along the graph" in one.theorem
