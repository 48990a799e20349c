"""Turning weighted nodes into sites: a weight and a bias of their own, and foldable neighbours folded in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nettrim.models.onnx_convolution import Convolution, convolution_of
from nettrim.models.onnx_edit import Editor
from nettrim.models.onnx_graph import Graph, attributes, is_standard
from nettrim.models.onnx_import import onnx
from nettrim.models.onnx_products import Product

_NARROW = ("float16", "bfloat16")
_LAST_AXIS_KEPT = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})


@dataclass(frozen=True)
class Site:
    """Where a layer lives in the prepared model: names of values and initializers, no numbers."""

    name: str
    kind: str
    source: str  # the value multiplied by the weight
    flipped: bool  # the source is (features, samples)
    side: str  # "right" (features last) or "left" (features last but one)
    weight: str  # initializer
    transposed: bool  # a matrix stored as (in, out)
    shape: tuple[int, ...]  # of the weight as the file had it
    bias: str | None  # initializer
    output: str  # the product node's own output value
    result: str  # the value after the bias
    offsets: tuple[tuple[str, float], ...] = ()  # values added besides the bias, with their factors
    preactivation: str = ""  # the value the activation receives
    response: str | None = None  # the value the activation gives, None when it stands behind a pool
    end: str = ""  # the value the activation gives, behind a pool too
    activation: str = "linear"
    convolution: Convolution | None = None

    @property
    def axis(self) -> int:
        """Where the features of the output are."""
        return 1 if self.convolution is not None else (-1 if self.side == "right" else -2)


def prepare(editor: Editor, product: Product, notes: list[str]) -> Site:
    """Give a product an own weight and bias in the edited model and fold a following BatchNormalization into them."""
    node = _node(editor, product.output)
    node.name = product.name  # a nameless node keeps the name it was given, in the written file too
    constant = product.constant
    fields = attributes(node)
    readers = len(editor.graph.consumers.get(constant.stored, ()))
    if readers > 1:
        notes.append(
            f"{product.name}: its weight {constant.stored!r} had {readers} uses in the file; each has its own now"
        )
    array = constant.array
    alpha = float(fields.get("alpha", 1.0)) if product.kind == "Gemm" else 1.0
    if alpha != 1.0:
        array = (array.astype(np.float64) * alpha).astype(array.dtype)
        _set(node, "alpha", 1.0)
    keep = not constant.path and editor.is_own(constant.stored)
    base = constant.stored if constant.stored in editor.graph.initializers else f"{product.name}.weight"
    weight = editor.own(node, product.slot, array, base, keep=keep)
    editor.refresh()
    flipped = product.kind == "Gemm" and bool(fields.get("transA" if product.slot == 1 else "transB", 0))
    flipped = flipped != (product.side == "left")
    convolution = convolution_of(node, array.shape) if product.kind.startswith("Conv") else None
    site = Site(
        name=product.name,
        kind=product.kind,
        source=node.input[0 if product.slot == 1 else 1],
        flipped=flipped,
        side=product.side,
        weight=weight,
        transposed=product.transposed,
        shape=tuple(product.constant.array.shape),
        bias=None,
        output=product.output,
        result=product.output,
        convolution=convolution,
    )
    site = _third_input(editor, node, site, fields)
    site = _added_bias(editor, site)
    while (folded := _fold_next(editor, site)) is not None:
        site = folded
    return site


def widened(graph: Graph, products: Sequence[Product]) -> list[str]:
    """A remark on weights that are stored in half precision behind a Cast: they are kept as the Cast gives them."""
    found = []
    for product in products:
        stored = graph.initializers.get(product.constant.stored)
        narrow = "" if stored is None else onnx.helper.tensor_dtype_to_np_dtype(stored.data_type).name
        if narrow in _NARROW and product.constant.array.dtype.name not in _NARROW:
            found.append((product.name, narrow, product.constant.array.dtype.name))
    if not found:
        return []
    name, narrow, wide = found[0]
    return [
        f"{len(found)} weights, the first that of {name}, were stored in {narrow} behind a Cast and are kept in {wide} "
        "now: rounding would move them out of what is certified"
    ]


def add_bias(editor: Editor, site: Site, bias: np.ndarray) -> Site:
    """Give a site without a bias one: the node's own third input, or an Add behind it."""
    node = _node(editor, site.output)
    if site.kind != "MatMul" and (len(node.input) < 3 or not node.input[2]):
        name = editor.fresh(f"{site.name}.bias")
        editor.store(name, _as_stored(site, bias, bool(site.convolution)))
        if len(node.input) < 3:
            node.input.append(name)
        else:
            node.input[2] = name
        _set(node, "beta", 1.0, only_if_present=True)
        editor.refresh()
        return replace(site, bias=name)
    name = editor.fresh(f"{site.name}.bias")
    editor.store(name, _as_stored(site, bias, False))
    result = site.result
    inner = editor.fresh(f"{result}_product")
    node.output[0] = inner
    added = onnx.helper.make_node("Add", [inner, name], [result], name=editor.fresh(f"{site.name}.add_bias"))
    editor.insert(inner, added)
    return replace(site, bias=name, output=inner)


