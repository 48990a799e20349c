"""Programs become new weights: select, refit, and a record of exactly what is returned."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nettrim.certificates.program import believable, certify
from nettrim.layerwise.keeping import feasibility, solve_kept
from nettrim.layerwise.matrices import augmented, cast_weight, join_parts
from nettrim.layerwise.means import HERE, Means
from nettrim.layerwise.measure import measure
from nettrim.layerwise.pieces import make_pieces
from nettrim.layerwise.task import Backing, LayerOutcome, LayerTask, Piece, Totals
from nettrim.models.base import Layer
from nettrim.results import LayerResult
from nettrim.solvers import Solution


def trim_layer(task: LayerTask, means: Means = HERE) -> LayerOutcome:
    """Select, then refit where the recipe says so; everything reported is measured on the weights returned.

    With kappa < 1 an infeasible program is solved again with kappa = 1, and
    a note says so. Raises DataError, naming the layer, for samples that are not finite.
    """
    started = time.perf_counter()
    pieces = make_pieces(task)
    solutions = [_solve(task, piece, means) for piece in pieces]
    notes: tuple[str, ...] = ()
    if task.kappa < 1 and not all(map(_feasible, solutions)):
        cure = "the layer was solved with kappa = 1"
        notes = (f"{task.name}: no weights were found that keep kappa = {task.kappa:g} of its epsilon; {cure}.",)
        task = replace(task, kappa=1.0)
        pieces = make_pieces(task)
        solutions = [_solve(task, piece, means) for piece in pieces]
    return finished(task, pieces, solutions, started, notes, task.recipe.certificate_megabytes * 2**20, means)


def trim_piece(task: LayerTask, piece: Piece, megabytes: float, means: Means = HERE) -> LayerOutcome:
    """As `trim_layer`, for rows whose program is made already: `task` and `piece` speak of these rows alone.

    Multipliers larger than `megabytes` are not kept.
    """
    started = time.perf_counter()
    return finished(task, [piece], [_solve(task, piece, means)], started, (), megabytes * 2**20, means)


def finished(
    task: LayerTask,
    pieces: Sequence[Piece],
    solutions: Sequence[Solution],
    started: float,
    notes: tuple[str, ...],
    limit: float,
    means: Means = HERE,
) -> LayerOutcome:
    """From the solutions to the outcome: refit, measure, and keep multipliers up to `limit` bytes.

    `started` is the reading of `time.perf_counter` from which the seconds count.
    """
    if not all(map(_feasible, solutions)):
        notes += (f"{task.name}: no feasible weights were found for some neurons; their weights were kept.",)
    backing = tuple(_backing(task, *pair) for pair in zip(pieces, solutions, strict=True))
    weight, bias = join_parts(task.layer, [part.weight for part in backing])
    if task.recipe.refit and all(piece.program.penalty.selects for piece in pieces):
        weight, bias = _refitted(task, pieces, weight, bias, means)
    outcome = conclude(task, pieces, backing, weight, bias)
    statuses = Counter(status.name.lower() for solution in solutions for status in solution.status)
    result = replace(
        outcome.result,
        neurons=dict(statuses),
        iterations=max(solution.iterations for solution in solutions),
        seconds=time.perf_counter() - started,
    )
    size = sum(part.dual.nbytes for part in backing if part.dual is not None)
    if size > limit:  # they could not be saved, so they need not stay in memory
        backing = tuple(replace(part, dual=None) for part in backing)
    return replace(outcome, result=result, backing=backing, notes=notes)


def conclude(
    task: LayerTask, pieces: Sequence[Piece], backing: Sequence[Backing], weight: Tensor, bias: Tensor | None
) -> LayerOutcome:
    """The record of given weights: gap of the select stage (`backing`), violation of both stages, discrepancy and
    distance of the weights."""
    certificates = [certify(piece.program, part.weight, part.dual) for piece, part in zip(pieces, backing, strict=True)]
    selected = measure(task, *join_parts(task.layer, [part.weight for part in backing]))
    final = measure(task, weight, bias)
    totals = Totals(
        objective=math.fsum(certificate.objective for certificate in certificates),
        bound=math.fsum(certificate.bound for certificate in certificates),
        violation=max(worst_violation(pieces, backing, weight, bias), *(found.violation for found in certificates)),
        norm=final.norm,
        epsilon=math.sqrt(math.fsum(piece.allowed for piece in pieces)),
        discrepancy=final.discrepancy,
        distance=final.distance,
        discrepancy_select=selected.discrepancy,
        distance_select=selected.distance,
    )
    result = record(task.layer, task.scheme, task.recipe.tolerance, totals, weight)
    return LayerOutcome(result, weight, bias, tuple(backing), totals, task.inputs.shape[1], task.moved, task.kappa)


def worst_violation(
    pieces: Sequence[Piece], backing: Sequence[Backing], weight: Tensor, bias: Tensor | None
) -> float:
    """The worst relative excess of the weights returned over a constraint; 0 where they are the select stage's."""
    whole, worst = augmented(weight, bias), 0.0
    for piece, part in zip(pieces, backing, strict=True):
        rows = whole[piece.rows]
        if not torch.equal(rows, part.weight.to(rows)):
            worst = max(worst, certify(piece.program, rows.to(piece.program.inputs)).violation)
    return worst


