"""Finding the weighted nodes of an ONNX graph: those seen as matrix products, and those left alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from nettrim.models.base import Skipped
from nettrim.models.onnx_convolution import unfit_convolution
from nettrim.models.onnx_graph import Constant, Graph, attributes, is_standard, sub_graphs, to_array

_PRODUCTS = ("Gemm", "MatMul", "Conv", "ConvTranspose")
_FLOATS = ("float16", "float32", "float64", "bfloat16")
_OTHER = {
    "DeformConv": "its receptive field depends on the data",
    "LSTM": "recurrent layers are not trimmed",
    "GRU": "recurrent layers are not trimmed",
    "RNN": "recurrent layers are not trimmed",
    "Einsum": "einsum products are not trimmed",
    "ConvInteger": "its weight is quantised",
    "MatMulInteger": "its weight is quantised",
    "QLinearConv": "its weight is quantised",
    "QLinearMatMul": "its weight is quantised",
    "Gather": "an embedding table is a look-up, not a product",
}
_COEFFICIENTS = ("LinearClassifier", "LinearRegressor", "SVMClassifier", "SVMRegressor")
_ANONYMOUS = re.compile(r"^(onnx::\w+|_?v?\d+|val_\d+|const\w*|initializer\w*)$", re.IGNORECASE)
_ENDINGS = re.compile(r"[._/:](weights?|kernel|matmul|gemm|conv\w*|readvariableop|w|output_0)(:0)?$", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Product:
    """A node that multiplies its input by a fixed weight.

    `side` is where the weight stands in the product: "right" (x @ W, features last) or "left" (W @ x,
    features last but one). `transposed` says whether the stored array of a matrix is (in, out).
    """

    name: str
    kind: str  # "Gemm", "MatMul", "Conv", "ConvTranspose"
    output: str  # the node's output value
    slot: int  # of the weight among the node's inputs
    side: str
    transposed: bool
    constant: Constant


def find_products(graph: Graph) -> tuple[list[Product], list[Skipped]]:
    """All nodes with weights in execution order, split into products and those left alone with their reasons."""
    products: list[Product] = []
    skipped: list[Skipped] = []
    taken = {node.name for node in graph.nodes}  # unique, as `read_model` sees to it
    for node in graph.nodes:
        for inner in _inner_weights(graph, node):
            skipped.append(inner)
        found = _examine(graph, node, taken)
        if isinstance(found, Product):
            products.append(found)
        elif found is not None:
            skipped.append(found)
    return products, skipped


def _examine(graph: Graph, node: Any, taken: set[str]) -> Product | Skipped | None:
    if not is_standard(node):
        return _foreign(graph, node, taken)
    if node.op_type in _OTHER:
        constant = next((c for c in map(graph.constant, node.input) if c is not None and c.array.ndim >= 2), None)
        if constant is None or (node.op_type == "Gather" and constant.array.dtype.name not in _FLOATS):
            return None
        return _skip(_name(node, constant, taken), node, constant.array, _OTHER[node.op_type])
    if node.op_type not in _PRODUCTS:
        return None
    if not any(name in graph.live for name in node.input[:2]):
        return None  # a product of two constants is one more constant
    for slot in (1,) if node.op_type.startswith("Conv") else (1, 0):
        reason = graph.frozen_by(node.input[slot])
        if reason is None:
            continue
        constant = graph.constant(node.input[slot])
        if constant is None:
            return _skip(_name(node, None, taken), node, np.zeros(()), reason)
        name = _name(node, constant, taken)
        reason = _unfit(node, constant.array)
        return _skip(name, node, constant.array, reason) if reason else _product(node, slot, constant, name)
    return None


def _product(node: Any, slot: int, constant: Constant, name: str) -> Product:
    side = "right" if slot == 1 else "left"
    transposed = side == "right"
    if node.op_type.startswith("Conv"):
        transposed = False
    elif node.op_type == "Gemm":
        fields = attributes(node)
        flipped = bool(fields.get("transB" if slot == 1 else "transA", 0))
        transposed = transposed != flipped
    return Product(name, node.op_type, node.output[0], slot, side, transposed, constant)


def _unfit(node: Any, weight: np.ndarray) -> str | None:
    if weight.dtype.name not in _FLOATS:
        return f"its weight is stored as {weight.dtype.name}"
    if weight.size == 0:
        return "its weight is empty"
    if node.op_type.startswith("Conv"):
        if not 3 <= weight.ndim <= 5:
            return "only convolutions over one to three dimensions are trimmed"
        return unfit_convolution(node)
    return None if weight.ndim == 2 else f"its weight has {weight.ndim} dimensions instead of two"


def _foreign(graph: Graph, node: Any, taken: set[str]) -> Skipped | None:
    """Weighted nodes from other operator sets (contrib operators, classical models)."""
    reason = f"{node.domain}.{node.op_type} is outside the standard operator set"
    constant = next((c for c in map(graph.constant, node.input) if c is not None and c.array.ndim >= 2), None)
    if constant is not None:
        return _skip(_name(node, constant, taken), node, constant.array, reason)
    if node.op_type in _COEFFICIENTS:
        coefficients = np.asarray(attributes(node).get("coefficients", ()), dtype=np.float32)
        return _skip(_name(node, None, taken), node, coefficients, reason)
    return None


def _inner_weights(graph: Graph, node: Any) -> Iterator[Skipped]:
    """Products with stored weights inside the bodies of If, Loop and Scan."""
    for body in sub_graphs(node):
        stored = {tensor.name: tensor for tensor in body.initializer}
        for inner in body.node:
            yield from _inner_weights(graph, inner)
            if inner.op_type == "Constant":
                value = attributes(inner).get("value")
                if value is not None:
                    stored[inner.output[0]] = value
            if inner.op_type not in _PRODUCTS and inner.op_type not in _OTHER:
                continue
            for name in inner.input:
                array = to_array(stored[name]) if name in stored else None
                if array is None and name in graph.initializers:
                    array = to_array(graph.initializers[name])
                if array is not None and array.ndim >= 2:
                    label = inner.name or inner.output[0]
                    yield _skip(label, inner, array, f"it is inside a sub-graph of {node.op_type}")
                    break


def _skip(name: str, node: Any, weight: np.ndarray, reason: str) -> Skipped:
    return Skipped(name, node.op_type, tuple(weight.shape), reason, int(np.count_nonzero(weight)))


def _name(node: Any, constant: Constant | None, taken: set[str]) -> str:
    """The node's own name; for a nameless node the weight's name, or the output's when that is anonymous too."""
    if node.name:
        return node.name
    name = ""
    if constant is not None and not _ANONYMOUS.match(constant.stored):
        name = _ENDINGS.sub("", constant.stored)
    name = name or (node.output[0] if node.output else node.op_type)
    unique, count = name, 1
    while unique in taken:
        count += 1
        unique = f"{name}_{count}"
    taken.add(unique)
    return unique