def per_feature(array: np.ndarray, rank: int | None, axis: int, features: int) -> np.ndarray | None:
    """A constant that is one number per feature (or one for all) beside a value of that rank, as a vector."""
    if array.ndim > (rank if rank is not None else -axis if axis < 0 else axis + 1):
        return None
    place = axis if axis < 0 else axis - (rank or axis + 1)
    sizes = array.shape[::-1]  # sizes[k] belongs to axis -1-k
    if any(size != 1 for k, size in enumerate(sizes) if -1 - k != place):
        return None
    flat = array.reshape(-1)
    if flat.size not in (1, features):
        return None
    return np.broadcast_to(flat, (features,)).copy()


def _third_input(editor: Editor, node: Any, site: Site, fields: dict[str, Any]) -> Site:
    """The bias a Gemm or Conv carries itself; a Gemm may also add a whole matrix."""
    if site.kind == "MatMul" or len(node.input) < 3 or not node.input[2]:
        return site
    value = node.input[2]
    beta = float(fields.get("beta", 1.0)) if site.kind == "Gemm" else 1.0
    constant = editor.graph.constant(value)
    features = _features(editor, site)
    vector = None
    if constant is not None:
        rank, axis = (1, -1) if site.convolution else (2, site.axis)
        vector = per_feature(constant.array, rank, axis, features)
    if constant is None or vector is None:
        return replace(site, offsets=((value, beta),))
    keep = beta == 1.0 and constant.array.size == features and editor.is_own(value)
    if beta != 1.0:
        vector = (vector.astype(np.float64) * beta).astype(vector.dtype)
        _set(node, "beta", 1.0)
    stored = constant.array if keep else _as_stored(site, vector, bool(site.convolution))
    base = value if value in editor.graph.initializers else f"{site.name}.bias"
    name = editor.own(node, 2, stored, base, keep=keep)
    editor.refresh()
    return replace(site, bias=name)


def _added_bias(editor: Editor, site: Site) -> Site:
    """The bias of a product without one: an Add of a constant, in either order."""
    if site.bias is not None:
        return site
    found = _constant_operand(editor, site, ("Add",))
    moved = found is None
    if found is None:
        found = _constant_operand(editor, replace(site, result=_behind_reshapes(editor, site)), ("Add",))
    if found is None or (moved and (found[2].size == 1 or not _spans_features(editor, *found))):
        return site
    node, slot, vector = found
    if site.kind != "MatMul" and not site.offsets and not moved:
        return add_bias(editor, _renamed(site, editor.bypass(node)), vector)
    value = node.input[slot]
    array = onnx.numpy_helper.to_array(editor.graph.initializers[value]) if editor.is_own(value) else None
    keep = array is not None and array.size == vector.size
    stored = array if keep and array is not None else _as_stored(site, vector, False)
    base = value if value in editor.graph.initializers else f"{site.name}.bias"
    name = editor.own(node, slot, stored, base, keep=keep)
    editor.refresh()
    return replace(site, bias=name, result=node.output[0])


def _behind_reshapes(editor: Editor, site: Site) -> str:
    """Where a product's result arrives through reshapes alone, as in TensorFlow's dense layers on sequences."""
    value = site.result
    if site.convolution is not None or site.side == "left":
        return value
    while (use := editor.graph.only_use(value)) is not None:
        node = editor.graph.nodes[use.node]
        if use.slot != 0 or not is_standard(node) or node.op_type not in _LAST_AXIS_KEPT:
            break
        value = node.output[0]
    return value


def _spans_features(editor: Editor, node: Any, slot: int, vector: np.ndarray) -> bool:
    """Whether the added constant has every feature, which proves that the reshapes kept the last axis."""
    constant = editor.graph.constant(node.input[slot])
    return constant is not None and constant.array.size == vector.size


