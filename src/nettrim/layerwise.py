"""The one junction: a layer, its samples and a recipe become programs, and programs become new weights.

A layer makes one program a convolution group (one for all other layers). The bias is one more column of ones,
free of cost unless the recipe penalises it.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from nettrim.certificates.program import certify, distances
from nettrim.errors import DataError, InputError, should
from nettrim.models.base import Layer
from nettrim.programs import Activation, Program, get_activation, group_sums
from nettrim.programs.penalties import Penalty
from nettrim.recipe import Recipe
from nettrim.results import LayerResult
from nettrim.solvers import Solution, refit, solve

_CHUNK = 1 << 22  # elements of a float64 temporary
_TIGHT = 1e-5  # an epsilon below this part of the responses is lost in float32: such programs are posed in float64
_FEASIBLE = {torch.float64: 1e-9, torch.float32: 1e-6}  # relative excess that rounding a feasible weight may leave


@dataclass(frozen=True, eq=False)
class LayerTask:
    """All that is needed to trim one layer, and nothing of the network it came from."""

    layer: Layer  # with its original weights
    inputs: Tensor  # (groups, samples, in): what the trimmed layer is to read
    responses: Tensor | None  # (samples, out), the original network's; None: those of `layer` at `inputs`
    offset: Tensor | None  # (samples, out), added to the pre-activations besides weight and bias
    recipe: Recipe
    scheme: str = "parallel"  # "parallel" or "cascade"
    moved: bool = False  # the inputs differ from the original network's, so eq. (7) of N gives epsilon
    kappa: float = 1.0  # risk coefficient, A section 3.3
    before_refit: Tensor | None = None  # moved: the inputs had the layer before not been refitted
    before_refit_offset: Tensor | None = None

    @property
    def name(self) -> str:
        """The layer's name, for messages."""
        return self.layer.name


@dataclass(frozen=True, eq=False)
class Piece:
    """One program of a layer: the rows `rows`, all reading the same inputs."""

    rows: slice
    program: Program
    dense: Tensor  # (rows, in [+ 1]): the original weights in the program's terms
    slack: Tensor | None = None  # (rows,) squares of the slack's positive part: what it allows beyond the ball

    @property
    def allowed(self) -> float:
        """The square of the distance that the constraint allows."""
        assert self.program.epsilon is not None
        beyond = 0.0 if self.slack is None else float(self.slack.sum())
        return float(self.program.epsilon.square().sum()) + beyond


@dataclass(frozen=True, eq=False)
class Backing:
    """What proves one piece's optimality: the select stage's weights and multipliers."""

    weight: Tensor  # (rows, in [+ 1])
    dual: Tensor | None  # (samples, rows); None where it was too large to keep


@dataclass(frozen=True)
class Totals:
    """What was measured of a layer or of some of its rows: absolute numbers, norms in the Frobenius sense."""

    objective: float  # of the select stage's weights, as are the next two
    bound: float
    violation: float  # the worst relative excess over a constraint
    norm: float  # of the responses
    epsilon: float
    discrepancy: float  # of the weights returned
    distance: float
    discrepancy_select: float
    distance_select: float

    @classmethod
    def over(cls, parts: Sequence[Totals]) -> Totals:
        """The totals of several parts that have no row in common."""
        values: dict[str, float] = {}
        for entry in fields(cls):
            numbers = [getattr(part, entry.name) for part in parts]
            if entry.name in ("objective", "bound"):
                values[entry.name] = math.fsum(numbers)
            else:
                values[entry.name] = max(numbers) if entry.name == "violation" else math.hypot(*numbers)
        return cls(**values)

    def relative(self, value: float) -> float:
        """`value` over the responses' norm; as it is where that is zero."""
        return value / self.norm if self.norm > 0 else value


