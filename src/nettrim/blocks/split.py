"""A layer cut into blocks of neurons whose budgets are their own.

Where the cuts are depends on the layer and the recipe alone, never on who solves the blocks: so the answer does not
either. A budget over the whole layer, a penalty that couples neurons, a convolution in groups and kappa < 1 (whose
failure is judged by layer) keep a layer whole.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nettrim.layerwise import LayerOutcome, LayerTask, Piece, make_pieces, trim_layer, trim_piece
from nettrim.models.base import Layer
from nettrim.programs.budgets import budget_groups
from nettrim.recipe import Recipe

_ROWS = 64  # the fewest neurons worth a block: a block factors the inputs' Gram matrix anew ...
_WIDTH = 16  # ... so a wide layer has as many more as keep that at a few percent of the work


@dataclass(frozen=True, eq=False)
class Part:
    """Some neurons of a layer, and all that is needed to trim them."""

    task: LayerTask  # of these neurons alone
    piece: Piece | None  # their program; None for a whole layer, which makes its own
    rows: range
    number: int
    megabytes: float = 0.0  # multipliers larger than this are not kept

    @property
    def name(self) -> str:
        """For messages."""
        return self.task.name if self.piece is None else f"{self.task.name}, {_span(self.rows)}"


@dataclass(frozen=True)
class LayerWork:
    """Trims layers, and blocks of them; `device` is where programs are solved. A plain value: it travels."""

    device: str | torch.device | None = None

    def __call__(self, task: LayerTask) -> LayerOutcome:
        """A whole layer."""
        return trim_layer(task, self.device)

    def part(self, part: Part) -> LayerOutcome:
        """A block of a layer, or a whole one."""
        if part.piece is None:
            return self(part.task)
        return trim_piece(part.task, part.piece, part.megabytes, self.device)


def plan(layer: Layer, recipe: Recipe) -> tuple[range, ...]:
    """The blocks of a layer: consecutive neurons, budget groups whole, sizes as even as these allow."""
    out, width = layer.weight.shape
    most = max(_ROWS, width // _WIDTH)
    coupled = recipe.budget == "layer" or recipe.penalty_of(layer.name).couples_rows
    if out <= most or coupled or layer.groups > 1 or recipe.kappa < 1:
        return (range(out),)
    sizes = torch.bincount(budget_groups(recipe.budget, out)).tolist()
    aim = out / -(-out // most)
    blocks, start, end = [], 0, 0
    for size in sizes:
        if end > start and end + size > (len(blocks) + 1) * aim + 1e-9:
            blocks.append(range(start, end))
            start = end
        end += size
    return (*blocks, range(start, end))


def parts_of(
    task: LayerTask, blocks: Sequence[range], wanted: Collection[int], share: Callable[[Tensor], Tensor]
) -> Iterator[Part]:
    """The wanted blocks of a layer, each with its program; made one by one, as they are asked for.

    `share` is the executor's, for the inputs that all blocks read.
    """
    if len(blocks) == 1:
        yield Part(task, None, blocks[0], 0)
        return
    (piece,) = make_pieces(task)
    layer = task.layer
    program = replace(piece.program, inputs=share(piece.program.inputs))
    size = program.samples * program.shape[0] * program.inputs.element_size()
    megabytes = task.recipe.certificate_megabytes if size <= task.recipe.certificate_megabytes * 2**20 else 0.0
    width = layer.weight.shape[1]
    for number in sorted(wanted):
        rows = blocks[number]
        index, cut = torch.arange(rows.start, rows.stop), slice(rows.start, rows.stop)
        block = Piece(
            slice(0, len(rows)),
            program.rows(index),
            piece.dense[cut],
            None if piece.slack is None else piece.slack[cut],
        )
        yield Part(
            replace(
                task,
                layer=replace(
                    layer, weight=layer.weight[cut], bias=None if layer.bias is None else layer.bias[cut]
                ),
                inputs=program.inputs[None, :, :width],  # a view: whoever shares the program's inputs shares these
                responses=None if task.responses is None else task.responses[:, cut],
                offset=None if task.offset is None else task.offset[:, cut],
                before_refit=None,
                before_refit_offset=None,
            ),
            block,
            rows,
            number,
            megabytes,
        )


def worker() -> str:
    """Who is working: machine, process and thread."""
    return f"{socket.gethostname()}:{os.getpid()}:{threading.current_thread().name}"


def _span(rows: range) -> str:
    return f"neurons {rows.start}-{rows.stop - 1}"
