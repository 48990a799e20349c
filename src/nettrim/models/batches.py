"""Calibration data in any of the forms people have it, as a list of equal records."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, Dataset, Subset

from nettrim.errors import DataError, should

ROWS = 256  # of one batch, when a whole tensor is given
_LABEL_KEYS = ("labels", "label")


@dataclass(frozen=True, eq=False)
class Batch:
    """What one forward pass receives, and the labels that came with it."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    labels: Tensor | None
    size: int  # samples

    def rows(self, start: int, stop: int) -> Batch:
        """Some of the samples: every tensor that has one row a sample is cut."""
        return self._taken(slice(start, stop), len(range(self.size)[start:stop]))

    def pick(self, rows: Tensor) -> Batch:
        """The samples with the given indices."""
        return self._taken(rows, len(rows))

    def _taken(self, index: slice | Tensor, size: int) -> Batch:
        def take(leaf: Any) -> Any:
            return leaf[index] if isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == self.size else leaf

        args, kwargs, labels = tree_map(take, (self.args, self.kwargs, self.labels))
        return Batch(args, kwargs, labels, size)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Batch:
        """On another device, floating inputs in another precision; labels stay where they are."""

        def move(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            return leaf.to(device=device, dtype=dtype if leaf.is_floating_point() else None)

        args, kwargs = tree_map(move, (self.args, self.kwargs))
        return replace(self, args=args, kwargs=kwargs)

    def tensors(self) -> list[Tensor]:
        """The inputs that are tensors."""
        return [leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]

    def shapes(self) -> str:
        """The shapes of the inputs, for a message."""
        shapes = (f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in self.tensors())
        return " and ".join(shapes) or "no tensor"


def normalise_batches(
    data: Any, *, limit: int | None = None, seed: int = 0, model: nn.Module | None = None, inputs: int = 1
) -> list[Batch]:
    """Turn calibration data into batches.

    `data`: a tensor or array (cut into batches of 256 rows), a tuple or dict of them, a Dataset, or an
    iterable of batches, where a batch is a tensor, a tuple or list, or a dict of keyword arguments with
    "labels" set aside. Whether (a, b) is an input with its label or two inputs is read from the model's
    forward; without a model a batch has `inputs` of them before its label. `limit` is the number of samples
    kept: drawn with `seed` from data given whole and from a Dataset with a length, the first ones of any
    other iterable. With a model, floating inputs take its precision. Raises DataError when there is nothing,
    or NaN or infinity, or it cannot be read.
    """
    if limit is not None and limit < 1:
        raise DataError(should("limit", "at least 1 sample", limit))
    if isinstance(data, Batch):
        data = [data]
    required, most = _positional(model, inputs)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None) if model is not None else None
    batches: list[Batch] = []
    total = 0
    with torch.random.fork_rng(devices=[]):
        # a shuffling loader: same seed, same order, and the caller's state untouched
        torch.default_generator.manual_seed(seed)
        for index, item in enumerate(_items(data, limit, seed)):
            batch = item if isinstance(item, Batch) else _batch(item, required, most)
            if limit is not None and total + batch.size > limit:
                batch = batch.rows(0, limit - total)
            batch = batch.to(dtype=dtype)
            _check(batch, index)
            batches.append(batch)
            total += batch.size
            if limit is not None and total >= limit:
                break
    if not batches:
        raise DataError(should("data", "at least one batch of calibration samples", "none"))
    return batches


def _items(data: Any, limit: int | None, seed: int) -> Iterator[Any]:
    """The batches of an iterable as they come; data given whole in pieces."""
    if isinstance(data, Dataset) and not isinstance(data, Tensor):
        data = DataLoader(_chosen(data, limit, seed), batch_size=ROWS)
    if isinstance(data, Tensor | np.ndarray | Mapping) or (isinstance(data, tuple) and _all_arrays(data)):
        yield from _pieces(data, limit, seed)
    elif isinstance(data, Iterable) and not isinstance(data, str | bytes):
        yield from data
    else:
        raise DataError(should("data", "a tensor, an array or an iterable of batches", f"a {type(data).__name__}"))


def _chosen(data: Dataset[Any], limit: int | None, seed: int) -> Dataset[Any]:
    """A seeded choice of a Dataset's samples when there is a limit, in their order."""
    size = len(data) if isinstance(data, Sized) else 0
    return data if limit is None or limit >= size else Subset(data, _rows(size, limit, seed).tolist())