@dataclass(frozen=True, eq=False)
class LayerOutcome:
    """A trimmed layer: the record, the weights it speaks of, and what backs it. Absolute numbers."""

    result: LayerResult
    weight: Tensor  # (out, in), in the layer's dtype
    bias: Tensor | None  # (out,)
    backing: tuple[Backing, ...]
    totals: Totals
    samples: int  # rows of the inputs: samples, or samples times positions
    moved: bool
    kappa: float
    notes: tuple[str, ...] = ()

    @property
    def distance(self) -> float:
        """Of the returned weights' pre-activations to the preimages."""
        return self.totals.distance

    def selected(self, layer: Layer) -> tuple[Tensor, Tensor | None]:
        """The select stage's weight (out, in) and bias."""
        return _join(layer, [part.weight for part in self.backing])


def trim_layer(task: LayerTask, device: str | torch.device | None = None) -> LayerOutcome:
    """Select, then refit where the recipe says so; everything reported is measured on the weights returned.

    `device` is where the programs are solved. With kappa < 1 an infeasible program is solved again with kappa = 1, and
    a note says so. Raises DataError, naming the layer, for samples that are not finite.
    """
    started = time.perf_counter()
    pieces = make_pieces(task)
    solutions = [_solve(task, piece, device) for piece in pieces]
    notes: tuple[str, ...] = ()
    if task.kappa < 1 and not all(map(_feasible, solutions)):
        cure = "the layer was solved with kappa = 1"
        notes = (f"{task.name}: no weights were found that keep kappa = {task.kappa:g} of its epsilon; {cure}.",)
        task = replace(task, kappa=1.0)
        pieces = make_pieces(task)
        solutions = [_solve(task, piece, device) for piece in pieces]
    return _finished(task, pieces, solutions, started, notes, task.recipe.certificate_megabytes * 2**20)


def trim_piece(task: LayerTask, piece: Piece, megabytes: float, device: str | torch.device | None) -> LayerOutcome:
    """As `trim_layer`, for rows whose program is made already: `task` and `piece` speak of these rows alone.

    Multipliers larger than `megabytes` are not kept.
    """
    started = time.perf_counter()
    return _finished(task, [piece], [_solve(task, piece, device)], started, (), megabytes * 2**20)


def _finished(
    task: LayerTask,
    pieces: Sequence[Piece],
    solutions: Sequence[Solution],
    started: float,
    notes: tuple[str, ...],
    limit: float,
) -> LayerOutcome:
    """From the solutions to the outcome: refit, measure, and keep multipliers up to `limit` bytes."""
    if not all(map(_feasible, solutions)):
        notes += (f"{task.name}: no feasible weights were found for some neurons; their weights were kept.",)
    backing = tuple(_backing(task, *pair) for pair in zip(pieces, solutions, strict=True))
    weight, bias = _join(task.layer, [part.weight for part in backing])
    if task.recipe.refit:
        weight, bias = _refitted(task, pieces, weight, bias)
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
    """The record of given weights: gap of the select stage (`backing`), discrepancy and distance of the weights."""
    certificates = [certify(piece.program, part.weight, part.dual) for piece, part in zip(pieces, backing, strict=True)]
    selected = measure(task, *_join(task.layer, [part.weight for part in backing]))
    final = measure(task, weight, bias)
    totals = Totals(
        objective=math.fsum(certificate.objective for certificate in certificates),
        bound=math.fsum(certificate.bound for certificate in certificates),
        violation=max(certificate.violation for certificate in certificates),
        norm=final.norm,
        epsilon=math.sqrt(math.fsum(piece.allowed for piece in pieces)),
        discrepancy=final.discrepancy,
        distance=final.distance,
        discrepancy_select=selected.discrepancy,
        distance_select=selected.distance,
    )
    result = record(task.layer, task.scheme, task.recipe.tolerance, totals, weight)
    return LayerOutcome(result, weight, bias, tuple(backing), totals, task.inputs.shape[1], task.moved, task.kappa)


def record(layer: Layer, scheme: str, tolerance: float, totals: Totals, weight: Tensor) -> LayerResult:
    """The record of a layer with new weights, whose totals were measured."""
    feasibility = _FEASIBLE.get(layer.weight.dtype, _FEASIBLE[torch.float32])
    refit_kept_it = totals.distance <= totals.distance_select * (1 + feasibility)
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
        certified=totals.violation <= feasibility and refit_kept_it and gap <= tolerance,
        scheme=scheme,
        weight_before=layer.weight,
        weight_after=weight,
    )


