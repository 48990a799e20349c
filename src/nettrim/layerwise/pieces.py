"""A layer and a recipe become programs, one a convolution group, with every tolerance in absolute terms."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from nettrim.certificates.program import distances
from nettrim.errors import InputError, should
from nettrim.layerwise.matrices import augmented, preactivations, row_chunks, with_ones
from nettrim.layerwise.task import LayerTask, Piece, check_finite
from nettrim.models.base import Layer
from nettrim.programs import Activation, Program, get_activation, group_sums
from nettrim.programs.penalties import Penalty
from nettrim.recipe import Recipe

_STILL = 1e-6  # relative to the responses: distances that moved inputs leave no smaller
_TIGHT = 1e-5  # an epsilon below this part of the responses is lost in float32: such programs are posed in float64


def make_pieces(task: LayerTask) -> tuple[Piece, ...]:
    """The layer's programs, with the recipe's epsilon (or eq. (7) of N for moved inputs) put in absolute terms."""
    layer, recipe = task.layer, task.recipe
    check_finite(task)
    rows = layer.weight.shape[0] // layer.groups
    activation = get_activation(layer.activation)
    pieces = []
    for group in range(layer.groups):
        part = slice(group * rows, (group + 1) * rows)
        dense = augmented(layer.weight[part], None if layer.bias is None else layer.bias[part])
        inputs = with_ones(task.inputs[group]) if layer.bias is not None else task.inputs[group]
        offset = None if task.offset is None else task.offset[:, part]
        responses = (
            activation.apply(preactivations(inputs, dense, offset))
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
            slack = preactivations(inputs, self.dense, self.offset)  # V = W xhat, N eq. (6)
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
        if not task.moved:
            return self._asked(program)
        # eq. (7) and (19): gamma times what the dense weights reach, group by group
        sums = self._reached(program)
        if task.before_refit is not None:
            sums = torch.maximum(sums, self._reached(self._before_refit(program)))
        squares = group_sums(self._squares, program.groups, program.group_count)
        still = sums <= _STILL**2 * squares  # of groups none of whose inputs moved, as in a parallel layer
        return torch.where(still, self._asked(program), (recipe.gamma_of(task.name) * sums).sqrt())

    @cached_property
    def _squares(self) -> Tensor:
        """The squared norm of every row's responses, (rows,)."""
        squares = torch.zeros(self.responses.shape[1], dtype=torch.float64, device=self.responses.device)
        for chunk in row_chunks(*self.responses.shape):
            squares += self.responses[chunk].to(torch.float64).square().sum(dim=0)
        return squares.cpu()

    def _asked(self, program: Program) -> Tensor:
        """The recipe's epsilon of each budget group."""
        task, recipe = self.task, self.task.recipe
        epsilon = recipe.epsilon_of(task.name)
        sizes = torch.bincount(program.groups).to(torch.float64)
        if not recipe.relative:
            return epsilon * (sizes / task.layer.weight.shape[0]).sqrt()
        if recipe.budget == "neuron":
            return epsilon * self._squares.sqrt()  # A section 5.2
        return epsilon * self._squares.sum().sqrt() * (sizes / sizes.sum()).sqrt()  # A section 4.1

    def _reached(self, program: Program) -> Tensor:
        """The squared distance of the dense weights that counts in each group's ball, (groups,)."""
        squares, _ = distances(program, self.dense.to(program.inputs.device, torch.float64))
        return group_sums(squares.cpu(), program.groups, program.group_count)

    def _before_refit(self, program: Program) -> Program:
        """The same program at the inputs that stand for the error before any refit."""
        task = self.task
        assert task.before_refit is not None
        inputs = task.before_refit[self.group]
        inputs = with_ones(inputs) if task.layer.bias is not None else inputs
        offset = None if task.before_refit_offset is None else task.before_refit_offset[:, self.rows]
        return Program.of(
            self.activation, inputs.to(program.inputs), self.responses, 0.0, program.constraint, None,
            program.groups, self.penalty, offset=offset,
        )  # fmt: skip


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