def record(layer: Layer, scheme: str, tolerance: float, totals: Totals, weight: Tensor) -> LayerResult:
    """The record of a layer with new weights, whose totals were measured."""
    allowed = feasibility(layer)
    refit_kept_it = totals.distance <= totals.distance_select * (1 + allowed)
    gap = (totals.objective - totals.bound) / totals.objective if totals.objective > 0 else 0.0
    return LayerResult(
        name=layer.name,
        kind=layer.kind,
        shape=layer.shape,
        activation=layer.activation,
        nonzeros_before=int(layer.weight.count_nonzero()),
        nonzeros_after=int(weight.count_nonzero()),
        epsilon=totals.relative(totals.epsilon),
        discrepancy=totals.relative(totals.discrepancy),
        discrepancy_select=totals.relative(totals.discrepancy_select),
        distance=totals.relative(totals.distance),
        objective=totals.objective,
        bound=totals.bound,
        gap=gap,
        certified=totals.violation <= allowed and refit_kept_it and believable(gap, tolerance),
        scheme=scheme,
        weight_before=layer.weight,
        weight_after=weight,
    )


def _solve(task: LayerTask, piece: Piece, means: Means) -> Solution:
    feasible = task.kappa == 1.0  # the dense weights are, unless a risk is taken
    initial = piece.dense.to(piece.program.inputs) if feasible else None
    return solve_kept(means, piece.program, task.layer, task.recipe.tolerance, initial)


def _feasible(solution: Solution) -> bool:
    return all(status.feasible for status in solution.status)


def _backing(task: LayerTask, piece: Piece, solution: Solution) -> Backing:
    """The select stage's outcome as it will be kept: the certificate is of exactly these numbers.

    Multipliers in float32 take half the space and any multipliers give a valid bound; they stay in float64 where the
    program is in float64. A piece without feasible weights keeps the dense ones, which are feasible.
    """
    weight = solution.weight if _feasible(solution) else piece.dense
    dual = solution.dual.to(piece.program.inputs.dtype)
    return Backing(cast_weight(task.layer, weight), dual)


def _refitted(
    task: LayerTask, pieces: Sequence[Piece], weight: Tensor, bias: Tensor | None, means: Means
) -> tuple[Tensor, Tensor | None]:
    """Refitted weights, row by row only where that lowers the row's own distance; and the original row where that has
    fewer weights and is no farther off: the least l1 norm of a row that was pruned before may have more."""
    parts = []
    for piece in pieces:
        selected = augmented(weight[piece.rows], None if bias is None else bias[piece.rows])
        fitted = means.refit(piece.program, selected.to(piece.program.inputs), task.recipe.seed)
        parts.append(cast_weight(task.layer, fitted))
    new_weight, new_bias = join_parts(task.layer, parts)
    before, after = measure(task, weight, bias).row_distances, measure(task, new_weight, new_bias).row_distances
    lower = torch.tensor([new <= old for new, old in zip(after, before, strict=True)], device=weight.device)
    weight, bias = _rows_of(lower, (new_weight, new_bias), (weight, bias))
    layer = task.layer
    fewer = layer.weight.count_nonzero(dim=1) < weight.count_nonzero(dim=1)
    if not bool(fewer.any()):
        return weight, bias
    original = measure(task, layer.weight, layer.bias).row_distances
    nearer = [dense <= min(new, old) for dense, new, old in zip(original, after, before, strict=True)]
    return _rows_of(fewer & torch.tensor(nearer, device=weight.device), (layer.weight, layer.bias), (weight, bias))


def _rows_of(
    mask: Tensor, one: tuple[Tensor, Tensor | None], other: tuple[Tensor, Tensor | None]
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias with the rows of `one` where the mask (rows,) is true, else of `other`."""
    bias = other[1]
    if bias is not None and one[1] is not None:
        bias = torch.where(mask, one[1], bias)
    return torch.where(mask[:, None], one[0], other[0]), bias
