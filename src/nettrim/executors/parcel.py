"""What travels to a worker that shares no memory with this process: an item without what the worker has already.

Shared tensors and held values are named by references, whatever the executor takes for that: an object of a store, or
a file. A parcel is (skeleton, arrays, references); the worker finds the references' own values in their places.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nettrim.executors.base import Held, attempt
from nettrim.executors.swap import Place, Slot, put_back, replaced, take_out, to_array


@dataclass(frozen=True, eq=False)
class Remote:
    """A value kept apart: its reference, and those of the shared tensors that it reads."""

    reference: Any
    shared: tuple[Any, ...] = ()


def share(
    tensor: Tensor,
    shared: dict[int, Any],
    put: Callable[[np.ndarray], Any],
    drop: Callable[[Any], object] = lambda reference: None,
) -> Tensor:
    """The tensor, contiguous; its memory is `put` once, and its reference is in `shared` by address while it lives."""
    tensor = (tensor.detach() if tensor.requires_grad else tensor).contiguous()
    place = tensor.untyped_storage().data_ptr()
    if tensor.numel() and tensor.storage_offset() == 0 and place not in shared:
        shared[place] = put(to_array(tensor).reshape(-1))
        weakref.finalize(tensor, _let_go, shared, place, drop)
    return tensor


def pack(value: Any, shared: Mapping[int, Any]) -> tuple[Any, tuple[Any, ...], list[Any]]:
    """The parcel of an item, or of what is to be held; what it holds itself (`Held` of a `Remote`) and views of memory
    in `shared`, references by address, go as references."""
    references: list[Any] = []

    def place(held: Held) -> Place:
        remote = held.value
        return Place(_number(references, remote.reference), tuple(_number(references, x) for x in remote.shared))

    def find(tensor: Tensor) -> Slot | None:
        reference = shared.get(tensor.untyped_storage().data_ptr()) if tensor.numel() else None
        if reference is None:
            return None
        shape, stride = tuple(tensor.shape), tuple(tensor.stride())
        number = _number(references, reference)
        return Slot(number, tensor.dtype, True, shape, stride, int(tensor.storage_offset()))

    skeleton, arrays = take_out(replaced(value, Held, place), find)
    return skeleton, arrays, references


def run(function: Callable[[Any], Any], skeleton: Any, arrays: tuple[Any, ...], *references: Any) -> tuple[Any, Any]:
    """On a worker: (the result, what it leaves behind), both without their tensors; one torch thread, as everywhere."""
    torch.set_num_threads(1)
    left: list[Any] = []

    def found(place: Place) -> Held:
        skeleton, arrays = references[place.number]
        return Held(put_back(skeleton, arrays, [references[number] for number in place.shared]))

    def leave(held: Held) -> Place:
        left.append(take_out(held.value))
        return Place(len(left) - 1)

    result = attempt(function, replaced(put_back(skeleton, arrays, references), Place, found))
    result = take_out(replaced(result, Held, leave))
    return result, left[0] if left else None


def _let_go(shared: dict[int, Any], place: int, drop: Callable[[Any], object]) -> None:
    if place in shared:
        drop(shared.pop(place))


def _number(references: list[Any], reference: Any) -> int:
    """The reference's place in the list, where it is put unless it is there."""
    if reference not in references:
        references.append(reference)
    return references.index(reference)
