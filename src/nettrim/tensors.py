"""Named tensors to a stream and back, as safetensors has them, piece by piece: they are never in memory twice."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from io import BufferedIOBase
from typing import Any

import torch
from torch import Tensor

_PIECE = 1 << 22  # bytes that are written at a time
_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


def raw(tensor: Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor's entries in order, a few at a time, from any device."""
    for piece in _pieces(tensor.detach()):
        yield _bytes(piece.cpu().contiguous())


def write_tensors(
    put: Callable[[bytes | memoryview], object], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Give `put` a safetensors file in pieces: its length, its header, the tensors, those of large entries first."""
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    start = 0
    for name in order:
        tensor = tensors[name]
        stop = start + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of eight
    put(struct.pack("<Q", len(text)))
    put(text)
    for name in order:
        for piece in raw(tensors[name]):
            put(piece)


def read_tensors(stream: BufferedIOBase) -> tuple[dict[str, str], dict[str, Tensor]]:
    """(metadata, tensors) of the safetensors file between where the stream stands and its end.

    Nothing is allocated that the header promises and the file has no bytes for. Raises ValueError for what is no such
    file.
    """
    here = stream.tell()
    left = stream.seek(0, os.SEEK_END) - here
    stream.seek(here)
    try:
        (size,) = struct.unpack("<Q", stream.read(8))
        if size > left - 8:
            raise ValueError("the header is cut off")
        header = json.loads(stream.read(size))
        metadata = dict(header.pop("__metadata__", {}))
        entries = {
            name: (_TYPES[entry["dtype"]], _shape(entry["shape"]), *map(int, entry["data_offsets"]))
            for name, entry in header.items()
        }
    except (struct.error, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError("the header cannot be read") from error
    left -= 8 + size
    tensors, end = {}, 0
    for name, (dtype, shape, start, stop) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if start != end or stop > left or stop - start != math.prod(shape) * dtype.itemsize:
            raise ValueError("header and tensors do not agree")
        tensors[name], end = torch.empty(shape, dtype=dtype), stop
        if stop > start and stream.readinto(_bytes(tensors[name])) != stop - start:
            raise ValueError("a tensor is cut off")
    if end != left:
        raise ValueError("header and tensors do not agree")
    return metadata, tensors


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor's entries in order, in pieces small enough to be copied."""
    if tensor.numel() * tensor.element_size() <= _PIECE or len(tensor) == 1 == tensor.ndim:
        yield from (tensor,) if tensor.numel() else ()
    elif len(tensor) == 1:
        yield from _pieces(tensor[0])
    else:
        yield from (piece for half in tensor.tensor_split(2) for piece in _pieces(half))


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor that is not empty."""
    flat = tensor.as_strided((tensor.numel(),), (1,))  # of one entry the stride may be any
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]


def _shape(sizes: Any) -> tuple[int, ...]:
    if not all(isinstance(size, int) and size >= 0 for size in sizes):
        raise TypeError("sizes are whole numbers")
    return tuple(sizes)
