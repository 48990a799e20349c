"""Re-derive every claim of a saved trim from its files, the original model and the calibration data alone.

No solver runs: the multipliers that were saved prove the optimality gaps again, and all else is measured again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nettrim.api import build_network, open_source, read_samples
from nettrim.errors import DataError, ModelError, should
from nettrim.executors.local import LocalExecutor
from nettrim.layerwise import Backing, LayerOutcome, LayerTask, conclude, make_pieces
from nettrim.models.base import Layer, Network
from nettrim.models.torch_network import load_into
from nettrim.report import Report
from nettrim.results import Event
from nettrim.samples import Samples
from nettrim.saving import Claims, holds_onnx, read_trim
from nettrim.schemes import Trimmer
from nettrim.schemes.whole import relative_discrepancy, trim_network

_ROUNDING = 1e-5  # relative: other machines sum in another order
_SAME = 1e-4  # relative: answers of one network on two machines
_GAP_ROUNDING = 1e-6  # absolute, for optimality gaps


@dataclass(frozen=True, eq=False)
class VerifyReport:
    """What a re-derivation found: the report made anew, and every claim that does not hold."""

    report: Report
    failures: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether every claim of the saved report was confirmed."""
        return not self.failures

    def __str__(self) -> str:
        verdict = "every claim holds" if self.holds else f"{len(self.failures)} claims do not hold"
        lines = [str(self.report), "", f"verified: {verdict}"]
        return "\n".join([*lines, *(f"fails: {text}" for text in self.failures), *(f"note: {n}" for n in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """The verdict and the new report in JSON's types."""
        return {
            "holds": self.holds,
            "failures": list(self.failures),
            "notes": list(self.notes),
            "report": self.report.to_dict(),
        }


def verify(directory: str | os.PathLike[str], model: Any, data: Any) -> VerifyReport:
    """Check a saved trim against the original `model` and the `data` it was made with.

    model: the module, or the ONNX file as `nettrim.trim` takes it; None trusts the copy in an ONNX file's directory.
    Re-derives every layer's epsilon, distance, discrepancy and optimality gap, the network's bound and discrepancies,
    and compares them with report.json. Raises InputError for a directory that is damaged, DataError for other
    data (checked by digest), ModelError for another model.
    """
    original, changed, claims = _read(Path(directory), model)
    recipe = claims.recipe.replace(tolerance=min(claims.recipe.tolerance + _GAP_ROUNDING, 0.999))
    samples = read_samples(original, data, 0.0 if claims.data["separate_holdout"] else recipe.holdout, recipe)
    if samples.digest != claims.data["sha256"]:
        cure = "Give the file or tensor that the model was trimmed with."
        raise DataError(should("data", "the data that the certificates were made with", "other data", cure))
    network = build_network(original, samples, recipe)
    trimmed = build_network(changed, samples, recipe)
    weights = _matched(network, trimmed, set(claims.backing))
    outcome = trim_network(
        network,
        samples.calibration,
        samples.heldout,
        recipe,
        rechecker(claims.backing, claims.kappa, weights),
        LocalExecutor(1),
        silent,
    )
    report = Report(outcome.result, recipe=claims.recipe.to_dict())
    found = verdict(claims.report, report, claims.backing)
    return replace(found, failures=(*found.failures, *_other_answers(network, trimmed, samples)))


def _read(directory: Path, model: Any) -> tuple[Any, Any, Claims]:
    """The original and the trimmed model, and what is claimed of them."""
    if not holds_onnx(directory):
        if not isinstance(model, nn.Module):
            got = f"a {type(model).__name__}"
            raise ModelError(should("model", "the torch.nn.Module that was trimmed", got))
        saved = read_trim(directory)
        return model, load_into(model, saved.tensors, saved.plan), saved.claims
    from nettrim.onnx_saving import read_onnx_trim  # noqa: PLC0415  # an extra

    loaded = read_onnx_trim(directory)
    original, changed = open_source(loaded.original), open_source(loaded.model)
    if model is not None and open_source(model) != original:
        raise ModelError(should("model", "the one that was trimmed", "another", "None takes the directory's copy."))
    return original, changed, loaded.claims


def _matched(network: Network, trimmed: Network, names: set[str]) -> dict[str, Layer]:
    """The trimmed model's layers by the names they have in the original."""
    before, after = network.layers, trimmed.layers
    if {layer.name for layer in before} != names:
        raise ModelError(should("model", "the one that was trimmed", "one with other layers"))
    if [layer.weight.shape for layer in before] != [layer.weight.shape for layer in after]:
        raise ModelError(should("directory", "one with the model's layers in other weights", "other layers"))
    return {old.name: new for old, new in zip(before, after, strict=True)}


def _other_answers(network: Network, trimmed: Network, samples: Samples) -> list[str]:
    """A failure when the file's model, of which so far only the layers were read, answers otherwise than they say."""
    apart = relative_discrepancy(network.outputs(samples.calibration), trimmed.outputs(samples.calibration))
    rounding = max(torch.finfo(layer.dtype or layer.weight.dtype).eps for layer in network.layers)
    return [f"network: the saved model's answers differ by {apart:.2g}"] if apart > max(_SAME, 4 * rounding) else []


def rechecker(
    backing: Mapping[str, tuple[Backing, ...]], kappa: Mapping[str, float], weights: Mapping[str, Layer]
) -> Trimmer:
    """In place of solving: the record of the weights that were saved, proved by the multipliers that were saved."""

    def check(task: LayerTask) -> LayerOutcome:
        task = replace(task, kappa=kappa[task.name])
        layer = weights[task.name]
        return conclude(task, make_pieces(task), backing[task.name], layer.weight, layer.bias)

    return check


def verdict(claimed: Mapping[str, Any], report: Report, backing: Mapping[str, tuple[Backing, ...]]) -> VerifyReport:
    """The saved report's claims against the report made anew."""
    unproved = [name for name, parts in backing.items() if any(part.dual is None for part in parts)]
    notes = tuple(
        f"{name}: its multipliers were too large to keep, so its gap cannot be confirmed." for name in unproved
    )
    return VerifyReport(report, tuple(unconfirmed(claimed, report.to_dict(), set(unproved))), notes)


def silent(event: Event) -> None:
    """A listener that shows nothing."""


def unconfirmed(claimed: Mapping[str, Any], found: Mapping[str, Any], unproved: set[str]) -> list[str]:
    """Every claim of the saved report that the new one does not confirm."""
    failures = []
    new = {layer["name"]: layer for layer in found["layers"]}
    for layer in claimed["layers"]:
        name, other = layer["name"], new.get(layer["name"])
        if other is None or layer["skipped"] is not None:
            continue
        if layer["nonzeros_after"] != other["nonzeros_after"]:
            failures.append(f"{name}: {other['nonzeros_after']} weights, not {layer['nonzeros_after']}")
        for key in ("epsilon", "discrepancy", "distance"):
            failures += _grown(f"{name}: {key}", layer.get(key), other.get(key))
        if name not in unproved:
            failures += _grown(f"{name}: gap", layer.get("gap"), other.get("gap"), _GAP_ROUNDING)
            if layer["certified"] and not other["certified"]:
                failures.append(f"{name}: not certified any more")
    for key in ("discrepancy", "discrepancy_holdout", "bound"):
        failures += _grown(f"network: {key}", claimed["network"].get(key), found["network"].get(key))
    return failures


def _grown(what: str, claimed: float | None, found: float | None, slack: float = _ROUNDING * 1e-2) -> list[str]:
    """A failure when a number is larger than claimed by more than rounding."""
    if claimed is None or found is None or found <= claimed + max(_ROUNDING * abs(claimed), slack):
        return []
    return [f"{what} is {found:.6g}, not {claimed:.6g}"]
