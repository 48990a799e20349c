"""A layer cut into blocks of neurons.

Where the cuts are depends on the layer and the recipe alone, never on who solves the blocks: so the answer does not
either. Budgets stay whole, but for one that is large enough to be solved in several parts (`cuts`). A penalty that
couples neurons, a convolution in groups and kappa < 1 (whose failure is judged by layer) keep a layer whole.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nettrim.layerwise import LayerTask, Piece, make_pieces
from nettrim.models.base import Layer
from nettrim.programs.budgets import budget_groups
from nettrim.recipe import Recipe

_ROWS = 64  # the fewest neurons worth a block: a block factors the inputs' Gram matrix anew ...
_WIDTH = 16  # ... so a wide layer has as many more as keep that at a few percent of the work
_JOINT_ROWS = 128  # the fewest neurons worth a part of a joint budget ...
_JOINT_PARTS = 4  # ... and the fewest parts: they are solved several times each, at one multiplier after another


@dataclass(frozen=True, eq=False)
class Part:
    """Some neurons of a layer, and all that is needed to trim them."""

    task: LayerTask  # of these neurons alone
    piece: Piece | None  # their program; None for a whole layer, which makes its own
    rows: range
    number: int
    megabytes: float = 0.0  # multipliers larger than this are not kept
    pieces: int = 1  # in which it is solved, one after the other, where memory is short

    @property
    def name(self) -> str:
        """For messages."""
        return self.task.name if self.piece is None else f"{self.task.name}, {_span(self.rows)}"

    def smaller(self) -> Part | None:
        """The same part in twice as many pieces, down to single budget groups; None where it is in these already."""
        most = 1 if _is_whole(self.task.layer, self.task.recipe) else len(_group_sizes(self))
        return None if self.pieces >= most else replace(self, pieces=min(2 * self.pieces, most))

    def divided(self) -> tuple[Part, ...]:
        """Its pieces: parts of consecutive neurons, budget groups whole."""
        if self.piece is None:
            return tuple(parts_of(self.task, _even(_group_sizes(self), self.pieces)))
        blocks = _even(_group_sizes(self), self.pieces)
        return tuple(cut_part(self.task, self.piece, rows, 0, self.megabytes) for rows in blocks)


def plan(layer: Layer, recipe: Recipe) -> tuple[range, ...]:
    """The blocks of a layer: consecutive neurons, budget groups whole, sizes as even as these allow."""
    out, width = layer.weight.shape
    most = max(_ROWS, width // _WIDTH)
    if out <= most or recipe.budget == "layer" or _is_whole(layer, recipe):
        return (range(out),)
    return _even(torch.bincount(budget_groups(recipe.budget, out)).tolist(), -(-out // most))


def cuts(layer: Layer, recipe: Recipe, block: range) -> tuple[range, ...]:
    """The parts in which a block of `plan` that is one joint budget is solved; itself alone where it is not cut."""
    most = max(_JOINT_ROWS, layer.weight.shape[1] // _WIDTH)
    count = -(-len(block) // most)
    groups = budget_groups(recipe.budget, layer.weight.shape[0])[block.start : block.stop]
    if count < _JOINT_PARTS or _is_whole(layer, recipe) or bool((groups != groups[0]).any()):
        return (block,)
    return tuple(range(block.start + part.start, block.start + part.stop) for part in _even([1] * len(block), count))


def parts_of(
    task: LayerTask,
    blocks: Sequence[range],
    wanted: Collection[int] | None = None,
    share: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> Iterator[Part]:
    """The wanted blocks of a layer (None: all), each with its program; made one by one, as they are asked for.

    `share` is the executor's, for the inputs that all blocks read.
    """
    if len(blocks) == 1:
        yield Part(task, None, blocks[0], 0)
        return
    (piece,) = make_pieces(task)
    piece = replace(piece, program=replace(piece.program, inputs=share(piece.program.inputs)))
    megabytes = kept_megabytes(task, piece)
    for number in range(len(blocks)) if wanted is None else sorted(wanted):
        yield cut_part(task, piece, blocks[number], number, megabytes)


def kept_megabytes(task: LayerTask, piece: Piece) -> float:
    """What the multipliers of a part of `piece` may take to be kept: nothing where those of the whole take too much."""
    size = piece.program.upper.numel() * piece.program.inputs.element_size()
    return task.recipe.certificate_megabytes if size <= task.recipe.certificate_megabytes * 2**20 else 0.0


def cut_part(task: LayerTask, piece: Piece, rows: range, number: int, megabytes: float) -> Part:
    """Some rows of a piece, counted from its first, which is the task's; views, so that nothing is copied."""
    layer, program, cut = task.layer, piece.program, slice(rows.start, rows.stop)
    kept, groups = torch.unique(program.groups[cut], return_inverse=True)
    assert program.epsilon is not None
    own = replace(
        program,
        lower=program.lower[:, cut],
        upper=program.upper[:, cut],
        epsilon=program.epsilon[kept],
        groups=groups,
        penalty=program.penalty.rows(torch.arange(rows.start, rows.stop)),
    )
    task = replace(
        task,
        layer=replace(layer, weight=layer.weight[cut], bias=None if layer.bias is None else layer.bias[cut]),
        inputs=program.inputs[None, :, : layer.weight.shape[1]],  # whoever shares the program's inputs shares these
        responses=None if task.responses is None else task.responses[:, cut],
        offset=None if task.offset is None else task.offset[:, cut],
        before_refit=None,
        before_refit_offset=None,
    )
    slack = None if piece.slack is None else piece.slack[cut]
    return Part(task, Piece(slice(0, len(rows)), own, piece.dense[cut], slack), rows, number, megabytes)


def _is_whole(layer: Layer, recipe: Recipe) -> bool:
    """Whether a layer can only be solved whole."""
    return recipe.penalty_of(layer.name).couples_rows or layer.groups > 1 or recipe.kappa < 1


def _group_sizes(part: Part) -> list[int]:
    """Rows of each budget group, in order."""
    if part.piece is not None:
        return torch.bincount(part.piece.program.groups).tolist()
    return torch.bincount(budget_groups(part.task.recipe.budget, part.task.layer.weight.shape[0])).tolist()


def _even(sizes: Sequence[int], count: int) -> tuple[range, ...]:
    """Consecutive rows in about `count` ranges as even as whole groups of these sizes allow."""
    aim = sum(sizes) / count
    blocks, start, end = [], 0, 0
    for size in sizes:
        if end > start and end + size > (len(blocks) + 1) * aim + 1e-9:
            blocks.append(range(start, end))
            start = end
        end += size
    return (*blocks, range(start, end))


def _span(rows: range) -> str:
    return f"neurons {rows.start}-{rows.stop - 1}"
