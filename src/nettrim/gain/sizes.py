"""What a network takes on disk, in every form one may choose. Each number is the length of bytes really made."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from nettrim.gain.sparse_file import sparse_bytes

_LEVEL = 9


def sizes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Bytes of the floating tensors, in float32, in each form.

    dense: a safetensors file as it is. bitmask: `save_sparse`'s file. csr: values, int32 columns and int32 row starts
    of every matrix (convolutions as matrices) where that is smaller than dense. dense zlib: the dense file compressed.
    bitmask zlib, bitmask lzma: masks and byte-shuffled values, compressed.
    """
    floats = {name: _float32(tensor) for name, tensor in tensors.items() if tensor.is_floating_point()}
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
    return sum(int(torch.count_nonzero(t)) for t in tensors.values() if t.is_floating_point() and t.dim() >= 2)


def _float32(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).contiguous().clone()


def _csr(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A dense or CSR part for each tensor, whichever is smaller."""
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        matrix = tensor.reshape(len(tensor), -1) if tensor.dim() >= 2 and len(tensor) else None
        count = int(torch.count_nonzero(tensor))
        if matrix is None or 8 * count + 4 * (len(matrix) + 1) >= tensor.nbytes:
            stored[name] = tensor
            continue
        rows, columns = torch.nonzero(matrix, as_tuple=True)
        starts = torch.zeros(len(matrix) + 1, dtype=torch.int32)
        starts[1:] = torch.bincount(rows, minlength=len(matrix)).cumsum(0)
        stored[f"{name}.values"] = matrix[rows, columns]
        stored[f"{name}.columns"] = columns.to(torch.int32)
        stored[f"{name}.rows"] = starts
    return stored


def _shuffled(tensors: Mapping[str, Tensor]) -> bytes:
    """Masks and values, the values' first bytes together, then their second bytes, and so on: compresses better."""
    masks, values = [], []
    for tensor in tensors.values():
        flat = tensor.reshape(-1).numpy()
        masks.append(np.packbits(flat != 0).tobytes())
        values.append(flat[flat != 0])
    together = np.concatenate(values) if values else np.zeros(0, np.float32)
    return b"".join(masks) + together.view(np.uint8).reshape(-1, 4).T.tobytes()