def _rows(size: int, limit: int, seed: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:limit].sort().values


def _pieces(data: Any, limit: int | None, seed: int) -> Iterator[Any]:
    """Whole tensors in pieces of 256 rows, of a seeded choice of rows when there is a limit."""
    data = _as_tensors(data)
    sizes = {len(leaf) for leaf in tree_leaves(data) if isinstance(leaf, Tensor) and leaf.dim()}
    if len(sizes) != 1:
        got = f"first dimensions {sorted(sizes)}" if sizes else "no tensor with rows"
        raise DataError(should("data", "tensors with one row for each sample", got))
    size = sizes.pop()
    if size == 0:
        raise DataError(should("data", "at least one sample", "none"))
    rows = torch.arange(size)
    if limit is not None and limit < size:
        rows = _rows(size, limit, seed)
    for chosen in rows.split(ROWS):
        whole = len(rows) == size  # consecutive rows are cut as views
        index = slice(int(chosen[0]), int(chosen[-1]) + 1) if whole else chosen
        yield tree_map(lambda leaf, index=index: leaf[index] if isinstance(leaf, Tensor) and leaf.dim() else leaf, data)


def _batch(item: Any, required: int, most: int) -> Batch:
    """One batch: which parts are inputs and which are labels."""
    item = _as_tensors(item)
    labels: Any = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(item, Tensor):
        args = (item,)
    elif isinstance(item, Mapping):
        kwargs = {str(key): value for key, value in item.items()}
        for key in _LABEL_KEYS:
            labels = kwargs.pop(key, labels)
    elif isinstance(item, list | tuple):
        args = tuple(item)
        if len(args) >= 2 and (len(args) == required + 1 or len(args) > most):
            args, labels = args[:-1], args[-1]
        if len(args) > most:
            raise DataError(should("data", f"batches of at most {most} inputs and a label", f"{len(item)} parts"))
    else:
        raise DataError(should("data", "made of tensors, tuples or dicts", f"a batch of type {type(item).__name__}"))
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if not tensors:
        raise DataError(should("data", "made of batches with at least one input tensor", f"a {type(item).__name__}"))
    first = tensors[0]
    return Batch(args, kwargs, labels if isinstance(labels, Tensor) else None, len(first) if first.dim() else 1)


def _positional(model: nn.Module | None, inputs: int) -> tuple[int, int]:
    """How many positional inputs a model's forward needs, and how many it takes at most."""
    if model is None:
        return inputs, 10**6 if inputs == 1 else inputs
    forward = getattr(model, "_orig_mod", model).forward
    parameters = list(inspect.signature(forward).parameters.values())
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = sum(p.default is p.empty for p in places)
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return max(needed, 1), 10**6
    return max(needed, 1), max(len(places), 1)


def _check(batch: Batch, index: int) -> None:
    if batch.size == 0:
        raise DataError(should("data", "at least one sample in every batch", f"none in batch {index}"))
    for leaf in batch.tensors():
        if leaf.is_floating_point() and not bool(torch.isfinite(leaf).all()):
            raise DataError(should("data", "finite numbers", f"NaN or infinity in batch {index}"))


def _as_tensors(item: Any) -> Any:
    try:
        return tree_map(_as_tensor, item)
    except TypeError as error:
        raise DataError(should("data", "arrays of numbers", f"one that PyTorch cannot read ({error})")) from None


def _as_tensor(leaf: Any) -> Any:
    """An array as a tensor; a tensor that cannot be cut by rows or read is refused."""
    if isinstance(leaf, np.ndarray):
        return torch.from_numpy(np.array(leaf))
    if isinstance(leaf, Tensor):
        odd = (
            ("a nested tensor", leaf.is_nested),
            ("a sparse tensor", leaf.layout != torch.strided),
            ("a quantised tensor", leaf.is_quantized),
            ("a tensor on the meta device, without numbers", leaf.is_meta),
        )
        for got, is_so in odd:
            if is_so:
                raise DataError(should("data", "dense tensors of plain numbers", got))
    return leaf


def _all_arrays(data: tuple[Any, ...]) -> bool:
    return len(data) > 0 and all(isinstance(part, Tensor | np.ndarray) for part in data)
