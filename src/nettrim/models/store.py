"""Where samples live: in memory, or beyond a budget in memory-mapped .npy files written batch by batch."""

from __future__ import annotations

import re
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nettrim.errors import InputError, should
from nettrim.scratch import scratch_folder

_SLAB = 1 << 20  # bytes
_ALIGNED = 64  # bytes at a multiple of which tensors begin, as torch's own
_HEADER = 128  # bytes kept for the .npy header, rewritten when the number of rows is known


class Memory:
    """How many bytes of samples all stores that share this hold in memory, of at most `budget` (None: no limit).

    What a tensor took is given back when nothing refers to its numbers any more. A copy in another process starts anew.
    """

    def __init__(self, budget: int | None = None) -> None:
        self.budget, self.used = budget, 0
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[type[Memory], tuple[int | None]]:
        return Memory, (self.budget,)

    def take(self, size: int) -> bool:
        """Reserve so many bytes if the budget allows it."""
        with self._lock:
            if self.budget is not None and self.used + size > self.budget:
                return False
            self.used += size
            return True

    def give(self, size: int) -> None:
        """Give so many bytes back."""
        with self._lock:
            self.used -= size

    def joined(self, parts: list[Tensor]) -> Tensor:
        """The rows of `parts`, for which memory was taken, in one tensor; each goes as soon as it is copied."""
        first, rows = parts[0], sum(len(part) for part in parts)
        size = rows * first[:1].numel() * first.element_size() if rows else 0
        buffer = np.empty(size + _ALIGNED, dtype=np.uint8)
        start = -buffer.ctypes.data % _ALIGNED
        weakref.finalize(buffer, self.give, size)
        whole = torch.from_numpy(buffer[start : start + size]).view(first.dtype).view(rows, *first.shape[1:])
        done = 0
        while parts:
            part = parts.pop(0)
            whole[done : done + len(part)] = part
            done += len(part)
        return whole


class SampleStore:
    """Tensors that grow row by row.

    While they, and those of all stores with the same `memory`, stay under its budget they are plain tensors;
    what comes after goes to files in a temporary directory. `close` removes them, at the latest when the
    store is collected.
    """

    def __init__(self, memory: Memory | None = None, directory: Path | None = None) -> None:
        self.memory = memory or Memory()
        self._files = 0
        self._parent = directory
        self._directory: Path | None = None
        self._cleaner: weakref.finalize[..., Any] | None = None

    def writer(self, name: str) -> Writer:
        """Begin a tensor."""
        return Writer(self, name)

    def path(self, name: str) -> Path:
        """A new file's path, which shows the tensor's name."""
        if self._directory is None:
            self._directory, self._cleaner = scratch_folder(self, self._parent)
        self._files += 1
        return self._directory / f"{self._files}-{re.sub(r'[^A-Za-z0-9_.-]', '_', name)[:80]}.npy"

    def close(self) -> None:
        """Remove the files. Tensors already handed out stay readable until they are dropped."""
        if self._cleaner is not None:
            self._cleaner()
        self._directory, self._cleaner, self._files = None, None, 0


class Rows:
    """A tensor that grows along its first axis, in memory.

    Rows are copied into slabs. Kept as they come, between larger tensors that are freed, they would leave holes that
    the allocator of the C library never uses again: as much memory as all that went through the network.
    """

    def __init__(self) -> None:
        self._slabs: list[Tensor] = []
        self._filled = 0  # rows of the last slab

    def append(self, rows: Tensor) -> None:
        """Add rows (rows, ...) at the end; all calls agree in dtype, device and the other dimensions."""
        if not self._slabs or self._filled + len(rows) > len(self._slabs[-1]):
            size = max(1, rows[:1].numel() * rows.element_size())
            self._close_slab()
            self._slabs.append(rows.new_empty(max(len(rows), _SLAB // size), *rows.shape[1:]))
            self._filled = 0
        self._slabs[-1][self._filled : self._filled + len(rows)] = rows
        self._filled += len(rows)

    def parts(self) -> list[Tensor]:
        """What was added, in order, in tensors of any number of rows."""
        self._close_slab()
        return self._slabs

    def _close_slab(self) -> None:
        if self._slabs:
            self._slabs[-1] = self._slabs[-1][: self._filled]


class Writer:
    """One growing tensor of a store."""

    def __init__(self, store: SampleStore, name: str) -> None:
        self.store, self.name = store, name
        self._rows_here = Rows()
        self._path: Path | None = None
        self._rows = 0
        self._like: Tensor | None = None

    def append(self, rows: Tensor) -> None:
        """Add rows (rows, ...) at the end; all calls agree in dtype and in the other dimensions."""
        self._like = rows[:0]
        self._rows += len(rows)
        if self._path is None and self.store.memory.take(rows.numel() * rows.element_size()):
            self._rows_here.append(rows)
            return
        if self._path is None:
            self._path = self.store.path(self.name)
            self._path.write_bytes(bytes(_HEADER))
            for part in self._rows_here.parts():
                self._write(part)
                self.store.memory.give(part.numel() * part.element_size())
            self._rows_here = Rows()
        self._write(rows)

    def finish(self) -> Tensor:
        """The whole tensor. One from a file is mapped copy-on-write: writing to it never reaches the file."""
        if self._path is None:
            return self.store.memory.joined(self._rows_here.parts())
        assert self._like is not None
        array = self._like.numpy()
        shape = (self._rows, *self._like.shape[1:])
        description = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": shape}
        text = repr(description).encode("latin1")
        header = np.lib.format.magic(1, 0) + (_HEADER - 10).to_bytes(2, "little") + text.ljust(_HEADER - 11) + b"\n"
        with self._path.open("r+b") as file:
            file.write(header)
        return torch.from_numpy(np.load(self._path, mmap_mode="c", allow_pickle=False))

    def _write(self, rows: Tensor) -> None:
        assert self._path is not None
        try:
            with self._path.open("ab") as file:
                rows.contiguous().numpy().tofile(file)
        except OSError as error:
            got = f"a full or broken {str(self._path.parent)!r} ({error})"
            cure = "Set TMPDIR to a folder with more room, or raise `memory_budget`."
            raise InputError(should("TMPDIR", "a folder that can hold a layer's samples", got, cure)) from error
