"""Outcomes to tensors and plain records, and back: what a checkpoint keeps of a block."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from torch import Tensor

from nettrim.checkpoint import Stored, digest_tensors
from nettrim.layerwise import Backing, LayerOutcome, LayerTask, Totals
from nettrim.models.base import Layer
from nettrim.results import LayerResult

_TENSORS = ("weight_before", "weight_after")


def pack(outcome: LayerOutcome) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and a record in JSON's types."""
    tensors = {"weight": outcome.weight}
    if outcome.bias is not None:
        tensors["bias"] = outcome.bias
    for place, part in enumerate(outcome.backing):
        tensors[f"backing.{place}.weight"] = part.weight
        if part.dual is not None:
            tensors[f"backing.{place}.dual"] = part.dual
    result = {
        entry.name: getattr(outcome.result, entry.name) for entry in fields(LayerResult) if entry.name not in _TENSORS
    }
    record = {
        "result": result,
        "totals": asdict(outcome.totals),
        "pieces": len(outcome.backing),
        "samples": outcome.samples,
        "moved": outcome.moved,
        "kappa": outcome.kappa,
        "notes": list(outcome.notes),
    }
    return tensors, record


def unpack(stored: Stored, layer: Layer, rows: range) -> LayerOutcome:
    """The outcome that was packed, of these rows of `layer`. KeyError or TypeError for another version's."""
    tensors, record = stored.tensors, stored.record
    weight = tensors["weight"].to(layer.weight.device)
    result = LayerResult(
        **{**record["result"], "shape": tuple(record["result"]["shape"])},
        weight_before=layer.weight[rows.start : rows.stop],
        weight_after=weight,
    )
    return LayerOutcome(
        result=result,
        weight=weight,
        bias=tensors["bias"].to(layer.weight.device) if "bias" in tensors else None,
        backing=tuple(
            Backing(tensors[f"backing.{place}.weight"], tensors.get(f"backing.{place}.dual"))
            for place in range(record["pieces"])
        ),
        totals=Totals(**record["totals"]),
        samples=record["samples"],
        moved=record["moved"],
        kappa=record["kappa"],
        notes=tuple(record["notes"]),
    )


def digest_task(task: LayerTask) -> str:
    """What decides a layer's programs, besides the recipe: SHA-256 of its weights and samples."""
    named = {
        f"{task.name} {task.layer.activation} {task.layer.groups} {task.scheme} {task.moved} {task.kappa!r}": None,
        "weight": task.layer.weight,
        "bias": task.layer.bias,
        "inputs": task.inputs,
        "responses": task.responses,
        "offset": task.offset,
        "before_refit": task.before_refit,
        "before_refit_offset": task.before_refit_offset,
    }
    return digest_tensors(named)
