"""Values without their tensors, and back: what a process boundary can carry without copying arrays.

A tensor becomes a place in a tuple of NumPy arrays, which a store of shared memory takes and gives as they are.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Slot:
    """Where a tensor was: the array `number`, or a view of it where a `shape` is given."""

    number: int
    dtype: torch.dtype
    shared: bool = False  # in the shared arrays, not in those of this value alone
    shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    offset: int = 0


@dataclass(frozen=True)
class Place:
    """Where a value was that is kept apart: among the references of the call, with those that it refers to itself."""

    number: int
    shared: tuple[int, ...] = ()


def take_out(value: Any, find: Callable[[Tensor], Slot | None] = lambda tensor: None) -> tuple[Any, tuple[Any, ...]]:
    """(value with slots, arrays); `find` may know a tensor as part of a shared array. Tensors come from any device."""
    arrays: list[np.ndarray] = []
    known: dict[int, Slot] = {}

    def slot(tensor: Tensor) -> Slot:
        if id(tensor) not in known:
            shared = find(tensor)
            if shared is None:
                shared = Slot(len(arrays), tensor.dtype)
                arrays.append(to_array(tensor))
            known[id(tensor)] = shared
        return known[id(tensor)]

    return _walk(value, Tensor, slot), tuple(arrays)


def put_back(value: Any, arrays: Sequence[Any], shared: Sequence[Any] = (), copies: bool = False) -> Any:
    """The value with its tensors, on the arrays' memory or, with `copies`, on their own. Shared memory is read-only."""
    made: dict[Slot, Tensor] = {}

    def tensor(slot: Slot) -> Tensor:
        if slot not in made:
            array = (shared if slot.shared else arrays)[slot.number]
            whole = _from_array(array.copy() if copies else array, slot.dtype)
            made[slot] = whole.as_strided(slot.shape, slot.stride, slot.offset) if slot.shared else whole
        return made[slot]

    return _walk(value, Slot, tensor)


def replaced(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """The value with everything of a `kind` in it changed."""
    return _walk(value, kind, change)


def to_array(tensor: Tensor) -> np.ndarray:
    """A tensor as an array; types that NumPy lacks as integers of their size."""
    tensor = tensor.detach().cpu().contiguous()
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _from_array(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the memory is read-only: nothing here writes into it
        tensor = torch.from_numpy(array)
    return tensor.view(dtype) if dtype == torch.bfloat16 else tensor


def _walk(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """A copy in which everything of a `kind` is changed, inside dataclasses, tuples, lists and dictionaries."""
    if isinstance(value, kind):
        return change(value)
    if type(value) is tuple:
        return tuple(_walk(entry, kind, change) for entry in value)
    if type(value) is list:
        return [_walk(entry, kind, change) for entry in value]
    if type(value) is dict:
        return {key: _walk(entry, kind, change) for key, entry in value.items()}
    if isinstance(value, type) or not dataclasses.is_dataclass(value):
        return value
    changed = copy(value)
    for entry in dataclasses.fields(value):
        new = _walk(getattr(value, entry.name), kind, change)
        object.__setattr__(changed, entry.name, new)  # frozen or not: it was checked when it was built
    return changed
