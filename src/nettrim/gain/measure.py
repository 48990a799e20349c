"""What a trim gained in truth, in the form a report shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from safetensors.torch import save
from torch import nn

from nettrim.errors import InputError, should
from nettrim.gain.checks import check_batch, check_seconds, check_threads
from nettrim.gain.latency import latency
from nettrim.gain.picking import faster_shrunk
from nettrim.gain.sizes import nonzeros
from nettrim.gain.sparse_file import sparse_bytes
from nettrim.gain.subject import torch_subject
from nettrim.models.batches import normalise_batches

STAGES = ("dense", "trimmed", "shrunk")
Accuracy = Callable[[nn.Module], float] | Mapping[str, float] | None


def measure_gain(
    dense_model: nn.Module,
    trimmed_model: nn.Module,
    example: Any,
    *,
    accuracy: Accuracy = None,
    batch: int = 16,
    seconds: float = 1.5,
    thread_count: int | None = None,
    export: bool = False,
    shrunk: nn.Module | None = None,
) -> dict[str, Any]:
    """Accuracy, weights, bytes and latency of the dense, the trimmed and the shrunk network, for `Report(gain=...)`.

    example: one batch as the models take it. accuracy: a function of a model, or the numbers by stage. weights: those
    that are not zero. bytes: of a safetensors file, which is what `save` writes; bytes_sparse: of `save_sparse`'s.
    latency: seconds of a batch on the best engine of each stage, the dense network on dense engines; measured for about
    `seconds`. verdicts: whether that is a gain at all; `note` says how it was found. export: also measure ONNX Runtime
    on networks that are not plain chains (some seconds more). shrunk: the trimmed model's shrunk form; None:
    `faster_shrunk`'s. Raises InputError for settings that are none, DataError for an example that is no batch.
    """
    check_batch(batch)
    check_seconds(seconds)
    _check_accuracy(accuracy)
    sample = normalise_batches([example], model=dense_model)[0]
    count = check_threads(thread_count)
    if shrunk is None:
        shrunk = faster_shrunk(trimmed_model, sample, batches=(batch,), thread_count=count, export=export).module
    models = dict(zip(STAGES, (dense_model, trimmed_model, shrunk), strict=True))
    stages = {stage: torch_subject(model, sample, threads=count, export=export) for stage, model in models.items()}
    found = latency(stages, sample, batches=(batch,), thread_count=count, seconds=seconds)[0]
    gain: dict[str, Any] = {
        "weights": {stage: nonzeros(subject.tensors) for stage, subject in stages.items()},
        "bytes": {stage: len(save(dict(subject.tensors))) for stage, subject in stages.items()},
        "bytes_sparse": {stage: len(sparse_bytes(subject.tensors)) for stage, subject in stages.items()},
        "latency": {stage: found.seconds(stage) for stage in stages},
        "verdicts": {"latency": {stage: found.gain(stage).change for stage in stages if stage != "dense"}},
    }
    if callable(accuracy):
        gain["accuracy"] = {stage: float(accuracy(model)) for stage, model in models.items()}
    elif accuracy:
        gain["accuracy"] = {stage: float(value) for stage, value in accuracy.items()}
    rounds = len(next(iter(found.times["dense"].values())).seconds)
    words = [
        f"Latency: median of {rounds} interleaved runs on this machine, {count} CPU thread{'s' if count > 1 else ''}, "
        f"batch {batch}",
        *(f"{stage}: {found.best(stage)}" for stage in stages),
        *(f"{stage} against the best dense: {found.gain(stage).verdict}" for stage in ("trimmed", "shrunk")),
    ]
    gain["note"] = "; ".join([*words, *dict.fromkeys(note for s in stages.values() for note in s.notes)]) + "."
    return gain


def _check_accuracy(accuracy: Any) -> None:
    if accuracy is None or callable(accuracy):
        return
    known = isinstance(accuracy, Mapping) and all(stage in STAGES for stage in accuracy)
    if not known or not all(isinstance(value, int | float) for value in accuracy.values()):
        be = f"a function of a model, or numbers by stage ({', '.join(STAGES)})"
        raise InputError(should("accuracy", be, repr(accuracy)))
