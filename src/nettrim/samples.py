"""The data of a trim: what is calibrated on, what is only measured on, and a digest of both."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from nettrim.errors import DataError, should
from nettrim.models.batches import Batch, normalise_batches

DEFAULT_FRACTION = 0.1  # held out where nothing is said ...
ENOUGH = 50  # ... and there are at least so many samples


@dataclass(frozen=True, eq=False)
class Samples:
    """Batches to calibrate on and batches held out, with what a later check needs to split them again."""

    calibration: tuple[Batch, ...]
    heldout: tuple[Batch, ...]
    digest: str  # SHA-256 of all samples given as `data`, whatever the batches
    separate: bool  # the held-out samples were given apart
    note: str = ""

    @property
    def count(self) -> int:
        """How many samples are calibrated on."""
        return sum(batch.size for batch in self.calibration)

    def identity(self, *, cut: bool) -> dict[str, Any]:
        """What tells these samples from others, as plain values; with `cut`, how they are cut into batches, too."""
        held = "apart" if self.separate else "of them"
        found: dict[str, Any] = {"sha256": self.digest, "calibrated on": self.count, "held out": held}
        return found | ({"batches": [batch.size for batch in self.calibration]} if cut else {})


def split_samples(
    model: nn.Module | None, data: Any, holdout: Any, seed: int, *, limit: int | None = None, inputs: int = 1
) -> Samples:
    """Read `data` and set the held-out part aside.

    `model` says which inputs a batch has (None: `inputs` of them). `holdout`: None (a tenth, from 50 samples on), a
    fraction in [0, 1) drawn with `seed`, or data of its own. `limit`: how many samples to calibrate on at most; those
    held out come on top.
    Raises DataError when there are no samples, or the fraction leaves none to calibrate on.
    """
    apart = holdout is not None and not isinstance(holdout, int | float)
    total = limit if limit is None or apart else _leaving(limit, holdout)
    batches = normalise_batches(data, limit=total, model=model, seed=seed, inputs=inputs)
    digest = digest_batches(batches)
    if apart:
        measured = normalise_batches(holdout, model=model, seed=seed, inputs=inputs)
        return Samples(tuple(batches), tuple(measured), digest, True)
    total = sum(batch.size for batch in batches)
    fraction = _fraction(total, holdout)
    count = int(fraction * total)
    if count >= total or (fraction > 0 and count == 0):
        got = f"{fraction:g} of {total} samples"
        raise DataError(should("holdout", "a fraction that leaves samples on both sides", got, "Give more samples."))
    if count == 0:
        return Samples(tuple(batches), (), digest, False, "No samples were held out.")
    out = torch.zeros(total, dtype=torch.bool)
    out[torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count]] = True
    calibration, heldout, start = [], [], 0
    for batch in batches:
        part = out[start : start + batch.size]
        start += batch.size
        for side, chosen in ((calibration, ~part), (heldout, part)):
            if bool(chosen.any()):
                side.append(batch.pick(chosen.nonzero()[:, 0]))
    note = f"{count} of {total} samples were held out, drawn with seed {seed}."
    return Samples(tuple(calibration), tuple(heldout), digest, False, note)


def _fraction(total: int, holdout: float | None) -> float:
    return (DEFAULT_FRACTION if total >= ENOUGH else 0.0) if holdout is None else float(holdout)


def _leaving(count: int, holdout: float | None) -> int:
    """Of how many samples `count` are left when the others are held out."""
    total = count
    while (missing := count - total + int(_fraction(total, holdout) * total)) > 0:
        total += missing
    return total


def digest_batches(batches: Sequence[Batch]) -> str:
    """SHA-256 of all inputs: types, shapes and bytes, the same however the samples are cut into batches."""
    leaves = [tree_flatten((batch.args, dict(sorted(batch.kwargs.items()))))[0] for batch in batches]
    sha = hashlib.sha256()
    for place in range(max(map(len, leaves))):
        parts = [leaf[place] for leaf in leaves if place < len(leaf)]
        tensors = [part for part in parts if isinstance(part, Tensor)]
        shapes = {tuple(tensor.shape[1:]) for tensor in tensors}
        rows = sum(len(tensor) if tensor.dim() else 1 for tensor in tensors)
        sha.update(f"{place} {tensors[0].dtype if tensors else parts[0]!r} {rows} {sorted(shapes)}\n".encode())
        for tensor in tensors:
            array = tensor.detach().cpu().contiguous()
            sha.update(memoryview(array.reshape(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]
    return sha.hexdigest()
