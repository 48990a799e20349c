"""Re-derive every claim of a saved trim from its files, the original model and the calibration data alone.

No solver runs: the multipliers that were saved prove the optimality gaps again, and all else is measured again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nettrim.api import build_network, open_source, read_samples
from nettrim.errors import DataError, InputError, ModelError, should
from nettrim.executors.local import LocalExecutor
from nettrim.layerwise import Backing, LayerOutcome, LayerTask, conclude, make_pieces
from nettrim.layerwise.matrices import augmented
from nettrim.models.base import Layer, Network
from nettrim.models.state import model_digest
from nettrim.models.torch_network import load_into
from nettrim.recipe import Recipe
from nettrim.report import Report
from nettrim.results import Event
from nettrim.samples import Samples
from nettrim.saving import Claims, holds_onnx, read_trim
from nettrim.schemes import Trimmer
from nettrim.schemes.whole import relative_discrepancy, rounding_unit, trim_network

_ROUNDING = 1e-5  # relative: other machines sum in another order
_SAME = 1e-4  # relative: answers of one network on two machines
_GAP_ROUNDING = 1e-6  # absolute, for optimality gaps
_WHOLE = ("format", "scheme", "weights", "nonzeros_before", "nonzeros_after", "sparsity", "recipe")  # of the report
_LAYER = ("kind", "shape", "activation", "nonzeros_before", "nonzeros_after", "sparsity", "scheme", "skipped")
_LAYER_MEASURED = ("epsilon", "discrepancy", "discrepancy_select", "distance", "objective")
_HELD_OUT = ("samples_holdout", "discrepancy_holdout")
_NETWORK = ("theorem", "samples", "samples_holdout")
_NETWORK_MEASURED = ("discrepancy", "discrepancy_holdout", "bound")


@dataclass(frozen=True, eq=False)
class VerifyReport:
    """What a re-derivation found: the report made anew, every claim that does not hold, and what cannot be checked."""

    report: Report
    failures: tuple[str, ...]
    notes: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()  # layers whose multipliers were not kept: nothing proves their gaps

    @property
    def holds(self) -> bool:
        """Whether every claim that can be checked was confirmed; what cannot be is in `unchecked`."""
        return not self.failures

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.failures:
            return f"{len(self.failures)} claims do not hold"
        if self.unchecked:
            gaps = "the gap of 1 layer" if len(self.unchecked) == 1 else f"the gaps of {len(self.unchecked)} layers"
            return f"every claim that can be checked holds; {gaps} cannot be"
        return "every claim holds"

    def __str__(self) -> str:
        lines = [str(self.report), "", f"verified: {self.verdict}"]
        return "\n".join([*lines, *(f"fails: {text}" for text in self.failures), *(f"note: {n}" for n in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """The verdict and the new report in JSON's types."""
        return {
            "holds": self.holds,
            "failures": list(self.failures),
            "notes": list(self.notes),
            "unchecked": list(self.unchecked),
            "report": self.report.to_dict(),
        }