def make_pieces(task: LayerTask) -> tuple[Piece, ...]:
    """The layer's programs, with the recipe's epsilon (or eq. (7) of N for moved inputs) put in absolute terms."""
    layer, recipe = task.layer, task.recipe
    _check_finite(task)
    rows = layer.weight.shape[0] // layer.groups
    activation = get_activation(layer.activation)
    pieces = []
    for group in range(layer.groups):
        part = slice(group * rows, (group + 1) * rows)
        dense = _augmented(layer.weight[part], None if layer.bias is None else layer.bias[part])
        inputs = _with_ones(task.inputs[group]) if layer.bias is not None else task.inputs[group]
        offset = None if task.offset is None else task.offset[:, part]
        responses = (
            activation.apply(_preactivations(inputs, dense, offset))
            if task.responses is None
            else (task.responses[:, part])
        )
        penalty = _penalty(recipe, layer, part, dense.shape)
        build = _Build(task, group, part, activation, responses, offset, penalty, dense)
        piece = build(inputs)
        if inputs.dtype != torch.float64 and _tight(piece.program, responses):
            piece = build(inputs.to(torch.float64))
        pieces.append(piece)
    return tuple(pieces)


@dataclass(frozen=True, eq=False)
class _Build:
    """Poses one piece's program in the precision of the inputs it is called with."""

    task: LayerTask
    group: int
    rows: slice
    activation: Activation
    responses: Tensor
    offset: Tensor | None
    penalty: Penalty
    dense: Tensor

    def __call__(self, inputs: Tensor) -> Piece:
        recipe = self.task.recipe
        slack = None
        if self.task.moved and recipe.constraint == "strict" and self.activation.name == "relu":
            slack = _preactivations(inputs, self.dense, self.offset)  # V = W xhat, N eq. (6)
            slack = slack.clamp(min=0) if recipe.slack == "positive" else slack
        program = Program.of(
            self.activation,
            inputs,
            self.responses,
            0.0,
            recipe.constraint,  # type: ignore[arg-type]  # checked by the recipe
            slack,
            recipe.budget,
            self.penalty,
            offset=self.offset,
        )
        program = replace(program, epsilon=self.task.kappa * self._epsilon(program))
        beyond = None
        if slack is not None:
            beyond = torch.where(torch.isinf(program.lower), slack.clamp(min=0), 0.0).square().sum(dim=0)
        return Piece(self.rows, program, self.dense, beyond)

    def _epsilon(self, program: Program) -> Tensor:
        """Absolute tolerance of each budget group, (groups,) float64."""
        task, recipe = self.task, self.task.recipe
        if task.moved:  # eq. (7) and (19): gamma times what the dense weights reach, group by group
            sums = self._reached(program)
            if task.before_refit is not None:
                sums = torch.maximum(sums, self._reached(self._before_refit(program)))
            return (recipe.gamma_of(task.name) * sums).sqrt()
        epsilon = recipe.epsilon_of(task.name)
        sizes = torch.bincount(program.groups).to(torch.float64)
        if not recipe.relative:
            return epsilon * (sizes / task.layer.weight.shape[0]).sqrt()
        squares = self.responses.to(torch.float64).square().sum(dim=0).cpu()
        if recipe.budget == "neuron":
            return epsilon * squares.sqrt()  # A section 5.2
        return epsilon * squares.sum().sqrt() * (sizes / sizes.sum()).sqrt()  # A section 4.1

    def _reached(self, program: Program) -> Tensor:
        """The squared distance of the dense weights that counts in each group's ball, (groups,)."""
        squares, _ = distances(program, self.dense.to(program.inputs.device, torch.float64))
        return group_sums(squares.cpu(), program.groups, program.group_count)

    def _before_refit(self, program: Program) -> Program:
        """The same program at the inputs that stand for the error before any refit."""
        task = self.task
        assert task.before_refit is not None
        inputs = task.before_refit[self.group]
        inputs = _with_ones(inputs) if task.layer.bias is not None else inputs
        offset = None if task.before_refit_offset is None else task.before_refit_offset[:, self.rows]
        return Program.of(
            self.activation, inputs.to(program.inputs), self.responses, 0.0, program.constraint, None,
            program.groups, self.penalty, offset=offset,
        )  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """How far weights are from the original responses: absolute Frobenius norms, float64."""

    discrepancy: float  # ||sigma(z) - Y||
    distance: float  # of z to the preimages of Y
    norm: float  # ||Y||
    row_distances: tuple[float, ...]  # one a row

    def relative(self, value: float) -> float:
        """`value` over ||Y||; as it is where ||Y|| is zero."""
        return value / self.norm if self.norm > 0 else value