def _fold_next(editor: Editor, site: Site) -> Site | None:
    """Fold the one node behind a site into its weight and bias; None when it is nothing of the kind."""
    found = _normalization(editor, site)
    if found is None:
        operand = _constant_operand(editor, site, ("Add", "Sub", "Mul", "Div"))
        if operand is None or (site.offsets and operand[0].op_type in ("Mul", "Div")):
            return None
        node, slot, vector = operand
        vector = vector.astype(np.float64)
        one, zero = np.ones_like(vector), np.zeros_like(vector)
        if node.op_type in ("Sub", "Div") and slot == 0:
            return None
        with np.errstate(all="ignore"):
            scale, shift = {
                "Add": (one, vector),
                "Sub": (one, -vector),
                "Mul": (vector, zero),
                "Div": (one / vector, zero),
            }[node.op_type]
    else:
        node, scale, shift = found
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        return None
    stored = onnx.numpy_helper.to_array(editor.graph.initializers[site.weight])
    scaled = stored.astype(np.float64) * _along_outputs(site, scale, stored.ndim)
    with np.errstate(over="ignore"):
        cast = scaled.astype(stored.dtype)
    if not np.isfinite(cast).all():
        return None
    editor.store(site.weight, cast)
    bias = shift
    if site.bias is not None:
        present = onnx.numpy_helper.to_array(editor.graph.initializers[site.bias]).reshape(-1)
        bias = present.astype(np.float64) * scale + shift
    site = _renamed(site, editor.bypass(node))
    if site.bias is None and not bias.any():
        return site
    if site.bias is None:
        return add_bias(editor, site, bias.astype(stored.dtype))
    shape = tuple(editor.graph.initializers[site.bias].dims)
    editor.store(site.bias, bias.astype(stored.dtype).reshape(shape))
    editor.refresh()
    return site


def _normalization(editor: Editor, site: Site) -> tuple[Any, np.ndarray, np.ndarray] | None:
    """Scale and shift of the BatchNormalization behind a site, in evaluation mode with stored statistics."""
    use = editor.graph.only_use(site.result)
    node = editor.graph.nodes[use.node] if use is not None else None
    if use is None or node is None or node.op_type != "BatchNormalization" or not is_standard(node) or use.slot != 0:
        return None
    fields = attributes(node)
    if fields.get("training_mode", 0) or not fields.get("spatial", 1) or any(node.output[1:]) or site.offsets:
        return None
    if site.convolution is None and (site.side == "left" or _rank(editor, site) != 2):
        return None  # its channels are not the product's features
    constants = [editor.graph.constant(name) for name in node.input[1:5]]
    arrays = [c.array.astype(np.float64).reshape(-1) for c in constants if c is not None]
    if len(arrays) != 4 or any(array.size != _features(editor, site) for array in arrays):
        return None
    gamma, beta, mean, variance = arrays
    with np.errstate(all="ignore"):  # what is not finite is not folded
        scale = gamma / np.sqrt(variance + float(fields.get("epsilon", 1e-5)))
        return node, scale, beta - mean * scale


def _constant_operand(editor: Editor, site: Site, kinds: tuple[str, ...]) -> tuple[Any, int, np.ndarray] | None:
    """The elementwise node behind a site whose other operand is a constant per feature."""
    use = editor.graph.only_use(site.result)
    if use is None:
        return None
    node = editor.graph.nodes[use.node]
    if node.op_type not in kinds or not is_standard(node) or len(node.input) != 2:
        return None
    slot = 1 - use.slot
    constant = editor.graph.constant(node.input[slot])
    if constant is None:
        return None
    vector = per_feature(constant.array, _rank(editor, site), site.axis, _features(editor, site))
    return None if vector is None else (node, slot, vector)


def _rank(editor: Editor, site: Site) -> int | None:
    if site.convolution is not None:
        return len(site.shape)
    at_the_node = site.kind == "Gemm" and site.result == site.output
    return 2 if at_the_node else editor.graph.ranks.get(site.result)


def _features(editor: Editor, site: Site) -> int:
    shape = site.shape
    if site.convolution is not None and site.convolution.transposed:
        return shape[1] * site.convolution.groups
    return shape[1] if site.transposed else shape[0]


def _along_outputs(site: Site, scale: np.ndarray, ndim: int) -> np.ndarray:
    """A vector over the outputs, shaped to multiply the stored weight."""
    if site.convolution is not None and site.convolution.transposed:  # (in, out / groups, *kernel)
        groups = site.convolution.groups
        rows = np.repeat(scale.reshape(groups, -1), site.shape[0] // groups, axis=0)
        return rows.reshape(*rows.shape, *([1] * (ndim - 2)))
    if site.transposed:
        return scale[None, :]
    return scale.reshape(-1, *([1] * (ndim - 1)))


def _as_stored(site: Site, vector: np.ndarray, flat: bool) -> np.ndarray:
    return vector if flat or site.axis == -1 else vector.reshape(-1, 1)


def _renamed(site: Site, result: str) -> Site:
    return replace(site, result=result, output=result if site.output == site.result else site.output)


def _node(editor: Editor, output: str) -> Any:
    node = editor.graph.made_by(output)
    assert node is not None
    return node


def _set(node: Any, name: str, value: float, *, only_if_present: bool = False) -> None:
    present = [i for i, a in enumerate(node.attribute) if a.name == name]
    for index in reversed(present):
        del node.attribute[index]
    if present or not only_if_present:
        node.attribute.append(onnx.helper.make_attribute(name, value))
