"""What a measurement is asked for, refused in a sentence before the work where it cannot be done."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import torch

from nettrim.errors import InputError, should

_MOST_BATCH = 2**24
_THREADS = 64  # or four a core, where that is more: beyond it they only wait for each other


def check_batches(batches: Any, name: str = "batches") -> tuple[int, ...]:
    """Batch sizes as they came. Raises InputError for none, and for what is no size."""
    given = tuple(batches) if isinstance(batches, Sequence) and not isinstance(batches, str | bytes) else ()
    if not given or not all(_whole(size) and 1 <= size <= _MOST_BATCH for size in given):
        raise InputError(should(name, f"whole numbers from 1 to {_MOST_BATCH}, one or more", repr(batches)))
    return given


def check_batch(batch: Any) -> int:
    """A batch size as it came. Raises InputError for what is none."""
    if not (_whole(batch) and 1 <= batch <= _MOST_BATCH):
        raise InputError(should("batch", f"a whole number from 1 to {_MOST_BATCH}", repr(batch)))
    return batch


def check_threads(count: Any) -> int:
    """A number of threads, None for torch's present one. Raises InputError for what this machine cannot use."""
    most = max(_THREADS, 4 * (os.cpu_count() or 1))
    if count is None:
        return torch.get_num_threads()
    if not (_whole(count) and 1 <= count <= most):
        raise InputError(should("thread_count", f"a whole number from 1 to {most}", repr(count)))
    return count


def check_seconds(seconds: Any) -> float:
    """A time to measure for. Raises InputError for what is none."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        raise InputError(should("seconds", "a number, 0 or more", repr(seconds)))
    return float(seconds)


def _whole(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)
