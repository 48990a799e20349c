"""Presolve: what needs no iteration. Inputs that are always zero, and rows for which zero is already optimal."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nettrim.programs import Program, group_sums

_SLICE = 1 << 20  # numbers that are looked at together


@dataclass(frozen=True, eq=False)
class Zero:
    """How far zero weights are from the bounds; it depends on no epsilon."""

    squares: Tensor  # (out,) float64, sums of the squared distances that count
    worst: Tensor | None  # (out,) the largest distance of those that must vanish; None: all count


@dataclass(frozen=True, eq=False)
class Reduced:
    """The program that is left, and where its rows and columns sit in the whole one; None when nothing is left."""

    program: Program | None
    rows: Tensor  # indices of the rows kept
    columns: Tensor  # indices of the columns kept
    zero: Zero


def presolve(program: Program, memory: int | None = None, before: Reduced | None = None) -> Reduced:
    """Drop columns of zeros and rows whose zero weights are optimal.

    Columns stay where a copy of the inputs without them would take more than half of `memory` bytes. `before` is what
    a program with the same inputs and bounds was reduced to: its columns, and its copy of the inputs, serve again.

    A row at distance zero with zero weights costs nothing and uses nothing of a shared budget, so it is optimal
    whatever the others do; a whole budget group within eps at zero is too.
    """
    distances = at_zero(program) if before is None else before.zero
    met = distances.squares == 0
    if distances.worst is not None:
        met &= distances.worst == 0
    if program.epsilon is not None:
        total = group_sums(distances.squares, program.groups.to(met.device), program.group_count)
        whole = total <= program.epsilon.to(total) ** 2
        if distances.worst is not None:
            worst = torch.zeros_like(total).scatter_reduce(0, program.groups.to(met.device), distances.worst, "amax")
            whole &= worst == 0
        met |= whole[program.groups.to(met.device)]
    if program.penalty.couples_rows and not bool(met.all()):
        met = torch.zeros_like(met)
    rows = (~met).nonzero()[:, 0]
    columns = _used(program.inputs, memory).nonzero()[:, 0] if before is None else before.columns
    if not len(rows) or not len(columns):
        return Reduced(None, rows, columns, distances)
    kept = program.rows(rows) if len(rows) < len(met) else program
    if len(columns) < program.inputs.shape[1]:
        known = None if before is None or before.program is None else before.program.inputs
        inputs = kept.inputs[:, columns] if known is None else known
        kept = replace(kept, inputs=inputs, penalty=kept.penalty.columns(columns))
    return Reduced(kept, rows, columns, distances)


def at_zero(program: Program) -> Zero:
    """How far zero weights are from the bounds of a program, which are read in slices of samples."""
    squares = torch.zeros(program.shape[0], dtype=torch.float64, device=program.lower.device)
    worst = torch.zeros_like(squares)
    strict = program.constraint == "strict" and program.epsilon is not None
    step = max(1, _SLICE // len(squares))
    for lower, upper in zip(program.lower.split(step), program.upper.split(step), strict=True):
        gap = (lower.clamp(min=0) + upper.clamp(max=0)).to(torch.float64)
        if strict:
            tight = gap * (lower != upper)
            gap -= tight
            worst = torch.maximum(worst, tight.abs_().amax(dim=0))
        squares += gap.square_().sum(dim=0)
    return Zero(squares, worst if strict else None)


def _used(inputs: Tensor, memory: int | None) -> Tensor:
    """Mask of the columns that are kept, (in,)."""
    if memory is not None and 2 * inputs.numel() * inputs.element_size() > memory:
        return torch.ones(inputs.shape[1], dtype=torch.bool, device=inputs.device)
    return (inputs != 0).any(dim=0)
