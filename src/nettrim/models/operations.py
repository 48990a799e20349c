"""What PyTorch's operations mean to a pruner: layers, activations, sums, and what leaves values as they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import _C, Tensor

CONVOLUTIONS = {f"conv{d}d": d for d in (1, 2, 3)}
TRANSPOSED = {f"conv_transpose{d}d": d for d in (1, 2, 3)}
ADDITIONS = frozenset({"add", "add_"})
SAME_LAYOUT = frozenset(
    {"contiguous", "clone", "detach", "alias", "to", "float", "double", "half", "bfloat16", "type_as", "cpu", "cuda"}
)
DROPOUTS = frozenset(
    {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "dropout_"}
)
RESHAPES = frozenset(
    {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "transpose", "permute", "movedim", "swapaxes"}
    | {"view_as", "reshape_as", "t", "__get__ T", "__get__ mT"}
)
MAX_POOLS = frozenset([f"{kind}max_pool{d}d" for kind in ("", "adaptive_") for d in (1, 2, 3)])

_METADATA = frozenset(
    {"size", "dim", "numel", "stride", "is_contiguous", "is_floating_point", "is_complex", "is_signed", "element_size"}
    | {
        "nelement",
        "ndimension",
        "get_device",
        "storage_offset",
        "has_names",
        "is_same_size",
        "is_inference",
        "is_set_to",
    }
    | {"is_pinned", "is_tensor", "result_type", "data_ptr", "untyped_storage", "storage"}
    | {"__len__", "__hash__", "__repr__", "__format__"}
)
_TENSOR_PROPERTIES = frozenset({"T", "mT", "H", "mH", "data", "real", "imag", "grad"})
_READS_MEMORY = frozenset({"numpy", "tolist", "__array__", "data_ptr", "untyped_storage", "storage", "__dlpack__"})


def operation_name(func: Callable[..., Any]) -> str:
    """A function's name; properties read as `__get__ T`."""
    name = getattr(func, "__name__", type(func).__name__)
    return f"{name} {getattr(func.__self__, '__name__', '')}" if name == "__get__" else name  # type: ignore[attr-defined]


def is_metadata(name: str) -> bool:
    """Whether an operation only asks for shape, type or place."""
    if name.startswith("__get__ "):
        return name.removeprefix("__get__ ") not in _TENSOR_PROPERTIES
    return name in _METADATA


def reads_memory(name: str) -> bool:
    """Whether an operation lets code read a tensor's memory unseen."""
    return name in _READS_MEMORY


@dataclass(frozen=True)
class Geometry:
    """How a layer's weight meets its input: the settings of a convolution, or a plain product."""

    kind: str  # "Linear", "Conv2d", "ConvTranspose1d", ...
    dims: int = 0  # spatial dimensions
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    groups: int = 1
    flipped: bool = False  # the weight is stored as (in, out), as a plain product applies it

    @property
    def transposed(self) -> bool:
        """Whether this is a transposed convolution."""
        return self.kind.startswith("ConvTranspose")


@dataclass(frozen=True, eq=False)
class LinearCall:
    """The arguments of a call that applies a weight to an input."""

    inputs: Tensor
    weight: Tensor
    bias: Tensor | None
    geometry: Geometry


def overlap(kernel: int, stride: int, dilation: int) -> int:
    """How many windows along one axis an entry can be in: it meets every stride / gcd(stride, dilation)-th tap."""
    return math.ceil(kernel * math.gcd(stride, dilation) / stride)


