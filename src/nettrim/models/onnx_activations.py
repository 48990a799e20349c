"""Names of the activations in an ONNX graph, as `nettrim.programs.activations` knows them."""

from __future__ import annotations

from typing import Any

import numpy as np

from nettrim.models.onnx_graph import Graph, attributes, is_standard

_PLAIN = {"Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh", "Softplus": "softplus"}


def activation_name(graph: Graph, node: Any) -> str | None:
    """The monotone activation a node is, with its parameters ("leaky_relu:0.1"), or None when it is none of them."""
    if not is_standard(node):
        return None
    fields = attributes(node)
    match node.op_type:
        case "LeakyRelu":
            return _leaky("leaky_relu", float(fields.get("alpha", 0.01)))
        case "PRelu":
            slope = _scalar(graph, node.input[1])
            return None if slope is None else _leaky("prelu", slope)
        case "HardSigmoid":
            alpha, beta = float(fields.get("alpha", 0.2)), float(fields.get("beta", 0.5))
            return "hardsigmoid" if abs(alpha - 1 / 6) < 1e-6 and abs(beta - 0.5) < 1e-6 else None
        case "Clip":
            return _clip(graph, node, fields)
        case "Max" if len(node.input) == 2:
            bounds = [_scalar(graph, name) for name in node.input]
            return "relu" if 0.0 in bounds else None
        case _:
            return _PLAIN.get(node.op_type)


def data_input(graph: Graph, node: Any) -> str:
    """The input of an activation node that is not one of its parameters."""
    if node.op_type == "Max" and graph.constant(node.input[0]) is not None:
        return node.input[1]
    return node.input[0]


def _leaky(name: str, slope: float) -> str | None:
    if slope == 0:
        return "relu"
    if slope == 1:
        return "linear"
    return f"{name}:{_short(slope)!r}" if 0 < slope < 1 else None  # steeper ones are not 1-Lipschitz


def _clip(graph: Graph, node: Any, fields: dict[str, Any]) -> str | None:
    """Bounds are attributes before opset 11, optional inputs since."""
    low, high = float(fields.get("min", -np.inf)), float(fields.get("max", np.inf))
    for slot in (1, 2):
        if len(node.input) > slot and node.input[slot]:
            bound = _scalar(graph, node.input[slot])
            if bound is None:
                return None
            low, high = (bound, high) if slot == 1 else (low, bound)
    largest = float(np.finfo(np.float32).max)
    low, high = (-np.inf if low <= -largest else low), (np.inf if high >= largest else high)
    if not low < high:
        return None
    if low == 0 and high == np.inf:
        return "relu"
    if low == 0 and high == 6:
        return "relu6"
    if np.isinf(low) and np.isinf(high):
        return "linear"
    return f"hardtanh:{_short(low)!r}:{_short(high)!r}"


def _short(value: float) -> float:
    """The shortest number that is the same in float32: 0.1 instead of 0.10000000149011612."""
    return float(str(np.float32(value))) if np.float32(value) == value else value


def _scalar(graph: Graph, value: str) -> float | None:
    """The number a constant holds when all its entries are equal."""
    found = graph.constant(value)
    if found is None or found.array.size == 0:
        return None
    flat = found.array.reshape(-1).astype(np.float64)
    return float(flat[0]) if bool(np.all(flat == flat[0])) else None