def measure(task: LayerTask, weight: Tensor, bias: Tensor | None) -> Measured:
    """Discrepancy and distance of any weights at the task's inputs, in float64, streaming over samples."""
    layer = task.layer
    activation = get_activation(layer.activation)
    count = layer.weight.shape[0] // layer.groups
    step = max(1, _CHUNK // (layer.weight.shape[1] + 2 * count))
    rows: list[Tensor] = []
    totals = torch.zeros(2, dtype=torch.float64)
    for group in range(layer.groups):
        part = slice(group * count, (group + 1) * count)
        dense = _augmented(layer.weight[part], None if layer.bias is None else layer.bias[part])
        new = _augmented(weight[part], None if bias is None else bias[part])
        squares = torch.zeros(count, dtype=torch.float64)
        for start in range(0, task.inputs.shape[1], step):
            chunk = slice(start, start + step)
            inputs = task.inputs[group, chunk]
            inputs = _with_ones(inputs) if layer.bias is not None else inputs
            offset = None if task.offset is None else task.offset[chunk, part]
            z = _preactivations(inputs, new, offset)
            if task.responses is None:
                responses = activation.apply(_preactivations(inputs, dense, offset))
            else:
                responses = task.responses[chunk, part].to(torch.float64)
            lower, upper = activation.preimage(responses)
            squares += (z - z.clamp(lower, upper)).square().sum(dim=0).cpu()
            totals[0] += (activation.apply(z) - responses).square().sum().cpu()
            totals[1] += responses.square().sum().cpu()
        rows.append(squares)
    squares = torch.cat(rows)
    return Measured(
        discrepancy=math.sqrt(float(totals[0])),
        distance=math.sqrt(float(squares.sum())),
        norm=math.sqrt(float(totals[1])),
        row_distances=tuple(squares.sqrt().tolist()),
    )


def original_responses(layer: Layer, preactivations: Tensor) -> Tensor:
    """sigma of captured pre-activations, (samples, out) float64."""
    return get_activation(layer.activation).apply(preactivations.to(torch.float64))


def _solve(task: LayerTask, piece: Piece, device: str | torch.device | None) -> Solution:
    feasible = task.kappa == 1.0  # the dense weights are, unless a risk is taken
    initial = piece.dense.to(piece.program.inputs) if feasible else None
    return solve(piece.program, task.recipe.tolerance, initial=initial, device=device)


def _feasible(solution: Solution) -> bool:
    return all(status.feasible for status in solution.status)


def _backing(task: LayerTask, piece: Piece, solution: Solution) -> Backing:
    """The select stage's outcome as it will be kept: the certificate is of exactly these numbers.

    Multipliers in float32 take half the space and any multipliers give a valid bound; they stay in float64 where the
    program is in float64. A piece without feasible weights keeps the dense ones, which are feasible.
    """
    weight = solution.weight if _feasible(solution) else piece.dense
    dual = solution.dual.to(piece.program.inputs.dtype)
    return Backing(_cast(task.layer, weight), dual)


def _refitted(
    task: LayerTask, pieces: Sequence[Piece], weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Refitted weights, row by row only where that lowers the row's own distance."""
    parts = []
    for piece in pieces:
        selected = _augmented(weight[piece.rows], None if bias is None else bias[piece.rows])
        parts.append(_cast(task.layer, refit(piece.program, selected.to(piece.program.inputs), seed=task.recipe.seed)))
    new_weight, new_bias = _join(task.layer, parts)
    before, after = measure(task, weight, bias).row_distances, measure(task, new_weight, new_bias).row_distances
    lower = torch.tensor([new <= old for new, old in zip(after, before, strict=True)], device=weight.device)
    if bias is not None and new_bias is not None:
        bias = torch.where(lower, new_bias, bias)
    return torch.where(lower[:, None], new_weight, weight), bias


def _cast(layer: Layer, weight: Tensor) -> Tensor:
    """A weight as the network will keep it: whatever is reported is measured on that."""
    return weight.to(layer.dtype or layer.weight.dtype).to(layer.weight.dtype)


def _join(layer: Layer, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Weights and bias of a layer from its pieces' weights, in the layer's dtype and on its device."""
    like = layer.weight
    whole = torch.cat([part.to(like) for part in parts])
    if layer.bias is None:
        return whole.contiguous(), None
    return whole[:, :-1].contiguous(), whole[:, -1].contiguous()


def _penalty(recipe: Recipe, layer: Layer, rows: slice, shape: tuple[int, ...] | torch.Size) -> Penalty:
    """The recipe's penalty for some rows; a bias column is appended, free unless the recipe penalises it."""
    penalty = recipe.penalty_of(layer.name)
    costs = getattr(penalty, "costs", None)
    if isinstance(costs, Tensor) and costs.ndim:
        out, width = layer.weight.shape
        augmented = width + (layer.bias is not None)
        if costs.shape[-1] not in (1, width, augmented) or costs.ndim > 2 or costs.shape[:-1] not in ((), (1,), (out,)):
            raise InputError(
                should("costs", f"of shape ({width},) or ({out}, {width}) for layer {layer.name!r}", tuple(costs.shape))
            )
        if costs.shape[-1] == width < augmented and width > 1:
            costs = torch.cat([costs, torch.ones_like(costs[..., :1])], dim=-1)
            penalty = replace(penalty, costs=costs)  # type: ignore[type-var]  # a dataclass, as it has costs
    if layer.groups > 1:
        penalty = penalty.rows(torch.arange(rows.start, rows.stop))
    if layer.bias is None:
        return penalty
    if recipe.penalize_bias:
        return penalty
    last = torch.zeros(shape[1], dtype=torch.bool)
    last[-1] = True
    return penalty.with_free_columns(last)


def _tight(program: Program, responses: Tensor) -> bool:
    """Whether float32 would lose the constraint: strict entries have no room for rounding, a tiny ball little."""
    if program.constraint == "strict" and bool((program.lower != program.upper).any()):
        return True
    assert program.epsilon is not None
    return float(program.epsilon.square().sum()) < (_TIGHT * float(responses.to(torch.float64).norm())) ** 2


def _preactivations(inputs: Tensor, weight: Tensor, offset: Tensor | None) -> Tensor:
    z = inputs.to(torch.float64) @ weight.to(inputs.device, torch.float64).T
    return z if offset is None else z + offset


def _augmented(weight: Tensor, bias: Tensor | None) -> Tensor:
    return weight if bias is None else torch.cat([weight, bias[:, None]], dim=1)


def _with_ones(inputs: Tensor) -> Tensor:
    return torch.cat([inputs, inputs.new_ones(inputs.shape[0], 1)], dim=1)


def _check_finite(task: LayerTask) -> None:
    named = {"inputs": task.inputs, "responses": task.responses, "offset": task.offset}
    for what, array in named.items():
        if array is not None and not bool(torch.isfinite(array).all()):
            cure = "Check the model's weights and the scale of the data."
            raise DataError(
                should(
                    "data",
                    "such that every layer computes finite numbers",
                    f"NaN or infinity in the {what} of layer {task.name!r}",
                    cure,
                )
            )
