"""Rows of unlike lengths worked on at once: index vectors padded to one array, matrices padded to a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

_WASTE = 3e6  # what padding may add to the cubes of the sizes of a batch: what another batch would cost
_BATCH = {"cpu": 1 << 17, "cuda": 1 << 26}  # entries of a batch of systems: what a cache holds, and a large share of it


def padded(indices: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Index vectors as the rows of one array, zero past their ends, and a mask of what is no padding."""
    counts = torch.tensor([len(index) for index in indices], device=indices[0].device)
    array = torch.nn.utils.rnn.pad_sequence(list(indices), batch_first=True)
    return array, torch.arange(array.shape[1], device=array.device) < counts[:, None]


def places(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Where each row of a mask is true, as `padded`."""
    counts = mask.sum(dim=1)
    column = mask.nonzero()[:, 1]
    real = torch.arange(int(counts.max()), device=mask.device) < counts[:, None]
    array = torch.zeros_like(real, dtype=torch.int64)
    array[real] = column
    return array, real


def most(values: Tensor, counts: Tensor, above: float = 0.0) -> Tensor:
    """Mask of the entries above `above` that are among the `counts` (rows,) largest of their row."""
    top = values.topk(min(int(counts.max()), values.shape[1]), dim=1)
    order = torch.arange(top.values.shape[1], device=values.device)
    wanted = (top.values > above) & (order < counts[:, None])
    return torch.zeros_like(values, dtype=torch.bool).scatter(1, top.indices, wanted)


def stacked(blocks: Sequence[Tensor], size: int) -> Tensor:
    """Square matrices at the top left of larger ones, (matrices, size, size); a single one of that size as it is."""
    if len(blocks) == 1 and len(blocks[0]) == size:
        return blocks[0][None]
    whole = blocks[0].new_zeros(len(blocks), size, size)
    for place, block in enumerate(blocks):
        whole[place, : len(block), : len(block)] = block
    return whole


def alike(sizes: Tensor, kind: str) -> Iterator[Tensor]:
    """The places of systems of these sizes, in batches of like size, no larger than a device of this kind likes."""
    order = torch.argsort(sizes)
    entries = _BATCH.get(kind, _BATCH["cpu"])
    begin, cubes = 0, 0
    for end, size in enumerate(sizes[order].tolist()):
        count = end - begin + 1
        if count > 1 and (count * size**2 > entries or count * size**3 - cubes - size**3 > _WASTE):
            yield order[begin:end]
            begin, cubes = end, 0
        cubes += size**3
    yield order[begin:]
