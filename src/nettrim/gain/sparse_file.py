"""Sparse tensors in a safetensors file: one bit a weight and the weights that are not zero. docs/formats.md.

A tensor `NAME` with enough zeros is stored as two: `NAME.mask` (uint8, one bit an entry in row-major order, the
highest bit first) and `NAME.values` (its own type: the entries whose bit is set, in the same order). The file's
metadata lists the sparse tensors with their shapes. Everything else is stored as it is. Nothing is lost but the sign of
zeros: -0.0 comes back as 0.0, which compares equal.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nettrim.errors import DataError, InputError, should
from nettrim.files import atomic_write

FORMAT = "nettrim-sparse-1"
_KEY = "nettrim.sparse"


def sparse_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """The file as bytes. Raises InputError for what is no dense tensor, and for one with the name of another's part."""
    check_named(tensors)
    stored: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name, tensor in tensors.items():
        check_tensor(name, tensor)
        tensor = tensor.detach().cpu().contiguous()
        mask = _occupied(tensor)
        packed = (tensor.numel() + 7) // 8
        if mask is None or packed + int(mask.sum()) * tensor.element_size() >= tensor.nbytes:
            stored[name] = tensor.clone()
            continue
        shapes[name] = list(tensor.shape)
        parts = {
            f"{name}.mask": torch.from_numpy(np.packbits(mask.numpy())),
            f"{name}.values": tensor.reshape(-1)[mask].clone(),
        }
        for part, content in parts.items():
            if part in tensors:
                raise InputError(should("tensors", f"without {part!r} beside a sparse {name!r}", "both"))
            stored[part] = content
    return save(stored, metadata={"format": FORMAT, _KEY: json.dumps(shapes, sort_keys=True)})


def check_named(tensors: Mapping[str, Tensor]) -> None:
    """Raise InputError for anything but a dictionary of tensors by name."""
    if not isinstance(tensors, Mapping):
        raise InputError(should("tensors", "a dictionary of tensors by name", f"a {type(tensors).__name__}"))


def check_tensor(name: str, tensor: Tensor) -> None:
    """Raise InputError for anything but a dense tensor of numbers."""
    if not isinstance(name, str):
        raise InputError(should("tensors", "a dictionary of tensors by name", f"{name!r} for a name"))
    if not isinstance(tensor, Tensor):
        cure = "An array becomes one by torch.from_numpy."
        raise InputError(should(f"tensors[{name!r}]", "a tensor", f"a {type(tensor).__name__}", cure))
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
        got = f"a {str(tensor.layout).removeprefix('torch.')} one of {tensor.dtype} on {tensor.device}"
        raise InputError(should(f"tensors[{name!r}]", "a dense tensor of plain numbers", got))


def save_sparse(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> int:
    """Write tensors to a file, those with enough zeros as bit mask and values; returns its size in bytes."""
    data = sparse_bytes(tensors)
    path = Path(path)
    try:
        atomic_write(path, data)
    except OSError as error:
        raise InputError(should("path", "a place that can be written", f"'{path}' ({error.strerror})")) from error
    return len(data)


def load_sparse(path: str | os.PathLike[str], *, max_bytes: int = 8 * 2**30) -> dict[str, Tensor]:
    """The tensors of a file that `save_sparse` wrote, dense and equal to what they were.

    Raises DataError for another or damaged file, and for one that unfolds to more than `max_bytes`.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as archive:
            metadata = archive.metadata() or {}
            stored = {name: archive.get_tensor(name).clone() for name in archive.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DataError(should("path", "a readable safetensors file", f"'{path}' ({error})")) from error
    if metadata.get("format") != FORMAT:
        got = f"'{path}' with format {metadata.get('format')!r}"
        raise DataError(should("path", f"a file in the format {FORMAT}", got))
    try:
        shapes = {str(name): tuple(int(n) for n in shape) for name, shape in json.loads(metadata[_KEY]).items()}
        unfolded = sum(math.prod(shape) * stored[f"{name}.values"].element_size() for name, shape in shapes.items())
        if unfolded > max_bytes:
            raise DataError(should("path", f"a file that unfolds to at most {max_bytes} bytes", f"{unfolded} bytes"))
        for name, shape in shapes.items():
            stored[name] = _unfolded(stored.pop(f"{name}.mask"), stored.pop(f"{name}.values"), shape)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(should("path", "a whole file", f"'{path}', which is damaged ({error!r})")) from error
    return stored


def _occupied(tensor: Tensor) -> Tensor | None:
    """Which entries are not zero (NaN is not); None for types that are stored as they are."""
    narrow = tensor.element_size() < 2  # not every operation knows the 8-bit types
    return None if narrow or not tensor.is_floating_point() or not tensor.numel() else tensor.reshape(-1) != 0


def _unfolded(mask: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    count = math.prod(shape)
    if any(n < 0 for n in shape) or mask.dtype != torch.uint8 or len(mask) != (count + 7) // 8:
        raise ValueError("a mask of another size")
    bits = torch.from_numpy(np.unpackbits(mask.numpy(), count=count).astype(bool))
    if int(bits.sum()) != len(values):
        raise ValueError("more or fewer values than bits")
    dense = torch.zeros(count, dtype=values.dtype)
    dense[bits] = values
    return dense.reshape(shape)
