"""Presolve: what needs no iteration. Inputs that are always zero, and rows for which zero is already optimal."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nettrim.programs import Program, group_sums


@dataclass(frozen=True, eq=False)
class Reduced:
    """The program that is left, and where its rows and columns sit in the whole one; None when nothing is left."""

    program: Program | None
    rows: Tensor  # indices of the rows kept
    columns: Tensor  # indices of the columns kept


def presolve(program: Program, memory: int | None = None, before: Reduced | None = None) -> Reduced:
    """Drop columns of zeros and rows whose zero weights are optimal.

    Columns stay where a copy of the inputs without them would take more than half of `memory` bytes. `before` is what
    a program with the same inputs was reduced to: its columns, and its copy of the inputs, serve again.

    A row at distance zero with zero weights costs nothing and uses nothing of a shared budget, so it is optimal
    whatever the others do; a whole budget group within eps at zero is too.
    """
    lower, upper = program.lower, program.upper
    gap = (lower.clamp(min=0) + upper.clamp(max=0)).to(torch.float64)  # distance of zero to the box
    squares = (gap**2).sum(dim=0)
    zero = squares == 0
    if program.epsilon is not None:
        hard = program.hard()
        tight = torch.zeros_like(gap) if hard is None else gap * hard.to(gap.dtype)
        soft_squares, hard_worst = ((gap - tight) ** 2).sum(dim=0), tight.abs().amax(dim=0)
        total = group_sums(soft_squares, program.groups.to(squares.device), program.group_count)
        worst = torch.zeros_like(total).scatter_reduce(0, program.groups.to(total.device), hard_worst, "amax")
        whole = (total <= program.epsilon.to(total) ** 2) & (worst == 0)
        zero |= whole[program.groups.to(whole.device)]
    if program.penalty.couples_rows and not bool(zero.all()):
        zero = torch.zeros_like(zero)
    rows = (~zero).nonzero()[:, 0]
    columns = _used(program.inputs, memory).nonzero()[:, 0] if before is None else before.columns
    if not len(rows) or not len(columns):
        return Reduced(None, rows, columns)
    kept = program.rows(rows) if len(rows) < len(zero) else program
    if len(columns) < program.inputs.shape[1]:
        known = None if before is None or before.program is None else before.program.inputs
        inputs = kept.inputs[:, columns] if known is None else known
        kept = replace(kept, inputs=inputs, penalty=kept.penalty.columns(columns))
    return Reduced(kept, rows, columns)


def _used(inputs: Tensor, memory: int | None) -> Tensor:
    """Mask of the columns that are kept, (in,)."""
    if memory is not None and 2 * inputs.numel() * inputs.element_size() > memory:
        return torch.ones(inputs.shape[1], dtype=torch.bool, device=inputs.device)
    return (inputs != 0).any(dim=0)
