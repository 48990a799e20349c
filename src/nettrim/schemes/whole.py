"""A whole network: its layers by their schemes, then the bound beside what was measured end to end."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nettrim.certificates.graph import graph_bound
from nettrim.certificates.network import Link, network_bounds, operator_norm
from nettrim.checkpoint import Checkpoint
from nettrim.errors import DataError, should
from nettrim.executors.base import Executor
from nettrim.layerwise import LayerOutcome
from nettrim.models.base import Network
from nettrim.recipe import Recipe
from nettrim.results import LayerResult, Listener, NetworkResult, TrimResult
from nettrim.schemes.run import Trimmer, run_schemes

_ROWS = 4096  # compared at a time
_ROUNDING = 8  # units in the last place that a layer's sums may be off, relative to the output's norm


@dataclass(frozen=True, eq=False)
class NetworkOutcome:
    """What came out of a network: the record, and every layer's outcome with what backs it."""

    result: TrimResult
    layers: tuple[LayerOutcome, ...]


def trim_network(
    network: Network,
    calibration: Sequence[object],
    heldout: Sequence[object],
    recipe: Recipe,
    work: Trimmer,
    executor: Executor,
    listener: Listener,
    store: Checkpoint | None = None,
) -> NetworkOutcome:
    """Trim `network` in place on the calibration batches and measure it on both.

    Finished layers and blocks of neurons are kept in `store` and not solved again.
    Raises DataError when the network computes numbers that are not finite.
    """
    started = time.perf_counter()
    original = network.copy()
    recipe.check_layers([layer.name for layer in original.layers])
    notes = []
    if recipe.kappa < 1 and recipe.scheme_of(original.layers[-1].name) != "cascade":
        notes.append("kappa has no effect: it belongs to a last layer in the cascade scheme.")
    before = _outputs(original, calibration)
    outcomes = run_schemes(network, original, calibration, recipe, work, executor, listener, store)
    after = _outputs(network, calibration)
    bound, reason, theorem = _bound(original, outcomes, recipe, before)
    held = _outputs(original, heldout) if heldout else None
    measured = NetworkResult(
        bound=bound,
        bound_reason=reason,
        discrepancy=relative_discrepancy(before, after),
        discrepancy_holdout=None if held is None else relative_discrepancy(held, _outputs(network, heldout)),
        theorem=theorem,
        samples=len(before),
        samples_holdout=0 if held is None else len(held),
    )
    schemes = {outcome.result.scheme for outcome in outcomes}
    result = TrimResult(
        layers=_in_order(original, outcomes),
        network=measured,
        seconds=time.perf_counter() - started,
        scheme=schemes.pop() if len(schemes) == 1 else "mixed",
        notes=(
            *notes,
            *(store.notes if store is not None else ()),
            *(note for outcome in outcomes for note in outcome.notes),
        ),
    )
    return NetworkOutcome(result, outcomes)


def rounding_unit(network: Network) -> float:
    """A unit in the last place, relative, of the coarsest type that a layer of the network computes in."""
    return max(torch.finfo(layer.dtype or layer.weight.dtype).eps for layer in network.layers)


def relative_discrepancy(before: Tensor, after: Tensor) -> float:
    """||after - before|| / ||before|| in float64; absolute where `before` is zero (A eq. 29)."""
    squares = torch.zeros(2, dtype=torch.float64)
    for new, old in zip(after.detach().split(_ROWS), before.detach().split(_ROWS), strict=True):
        reference = old.to(torch.float64)
        squares[0] += (new.to(torch.float64) - reference).square().sum().cpu()
        squares[1] += reference.square().sum().cpu()
    difference, norm = squares.sqrt().tolist()
    return difference / norm if norm > 0 else difference


