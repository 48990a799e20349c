"""What a network takes on disk, in every form one may choose. Each number is the length of bytes really made."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from nettrim.gain.sparse_file import check_named, check_tensor, sparse_bytes

_LEVEL = 9


def sizes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Bytes of the floating tensors, each in its own type, in each form.

    dense: a safetensors file as it is. bitmask: `save_sparse`'s file. csr: values, int32 columns and int32 row starts
    of every matrix (convolutions as matrices) where that is smaller than dense. dense zlib: the dense file compressed.
    bitmask zlib, bitmask lzma: masks and byte-shuffled values, compressed. Raises InputError for what is no tensor.
    """
    check_named(tensors)
    for name, tensor in tensors.items():
        check_tensor(name, tensor)
    floats = {name: _plain(tensor) for name, tensor in tensors.items() if tensor.is_floating_point()}
    dense = save(floats)
    shuffled = _shuffled(floats)
    return {
        "dense": len(dense),
        "bitmask": len(sparse_bytes(floats)),
        "csr": len(save(_csr(floats))),
        "dense zlib": len(zlib.compress(dense, _LEVEL)),
        "bitmask zlib": len(zlib.compress(shuffled, _LEVEL)),
        "bitmask lzma": len(lzma.compress(shuffled, preset=6)),
    }


def nonzeros(tensors: Mapping[str, Tensor]) -> int:
    """Weights that are not zero: entries of floating tensors with at least two dimensions."""
    return sum(int(_kept(t).sum()) for t in tensors.values() if t.is_floating_point() and t.dim() >= 2)


def _kept(tensor: Tensor) -> Tensor:
    """Which entries are not zero; 8-bit types know few operations."""
    return (tensor.float() if tensor.element_size() < 2 else tensor) != 0


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()


def _csr(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A dense or CSR part for each tensor, whichever is smaller."""
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        matrix = tensor.reshape(len(tensor), -1) if tensor.dim() >= 2 and len(tensor) else None
        kept = _kept(tensor)
        count = int(kept.sum())
        if matrix is None or (tensor.element_size() + 4) * count + 4 * (len(matrix) + 1) >= tensor.nbytes:
            stored[name] = tensor
            continue
        rows, columns = torch.nonzero(kept.reshape(matrix.shape), as_tuple=True)
        starts = torch.zeros(len(matrix) + 1, dtype=torch.int32)
        starts[1:] = torch.bincount(rows, minlength=len(matrix)).cumsum(0)
        stored[f"{name}.values"] = tensor.reshape(-1)[kept.reshape(-1)]
        stored[f"{name}.columns"] = columns.to(torch.int32)
        stored[f"{name}.rows"] = starts
    return stored


def _shuffled(tensors: Mapping[str, Tensor]) -> bytes:
    """Masks and values, the values' first bytes together, then their second bytes, and so on: compresses better."""
    masks: list[bytes] = []
    values: dict[int, list[np.ndarray]] = {}  # by bytes of a number: (numbers, bytes)
    for tensor in tensors.values():
        flat = tensor.reshape(-1)
        kept = _kept(flat)
        masks.append(np.packbits(kept.numpy()).tobytes())
        size = flat.element_size()
        values.setdefault(size, []).append(flat.view(torch.uint8).reshape(-1, size)[kept].numpy())
    return b"".join(masks) + b"".join(np.concatenate(parts).T.tobytes() for parts in values.values())