def verify(directory: str | os.PathLike[str], model: Any, data: Any) -> VerifyReport:
    """Check a saved trim against the original `model` and the `data` it was made with.

    model: the module, or the ONNX file as `nettrim.trim` takes it; None trusts the copy in an ONNX file's directory.
    Re-derives every layer's epsilon, distance, discrepancy and optimality gap, the network's bound and discrepancies,
    and compares them, and every count, with report.json; checks that the weights returned are those that the
    multipliers speak of, or a refit on their support that keeps every constraint. What was measured on samples of
    their own cannot be repeated here, which a note says. Raises InputError for a directory that is damaged, DataError
    for other data (checked by digest), ModelError for another model.
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
    layers = {layer.name: layer for layer in network.layers}
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
    untied = [text for made in outcome.layers for text in _untied(made, layers[made.result.name], recipe)]
    unproved = tuple(made.result.name for made in outcome.layers if not made.proved)
    found = compare(claims.report, report, unproved, separate=bool(claims.data["separate_holdout"]))
    return replace(found, failures=(*found.failures, *untied, *_other_answers(network, trimmed, samples)))


def _read(directory: Path, model: Any) -> tuple[Any, Any, Claims]:
    """The original and the trimmed model, and what is claimed of them."""
    if not holds_onnx(directory):
        if not isinstance(model, nn.Module):
            got = f"a {type(model).__name__}"
            raise ModelError(should("model", "the torch.nn.Module that was trimmed", got))
        saved = read_trim(directory)
        if saved.original is not None and saved.original != model_digest(model):
            cure = "Load its weights, as they were before the trim."
            raise ModelError(should("model", "the one that was trimmed", "one with other tensors", cure))
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
    allowed = max(_SAME, 4 * rounding_unit(network))
    return [f"network: the saved model's answers differ by {apart:.2g}"] if apart > allowed else []


def _untied(made: LayerOutcome, layer: Layer, recipe: Recipe) -> list[str]:
    """A failure when the weights returned are neither those of the select stage nor, row by row, a refit on their
    support or the original ones."""
    name, (selected, bias) = layer.name, made.selected(layer)
    if torch.equal(augmented(made.weight, made.bias), augmented(selected, bias)):
        return []
    if not (recipe.refit and recipe.penalty_of(name).selects):
        return [f"{name}: the weights are not those that its multipliers speak of"]
    changed = (made.weight != layer.weight).any(dim=1, keepdim=True)
    added = int(((made.weight != 0) & (selected == 0) & changed).sum())
    return [f"{name}: {added} weights are outside the support that its multipliers speak of"] if added else []


def rechecker(
    backing: Mapping[str, tuple[Backing, ...]], kappa: Mapping[str, float], weights: Mapping[str, Layer]
) -> Trimmer:
    """In place of solving: the record of the weights that were saved, proved by the multipliers that were saved."""

    def check(task: LayerTask) -> LayerOutcome:
        task = replace(task, kappa=kappa[task.name])
        layer = weights[task.name]
        return conclude(task, make_pieces(task), backing[task.name], layer.weight, layer.bias)

    return check


def compare(
    claimed: Mapping[str, Any], report: Report, unproved: tuple[str, ...], *, separate: bool = False
) -> VerifyReport:
    """The saved report's claims against the report made anew. `unproved`: layers without multipliers; `separate`:
    held-out samples were given by themselves.

    Raises InputError for a report that is none.
    """
    notes = tuple(
        f"{name}: its multipliers were too large to keep, so its gap cannot be confirmed." for name in unproved
    )
    if separate:
        notes += ("The held-out samples were given by themselves, so their discrepancy is not measured again.",)
    made = report.to_dict()
    if separate:
        made["network"] |= {key: claimed["network"].get(key) for key in _HELD_OUT}
    try:
        failures = unconfirmed(claimed, made, set(unproved))
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(should("report.json", "the report of a trim", f"one that is not ({error!r})")) from error
    return VerifyReport(report, tuple(failures), notes, unproved)


def silent(event: Event) -> None:
    """A listener that shows nothing."""


def unconfirmed(claimed: Mapping[str, Any], found: Mapping[str, Any], unproved: set[str]) -> list[str]:
    """Every claim of the saved report that the new one does not confirm."""
    failures = _different("report", claimed, found, _WHOLE)
    names = [layer["name"] for layer in claimed["layers"]]
    if names != [layer["name"] for layer in found["layers"]]:
        return [*failures, f"report: its layers are {names}, not {[layer['name'] for layer in found['layers']]}"]
    for layer, other in zip(claimed["layers"], found["layers"], strict=True):
        name = layer["name"]
        failures += _different(name, layer, other, _LAYER)
        failures += _moved(name, layer, other, _LAYER_MEASURED)
        if name not in unproved:
            failures += _grown(f"{name}: gap", layer.get("gap"), other.get("gap"))
            if layer["certified"] and not other["certified"]:
                failures.append(f"{name}: not certified any more")
    failures += _different("network", claimed["network"], found["network"], _NETWORK)
    failures += _moved("network", claimed["network"], found["network"], _NETWORK_MEASURED)
    trimmed = [layer["certified"] for layer in claimed["layers"] if layer["skipped"] is None]
    if claimed["certified"] is not (bool(trimmed) and all(certified is True for certified in trimmed)):
        failures.append(f"report: certified is {claimed['certified']!r}, which is not what its layers say")
    bound, discrepancy = found["network"]["bound"], found["network"]["discrepancy"]
    if bound is not None and discrepancy is not None and discrepancy > bound:
        failures.append(f"network: discrepancy {discrepancy:.6g} is above the bound {bound:.6g}")
    return failures


def _different(what: str, claimed: Mapping[str, Any], found: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    """A failure for every one of `keys` that is not what it was."""
    wrong = [key for key in keys if claimed.get(key) != found.get(key)]
    return [f"{what}: {key} is {found.get(key)!r}, not {claimed.get(key)!r}" for key in wrong]


def _moved(what: str, claimed: Mapping[str, Any], found: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    """A failure for every one of `keys` whose number is another one by more than rounding."""
    failures = []
    for key in keys:
        said, made = claimed.get(key), found.get(key)
        if said is None or made is None:
            failures += [] if said is made else [f"{what}: {key} is {made}, not {said}"]
        elif not abs(made - said) <= max(_ROUNDING * abs(made), _ROUNDING * 1e-2):  # which no NaN is
            failures.append(f"{what}: {key} is {made:.6g}, not {said:.6g}")
    return failures


def _grown(what: str, claimed: float | None, found: float | None) -> list[str]:
    """A failure when a gap is not there any more, or is larger than claimed by more than rounding."""
    if claimed is None or found is None:
        return [] if claimed is found else [f"{what} is {found}, not {claimed}"]
    if found <= claimed + max(_ROUNDING * abs(found), _GAP_ROUNDING):
        return []
    return [f"{what} is {found:.6g}, not {claimed:.6g}"]