def _bound(
    original: Network, outcomes: Sequence[LayerOutcome], recipe: Recipe, before: Tensor
) -> tuple[float | None, str, str]:
    """(relative bound, why there is none, which recursion)."""
    if original.chain is None:
        return _graph_bound(original, outcomes, before)
    made = {outcome.result.name: outcome for outcome in outcomes}
    weights = {layer.name: layer.weight for layer in original.layers}
    kept = {layer.name: layer.weight for layer in original.skipped if layer.weight is not None}
    unknown = [name for name in original.chain if name not in made and name not in kept]
    if unknown:
        return None, f"the norm of layer {unknown[0]!r}, which was not trimmed, is not known", ""
    last = original.chain[-1]
    features = (weights[last] if last in weights else kept[last]).shape[0]
    rows = {outcome.samples for outcome in outcomes}
    if made and rows != {before.numel() // features}:
        return None, "only some positions of each sample were used, so the layers' distances cover a part", ""
    links = []
    for name in original.chain:
        if name not in made:
            norm = operator_norm(kept[name])
            links.append(Link(name, "kept", 0.0, norm, norm))
            continue
        outcome = made[name]
        norm, norm_before = operator_norm(outcome.weight), operator_norm(weights[name])
        if outcome.moved:
            links.append(Link(name, "cascade", outcome.distance, norm, norm_before))
        elif outcome.result.scheme == "cascade":  # inputs equal up to rounding: either weight may carry it on
            links.append(Link(name, "parallel", outcome.distance, max(norm, norm_before), norm_before))
        else:
            links.append(Link(name, "parallel", outcome.distance, norm, norm_before))
    absolute = network_bounds(links)[-1]
    norm = float(before.to(torch.float64).norm())
    used = {link.scheme for link in links} - {"kept"}
    theorem = "Theorem 2" if used == {"cascade"} or recipe.scheme == "cascade" else "Theorem 1"
    theorem = "Theorems 1 and 2" if recipe.scheme not in ("parallel", "cascade") else theorem
    bound = absolute / norm if norm > 0 else absolute
    # the theorems speak of exact arithmetic; both networks answer in floating point
    bound += _ROUNDING * len(links) * rounding_unit(original)
    return bound, "", f"{theorem} with measured distances and operator norms"


def _graph_bound(original: Network, outcomes: Sequence[LayerOutcome], before: Tensor) -> tuple[float | None, str, str]:
    """The same for a network that is no chain: errors carried along its graph (docs/bounds.md, section 7)."""
    flow = original.flow
    if isinstance(flow, str):
        return None, flow, ""
    links: dict[str, Link] = {}
    layers = {layer.name: layer for layer in original.layers}
    for outcome in outcomes:
        name, layer = outcome.result.name, layers[outcome.result.name]
        if name not in flow.repeats:
            continue  # it has no part in the output
        parts = (weight.chunk(layer.groups) for weight in (outcome.weight, layer.weight))
        now, then = (max(operator_norm(rows, flow.repeats[name]) for rows in weight) for weight in parts)
        if outcome.moved and name in flow.shared:
            return None, f"layer {name!r} is applied at several places, of which a cascade sees some too early", ""
        scheme = "cascade" if outcome.moved else "parallel"
        if not outcome.moved and outcome.result.scheme == "cascade":
            now = max(now, then)  # inputs equal up to rounding: either weight may carry it on
        links[name] = Link(name, scheme, outcome.distance, now, then)
    for skipped in original.skipped:
        if skipped.weight is not None and skipped.name in flow.repeats:
            norm = operator_norm(skipped.weight, flow.repeats[skipped.name])
            links[skipped.name] = Link(skipped.name, "kept", 0.0, norm, norm)
    bound = graph_bound(flow, links)
    norm = float(before.to(torch.float64).norm())
    bound = (bound / norm if norm > 0 else bound) + _ROUNDING * len(links) * rounding_unit(original)
    if not math.isfinite(bound):
        return None, "the bound along the network's graph is beyond all numbers", ""
    return bound, "", "carried along the graph with measured distances, operator norms and Lipschitz constants"


def _outputs(network: Network, batches: Sequence[object]) -> Tensor:
    outputs = network.outputs(batches)
    if not bool(torch.isfinite(outputs).all()):
        cure = "Check the model's weights and the scale of the data."
        raise DataError(should("data", "such that the network computes finite outputs", "NaN or infinity", cure))
    return outputs


def _in_order(original: Network, outcomes: Sequence[LayerOutcome]) -> tuple[LayerResult, ...]:
    """All layers, trimmed and skipped, in the chain's order where there is one."""
    results = [outcome.result for outcome in outcomes]
    results += [
        LayerResult(
            name=skipped.name,
            kind=skipped.kind,
            shape=skipped.shape,
            activation="",
            nonzeros_before=skipped.nonzeros,
            nonzeros_after=skipped.nonzeros,
            skipped=skipped.reason,
        )
        for skipped in original.skipped
    ]
    if original.chain is not None:
        place = {name: index for index, name in enumerate(original.chain)}
        results.sort(key=lambda result: place.get(result.name, len(place)))
    return tuple(results)