def linear_call(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> LinearCall | None:
    """The call of a linear map or convolution as such, None for any other operation."""
    if name == "linear":
        values = _bound(("input", "weight", "bias"), args, kwargs)
        return _linear_call(values, Geometry("Linear"))
    if name in _PRODUCTS:
        return _product(_bound(_PRODUCTS[name], args, kwargs))
    if name in CONVOLUTIONS:
        dims = CONVOLUTIONS[name]
        values = _bound(("input", "weight", "bias", "stride", "padding", "dilation", "groups"), args, kwargs)
        padding = values.get("padding", 0)
        geometry = Geometry(
            f"Conv{dims}d",
            dims,
            _tuple(values.get("stride", 1), dims),
            padding if isinstance(padding, str) else _tuple(padding, dims),
            _tuple(values.get("dilation", 1), dims),
            groups=values.get("groups", 1),
        )
        return _linear_call(values, geometry)
    if name in TRANSPOSED:
        dims = TRANSPOSED[name]
        order = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
        values = _bound(order, args, kwargs)
        geometry = Geometry(
            f"ConvTranspose{dims}d",
            dims,
            _tuple(values.get("stride", 1), dims),
            _tuple(values.get("padding", 0), dims),
            _tuple(values.get("dilation", 1), dims),
            _tuple(values.get("output_padding", 0), dims),
            values.get("groups", 1),
        )
        return _linear_call(values, geometry)
    return None


def activation_name(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """An activation as the programs know it ("relu", "leaky_relu:0.01", ...), None for anything else.

    Only monotone activations that stretch no distance count: a leaky slope outside (0, 1] does not.
    """
    plain = name.strip("_")  # F.threshold calls itself _threshold
    if plain in ("relu", "sigmoid", "tanh", "hardsigmoid", "relu6"):
        return plain
    get = _bound(_ACTIVATION_ARGUMENTS.get(plain, ()), args, kwargs).get
    if plain == "hardtanh":
        return _clamped(get("min_val", -1.0), get("max_val", 1.0))
    if plain in ("clamp", "clip", "clamp_min", "clamp_max"):
        return _clamped(get("min"), get("max"))
    if plain == "threshold":
        return "relu" if get("threshold") == 0 and get("value") == 0 else None
    if plain == "softplus":
        return "softplus" if get("beta", 1) == 1 and get("threshold", 20) == 20 else None
    if plain == "leaky_relu":
        return _sloped("leaky_relu", get("negative_slope", 0.01))
    if plain == "prelu":
        weight = get("weight")
        return _sloped("prelu", weight.item()) if isinstance(weight, Tensor) and weight.numel() == 1 else None
    return None


_ACTIVATION_ARGUMENTS = {
    "hardtanh": ("input", "min_val", "max_val"),
    "clamp": ("input", "min", "max"),
    "clip": ("input", "min", "max"),
    "clamp_min": ("input", "min"),
    "clamp_max": ("input", "max"),
    "threshold": ("input", "threshold", "value"),
    "softplus": ("input", "beta", "threshold"),
    "leaky_relu": ("input", "negative_slope"),
    "prelu": ("input", "weight"),
}


def _clamped(low: Any, high: Any) -> str | None:
    if isinstance(low, Tensor) or isinstance(high, Tensor) or low is None:
        return None
    low, high = float(low), math.inf if high is None else float(high)
    if high == math.inf:
        return "relu" if low == 0 else None
    if (low, high) == (0.0, 6.0):
        return "relu6"
    return f"hardtanh:{low!r}:{high!r}" if low < high else None


def _sloped(name: str, slope: float) -> str | None:
    if slope == 0:
        return "relu"
    return f"{name}:{float(slope)!r}" if 0 < slope <= 1 else None


_PRODUCTS = {
    "matmul": ("input", "other"),
    "mm": ("input", "mat2"),
    "addmm": ("bias", "mat1", "mat2"),
}


def _product(values: Mapping[str, Any]) -> LinearCall | None:
    """x @ W or b + x @ W with a matrix W (in, out); None for other products, as with a bias for each row."""
    inputs = values.get("mat1", values.get("input"))
    weight, bias = values.get("other", values.get("mat2")), values.get("bias")
    if "mat1" in values and "input" in values:  # addmm's bias, given by its own name
        bias = values["input"]
    if not isinstance(weight, Tensor) or weight.dim() != 2 or values.get("alpha", 1) != 1 or values.get("beta", 1) != 1:
        return None
    if bias is not None and tuple(bias.shape) != tuple(weight.shape[1:]):
        return None
    return _linear_call({"input": inputs, "weight": weight, "bias": bias}, Geometry("Linear", flipped=True))


def _linear_call(values: Mapping[str, Any], geometry: Geometry) -> LinearCall | None:
    inputs, weight = values.get("input"), values.get("weight")
    if not isinstance(inputs, Tensor) or not isinstance(weight, Tensor) or weight.dim() < 2:
        return None
    if _C._functorch.is_functorch_wrapped_tensor(inputs):  # type: ignore[attr-defined]  # vmap hides a dimension
        return None
    return LinearCall(inputs, weight, values.get("bias"), geometry)


def _bound(order: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {**dict(zip(order, args, strict=False)), **kwargs}


def _tuple(value: Any, dims: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * dims
    value = tuple(int(v) for v in value)
    return value * dims if len(value) == 1 else value
