"""`nettrim bench`: size, latency and break-even of networks on this machine, one row a network."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from nettrim.errors import InputError, should
from nettrim.gain.checks import check_batches, check_seconds, check_threads
from nettrim.gain.latency import BATCHES, break_even, latency
from nettrim.gain.picking import faster_smaller
from nettrim.gain.sizes import nonzeros, sizes
from nettrim.gain.subject import Subject, torch_subject
from nettrim.models.batches import Batch, normalise_batches


def bench(
    models: Sequence[nn.Module | str | os.PathLike[str] | Any] | Mapping[str, Any],
    example: Any = None,
    *,
    batches: Sequence[int] = BATCHES,
    thread_count: int | None = None,
    seconds: float = 1.0,
    find_break_even: bool = True,
) -> list[dict[str, Any]]:
    """Measure each network: a row of JSON's types.

    models: PyTorch modules, ONNX files or ModelProtos, in a list or by name. example: one batch as they take it; needed
    for PyTorch modules, random inputs of the declared shapes for ONNX. Keys of a row: `name`, `weights`, `nonzeros`,
    `sparsity` (of tensors with at least two dimensions), `bytes` (see `sizes`), `shrink` (see `Summary.to_dict`),
    `shrunk_bytes`, `latency` (one entry a batch size, see `Latency.to_dict`: "dense" is the best dense engine on the
    network as it is, "trimmed" adds sparse kernels, "shrunk" is the shrunk network), `break_even` (the sparsity from
    which the largest layer of a plain chain is faster in CSR, by batch size; None where it never is), `verdict` and
    `notes`.

    Raises InputError for settings that are none, for what is no model, and for a module without example, ModelError,
    DataError, and MissingExtraError for ONNX without its extra.
    """
    if not isinstance(models, Mapping | Sequence) or isinstance(models, str | bytes):
        cure = "Name one alone as [model]."
        raise InputError(
            should("models", "a list of models, or a dictionary by name", f"a {type(models).__name__}", cure)
        )
    named = models.items() if isinstance(models, Mapping) else [(_name(model), model) for model in models]
    batches, count, seconds = check_batches(batches), check_threads(thread_count), check_seconds(seconds)
    rows = []
    for name, model in named:
        subject, batch, fixed = _subject(model, example, count)
        wanted, notes = batches, ()
        if fixed is not None:
            wanted, notes = (fixed,), (f"measured at batch {fixed} alone, the only size that the file takes",)
        rows.append(_row(name, subject, batch, wanted, count, seconds, find_break_even, notes))
    return rows


def bench_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `bench` as text."""
    lines = []
    for row in rows:
        lines.append(f"{row['name']}: {row['weights']:,} weights, {100 * row['sparsity']:.1f} % zeros")
        lines.append("  bytes  " + ", ".join(f"{form} {size:,}" for form, size in row["bytes"].items()))
        before, after = row["shrink"]["parameters_before"], row["shrink"]["parameters_after"]
        lines.append(f"  shrunk {before:,} -> {after:,} parameters, {row['shrunk_bytes']:,} bytes dense")
        for entry in row["latency"]:
            stages = entry["stages"]
            parts = [f"batch {entry['batch']}"]
            for stage, found in stages.items():
                median = found["seconds"][found["best"]]["median"]
                verdict = f", {found['verdict']}" if "verdict" in found else ""
                parts.append(f"{stage} {1e3 * median:.3f} ms ({found['best']}{verdict})")
            lines.append("  " + "; ".join(parts))
        for size, sparsity in (row["break_even"] or {}).get("sparsity", {}).items():
            word = "never" if sparsity is None else f"from {100 * sparsity:.1f} % zeros"
            out, inside = row["break_even"]["shape"]
            lines.append(f"  break-even of the {out} x {inside} layer at batch {size}: CSR wins {word}")
        lines += [f"  {row['verdict']}", *(f"  note: {note}" for note in row["notes"])]
    return "\n".join(lines)


def _row(
    name: str,
    subject: Subject,
    batch: Batch,
    batches: Sequence[int],
    count: int,
    seconds: float,
    find: bool,
    notes: tuple[str, ...],
) -> dict[str, Any]:
    chosen = faster_smaller(subject, batch, batches, count)
    smaller, summary = chosen.subject, chosen.summary
    stages = {"dense": subject, "shrunk": smaller}
    if subject.sparse:
        stages = {"dense": subject, "trimmed": subject, "shrunk": smaller}
    if not summary.changed:
        del stages["shrunk"]
    measured = latency(stages, batch, batches=batches, thread_count=count, seconds=seconds)
    weights = sum(t.numel() for t in subject.tensors.values() if t.is_floating_point() and t.dim() >= 2)
    left = nonzeros(subject.tensors)
    even = None
    if find and subject.matrices:
        shape = max(subject.matrices, key=lambda shape: shape[0] * shape[1])
        found = {str(size): break_even(shape, size, thread_count=count) for size in batches}
        even = {"shape": list(shape), "sparsity": found}
    won = [
        f"{stage} at batch {entry.batch}: {entry.gain(stage).verdict}"
        for entry in measured
        for stage in stages
        if stage != "dense" and entry.gain(stage).faster
    ]
    return {
        "name": name,
        "weights": weights,
        "nonzeros": left,
        "sparsity": 1 - left / weights if weights else 0.0,
        "bytes": sizes(subject.tensors),
        "shrink": summary.to_dict(),
        "shrunk_bytes": sizes(smaller.tensors)["dense"],
        "latency": [entry.to_dict() for entry in measured],
        "break_even": even,
        "verdict": "; ".join(won) if won else "no gain in latency against the best dense engine",
        "notes": list(dict.fromkeys(note for note in (*notes, *subject.notes, summary.note, chosen.note) if note)),
    }


def _subject(model: Any, example: Any, count: int) -> tuple[Subject, Batch, int | None]:
    if isinstance(model, nn.Module):
        if example is None:
            raise InputError(should("example", "one batch of the model's input", "None", "Give some samples."))
        batch = normalise_batches([example], model=model)[0]
        return torch_subject(model, batch, threads=count, export=True), batch, None
    if not isinstance(model, str | os.PathLike) and not hasattr(model, "graph"):
        raise InputError(should("model", "a module, an ONNX file or a ModelProto", f"a {type(model).__name__}"))
    if isinstance(model, str | os.PathLike) and Path(model).suffix.lower() != ".onnx":
        cure = "PyTorch weights need the code of their network: export it to ONNX, or call nettrim.gain.bench."
        raise InputError(should("model", "an ONNX file", repr(str(model)), cure))
    from nettrim.gain.onnx_subject import onnx_subject  # noqa: PLC0415  # an extra

    return onnx_subject(model, example, threads=count)


def _name(model: Any) -> str:
    return Path(model).name if isinstance(model, str | os.PathLike) else type(model).__name__
