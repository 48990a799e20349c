"""Whether a shrunk network is faster when it picks the inputs it reads, or when it reads them all.

Picking spares products but costs a copy, which engines do at very different speeds; so both are timed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from nettrim.gain.checks import check_batches, check_threads
from nettrim.gain.latency import BATCHES, latency
from nettrim.gain.subject import Subject, torch_subject
from nettrim.models.batches import Batch, normalise_batches
from nettrim.models.shrink import Shrunk, Summary, shrink

_SECONDS = 0.2  # to time the two for, for each batch size


@dataclass(frozen=True, eq=False)
class Smaller:
    """The faster form of a shrunk network; `note` says what was compared, where there was a choice."""

    subject: Subject
    summary: Summary
    note: str = ""


def faster_smaller(subject: Subject, example: Batch, batches: Sequence[int], thread_count: int) -> Smaller:
    """A subject's shrunk form, picking its inputs or reading them all, whichever is faster over the batch sizes."""
    picked, summary = subject.smaller(True)
    if not any(layer.inputs_picked for layer in summary.layers):
        return Smaller(picked, summary)
    whole, other = subject.smaller(False)
    ratio = _times_faster(picked, whole, example, batches, thread_count)
    read = "; ".join("{} of {}".format(*layer.inputs_picked) for layer in summary.layers if layer.inputs_picked)
    if ratio > 1:
        note = f"the shrunk network picks {read} inputs: reading all of them took {ratio:.2f} x as long"
        return Smaller(picked, summary, note)
    note = f"the shrunk network reads all inputs: picking {read} of them took {1 / ratio:.2f} x as long"
    return Smaller(whole, other, note)


def faster_shrunk(
    model: nn.Module, example: Any, *, batches: Sequence[int] = BATCHES, thread_count: int = 1, export: bool = False
) -> Shrunk:
    """`shrink`, picking the inputs that are read or reading them all: what is faster on this machine's best engine.

    example: one batch as the model takes it. batches: the sizes to be fast at. export: as for `measure_gain`.
    """
    batches, thread_count = check_batches(batches), check_threads(thread_count)
    sample = normalise_batches([example], model=model)[0]
    found = {pick: shrink(model, sample, pick_inputs=pick) for pick in (True, False)}
    if not any(layer.inputs_picked for layer in found[True].summary.layers):
        return found[True]
    picked, whole = (
        torch_subject(found[pick].module, sample, threads=thread_count, export=export) for pick in (True, False)
    )
    return found[_times_faster(picked, whole, sample, batches, thread_count) > 1]


def _times_faster(picked: Subject, whole: Subject, example: Batch, batches: Sequence[int], thread_count: int) -> float:
    """How many times faster picking is, the geometric mean over the batch sizes of each form's best engine."""
    stages = {"dense": replace(whole, dense={**whole.dense, **whole.sparse}, again=dict), "picked": picked}
    found = latency(stages, example, batches=batches, thread_count=thread_count, seconds=_SECONDS)
    logs = [math.log(entry.seconds("dense") / entry.seconds("picked")) for entry in found]
    return math.exp(sum(logs) / len(logs))
