"""ONNX convolution settings as the shared geometry that `models.unfold` understands."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from nettrim.models.onnx_graph import attributes
from nettrim.models.operations import Geometry


@dataclass(frozen=True)
class Convolution:
    """The settings of a Conv or ConvTranspose node."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: tuple[int, ...]  # begins, then ends
    auto_pad: str
    groups: int
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    @property
    def geometry(self) -> Geometry:
        """Of an input already padded; unequal pads of a transposed convolution move into its output padding."""
        dims = len(self.kernel)
        if not self.transposed:
            return Geometry(f"Conv{dims}d", dims, self.stride, (0,) * dims, self.dilation, groups=self.groups)
        begins, ends = self.pads[:dims], self.pads[dims:]
        extra = tuple(o + b - e for o, b, e in zip(self.output_padding, begins, ends, strict=True))
        return Geometry(f"ConvTranspose{dims}d", dims, self.stride, begins, self.dilation, extra, self.groups)

    def padded(self, inputs: Tensor) -> Tensor:
        """The input with the node's own padding added, so that `geometry` needs none."""
        if self.transposed:
            return inputs
        sides: list[int] = []
        for axis in range(len(self.kernel)):
            sides = [*self._sides(axis, inputs.shape[2 + axis]), *sides]
        return F.pad(inputs, sides) if any(sides) else inputs

    def _sides(self, axis: int, size: int) -> tuple[int, int]:
        if self.auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            stride, reach = self.stride[axis], self.dilation[axis] * (self.kernel[axis] - 1) + 1
            total = max((math.ceil(size / stride) - 1) * stride + reach - size, 0)
            small, large = total // 2, total - total // 2
            return (small, large) if self.auto_pad == "SAME_UPPER" else (large, small)
        if self.auto_pad == "VALID":
            return 0, 0
        return self.pads[axis], self.pads[len(self.kernel) + axis]


def convolution_of(node: Any, shape: tuple[int, ...]) -> Convolution:
    """Read a node's settings; absent ones take ONNX's defaults."""
    fields = attributes(node)
    dims = len(shape) - 2
    auto_pad = fields.get("auto_pad", b"NOTSET")
    return Convolution(
        kernel=tuple(shape[2:]),
        stride=tuple(fields.get("strides") or (1,) * dims),
        dilation=tuple(fields.get("dilations") or (1,) * dims),
        pads=tuple(fields.get("pads") or (0,) * (2 * dims)),
        auto_pad=auto_pad.decode() if isinstance(auto_pad, bytes) else str(auto_pad),
        groups=int(fields.get("group", 1)),
        transposed=node.op_type == "ConvTranspose",
        output_padding=tuple(fields.get("output_padding") or (0,) * dims),
    )


def unfit_convolution(node: Any) -> str | None:
    """Why a convolution's settings are not supported; None when they are."""
    fields = attributes(node)
    if node.op_type != "ConvTranspose":
        return None
    auto_pad = fields.get("auto_pad", b"NOTSET")
    if fields.get("output_shape") or auto_pad not in (b"NOTSET", b"VALID", "NOTSET", "VALID"):
        return "a transposed convolution that states its output shape instead of its padding is not trimmed"
    return None
