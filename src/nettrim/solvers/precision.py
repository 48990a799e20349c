"""How precisely float32 products are computed: a setting of the whole process, held while the solver works.

`torch.set_float32_matmul_precision("high")`, which training scripts like to call, lets products read 10 bits of their
factors alone, on a GPU's tensor cores (TF32). ADMM's product with its inverse and the rough Gram matrices do not stand
that: the iterates drift by several percent. ADMM's two products with the samples do, which are most of its work: they
only guess what the polish proves in float64.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import repeat
from typing import Any

import torch

_FULL, _TENSOR_CORES = "ieee", "tf32"
_LEGACY = {_FULL: "highest", _TENSOR_CORES: "high"}


class _Legacy:
    """The setting of PyTorch before 2.9, under the names of today's."""

    @property
    def fp32_precision(self) -> str:
        return torch.get_float32_matmul_precision()

    @fp32_precision.setter
    def fp32_precision(self, value: str) -> None:
        torch.set_float32_matmul_precision(_LEGACY.get(value, value))


def _settings() -> tuple[Any, ...]:
    """What has a settable `fp32_precision`, that of CUDA's products first."""
    backends: Any = torch.backends
    cuda = backends.cuda.matmul
    return (cuda, backends.mkldnn.matmul) if hasattr(cuda, "fp32_precision") else (_Legacy(),)


_lock = threading.RLock()
_within = 0  # callers of `full_precision` that are within
_found: tuple[str, ...] = ()  # before the first of them


@contextmanager
def full_precision() -> Iterator[None]:
    """float32 products are computed in float32 within, in every thread; the last to leave restores what was found."""
    global _within, _found
    with _lock:
        if not _within:
            _found = tuple(place.fp32_precision for place in _settings())
            _set(repeat(_FULL))
        _within += 1
    try:
        yield
    finally:
        with _lock:
            _within -= 1
            if not _within:
                _set(_found)


def tensor_cores(device: torch.device) -> AbstractContextManager[None]:
    """float32 products that are started within, on a CUDA device, are computed in TF32; others as ever."""
    return _tensor_cores() if device.type == "cuda" else nullcontext()


@contextmanager
def _tensor_cores() -> Iterator[None]:
    with _lock:
        cuda = _settings()[0]
        before, cuda.fp32_precision = cuda.fp32_precision, _TENSOR_CORES
        try:
            yield
        finally:
            cuda.fp32_precision = before


def _set(values: Iterable[str]) -> None:
    for place, value in zip(_settings(), values, strict=False):
        place.fp32_precision = value
