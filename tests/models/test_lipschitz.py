"""Slopes that bounds rest on, beside the functions themselves: no two points are further apart than they say."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nettrim.models import flow, lipschitz
from nettrim.models.lipschitz import slope_of

STEP = 1e-3
GRID = torch.arange(-40, 40, STEP, dtype=torch.float64)
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "relu6": F.relu6, "hardtanh": F.hardtanh, "tanh": torch.tanh, "logsigmoid": F.logsigmoid,
    "softsign": F.softsign, "clamp": lambda x: x.clamp(-2, 3), "clip": lambda x: x.clip(-2, 3),
    "clamp_min": lambda x: x.clamp_min(1), "clamp_max": lambda x: x.clamp_max(1), "abs": torch.abs, "neg": torch.neg,
    "sigmoid": torch.sigmoid, "erf": torch.erf, "gelu": F.gelu, "silu": F.silu, "mish": F.mish,
    "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid, "softplus": F.softplus, "elu": F.elu, "celu": F.celu,
    "selu": F.selu, "leaky_relu": F.leaky_relu,
}  # fmt: skip
WITH_PARAMETERS = {
    "gelu, tanh": ("gelu", {}, lambda x: F.gelu(x, approximate="tanh")),
    "silu, steep": ("silu", {}, lambda x: x * torch.sigmoid(-7 * x)),
    "leaky_relu": ("leaky_relu", {"negative_slope": -2.5}, lambda x: F.leaky_relu(x, -2.5)),
    "prelu": ("prelu", {"negative_slope": 1.5}, lambda x: F.prelu(x, torch.tensor(-1.5).double())),
    "elu": ("elu", {"alpha": 3.0}, lambda x: F.elu(x, 3.0)),
    "elu, downwards": ("elu", {"alpha": -3.0}, lambda x: F.elu(x, -3.0)),
    "celu": ("celu", {"alpha": 0.2}, lambda x: F.celu(x, 0.2)),
    "selu": ("selu", {"scale": -2.0, "alpha": 0.5}, lambda x: -2 * F.elu(x, 0.5)),
    "hardsigmoid": ("hardsigmoid", {"slope": -0.7}, lambda x: (0.3 - 0.7 * x).clamp(0, 1)),
    "softplus": ("softplus", {"threshold": 25.0}, lambda x: F.softplus(x, 3.0, 25.0)),
}


def steepest(function: Callable[[Tensor], Tensor]) -> float:
    return float(function(GRID).diff().abs().max()) / STEP


def test_every_slope_is_tried() -> None:
    assert set(lipschitz._SLOPES) - {"softmax"} <= set(FUNCTIONS)
    assert set(flow._PARAMETERS) <= set(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_slopes_are_bounds_and_not_far_above(name: str) -> None:
    slope = slope_of(name)
    assert slope is not None
    assert 0.99 * slope <= steepest(FUNCTIONS[name]) <= slope * (1 + 1e-5)


@pytest.mark.parametrize("name", WITH_PARAMETERS)
def test_slopes_that_depend_on_parameters(name: str) -> None:
    activation, parameters, function = WITH_PARAMETERS[name]
    slope = slope_of(activation, **parameters)
    assert slope is not None
    assert 0.99 * slope <= steepest(function) <= slope * (1 + 1e-5)


def test_softmax() -> None:
    """The norm of its Jacobian, largest where two entries share all."""
    slope = slope_of("softmax")
    assert slope is not None
    points = [*torch.randn(200, 5, dtype=torch.float64) * 3, torch.tensor([0, 0, -40, -40, -40], dtype=torch.float64)]
    norms = [
        float(torch.linalg.matrix_norm(torch.autograd.functional.jacobian(lambda x: x.softmax(0), point), 2))
        for point in points
    ]
    assert max(norms) <= slope * (1 + 1e-12) and norms[-1] == pytest.approx(slope)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("softplus", {"threshold": 1.0}), ("celu", {"alpha": -1.0}), ("prelu", {}), ("square", {}),
        ("elu", {"alpha": math.nan}), ("hardsigmoid", {"slope": math.inf}),
    ],
)
def test_what_has_no_slope(name: str, parameters: dict[str, float]) -> None:
    """A jump, an exponential, a slope that is not told, what is not known."""
    assert slope_of(name, **parameters) is None


ONNX = {
    "Relu": {}, "Clip": {}, "Tanh": {}, "Softplus": {}, "Softsign": {}, "Abs": {}, "Neg": {}, "Sigmoid": {}, "Erf": {},
    "Gelu": {}, "Mish": {}, "HardSwish": {}, "LeakyRelu": {"alpha": -3.0}, "Elu": {"alpha": 2.0},
    "Celu": {"alpha": 0.3}, "Selu": {}, "HardSigmoid": {"alpha": 0.6}, "PRelu": {}, "Swish": {"alpha": 2.0},
}  # fmt: skip


@pytest.mark.parametrize("kind", ONNX)
def test_the_slopes_of_onnx_nodes(kind: str) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    evaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator
    from nettrim.models import onnx_constants  # noqa: PLC0415  # an extra
    from nettrim.models.onnx_graph import Graph, attributes  # noqa: PLC0415  # an extra

    helper = onnx.helper
    newer = kind == "Swish"
    step = 1 / 64  # exact in float32
    grid = np.arange(-20, 20, step, dtype=np.float32)
    stored = [onnx.numpy_helper.from_array(np.float32([1.7]), "slope")] if kind == "PRelu" else []
    for fields in ({}, ONNX[kind]):
        node = helper.make_node(kind, ["x", "slope"] if stored else ["x"], ["y"], **fields)
        ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n"]) for name in "xy"]
        graph = helper.make_graph([node], "g", [ends[0]], [ends[1]], stored)
        opsets = [helper.make_opsetid("", 24 if newer else 22)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        slope = onnx_constants._slope(Graph(model), model.graph.node[0], attributes(model.graph.node[0]))
        assert slope is not None
        values = evaluator(model).run(None, {"x": grid})[0].astype(np.float64)
        assert 0.95 * slope <= np.abs(np.diff(values)).max() / step <= slope * (1 + 1e-3)


def test_every_onnx_slope_is_tried() -> None:
    pytest.importorskip("onnxruntime")
    from nettrim.models import onnx_constants  # noqa: PLC0415  # an extra

    assert set(onnx_constants._ACTIVATIONS) - {"Softmax"} == set(ONNX)
    assert set(onnx_constants._PARAMETERS) <= set(ONNX)
