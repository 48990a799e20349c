"""What is done to a block, wherever it is done: plain functions of values that travel."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nettrim.blocks.merge import merge
from nettrim.blocks.split import Part
from nettrim.executors.base import Held
from nettrim.layerwise import (
    Answer,
    LayerOutcome,
    LayerTask,
    Means,
    Priced,
    Shares,
    land,
    price,
    rough_multiplier,
    trim_layer,
    trim_piece,
)
from nettrim.programs import Program


@dataclass(frozen=True, eq=False)
class Sample:
    """A few rows of a joint budget, from which its multiplier is guessed."""

    name: str
    program: Program
    dense: Tensor
    share: float  # of the squared epsilon, which the program still has whole


@dataclass(frozen=True, eq=False)
class Step:
    """A part of a joint budget: to be solved at a multiplier, or within its shares of the budget."""

    name: str
    part: Held  # of a Part
    state: Held | None  # of a Priced
    rows: int
    multiplier: float = 0.0
    shares: Shares | None = None  # not None: the last step
    pieces: int = 1

    def smaller(self) -> Step | None:
        """The same step in twice as many pieces, down to single neurons; None where it is in these already."""
        return None if self.pieces >= self.rows else replace(self, pieces=min(2 * self.pieces, self.rows))


@dataclass(frozen=True)
class Done:
    """What comes back of a block besides its answer."""

    worker: str
    pieces: int  # in which it was solved


@dataclass(frozen=True)
class LayerWork:
    """Trims layers, and blocks of them. A plain value: it travels.

    `device` is where programs are solved, `memory_budget` the bytes of a solver's working arrays.
    """

    device: str | torch.device | None = None
    memory_budget: int | None = None

    @property
    def means(self) -> Means:
        return Means(self.device, self.memory_budget)

    def __call__(self, task: LayerTask) -> LayerOutcome:
        """A whole layer."""
        return trim_layer(task, self.means)

    def part(self, part: Part) -> LayerOutcome:
        """A block of a layer, or a whole one; in pieces where memory was short."""
        if part.pieces > 1:
            return _merged(part, [self.part(piece) for piece in part.divided()], part.pieces)
        if part.piece is None:
            return self(part.task)
        return trim_piece(part.task, part.piece, part.megabytes, self.means)

    def sample(self, sample: Sample) -> float | None:
        """A guess of a joint budget's multiplier."""
        return rough_multiplier(sample.program, sample.dense, sample.share, self.means)

    def step(self, step: Step) -> tuple[Answer | LayerOutcome, Held | None, Done]:
        """A part of a joint budget: its sums, and weights and multipliers to stay here; at the end its outcome."""
        part: Part = step.part.value
        state: Priced | None = None if step.state is None else step.state.value
        pieces = list(_pieces(part, state, step.pieces))
        done = Done(worker(), step.pieces)
        if step.shares is not None:
            outcomes = [land(p.task, p.piece, s, step.shares, self.means) for p, s in pieces if p.piece is not None]
            return _merged(part, outcomes, step.pieces), None, done
        found = [price(p.task, p.piece, step.multiplier, s, self.means) for p, s in pieces if p.piece is not None]
        priced = [state for _, state in found]
        joined = Priced(
            torch.cat([state.weight for state in priced]),
            torch.cat([state.dual for state in priced], dim=1),
            torch.cat([state.squares for state in priced]),
            torch.cat([state.settled for state in priced]),
        )
        return Answer.over([answer for answer, _ in found]), Held(joined), done


def _pieces(part: Part, state: Priced | None, count: int) -> Sequence[tuple[Part, Priced | None]]:
    """A part of a joint budget, whose neurons can be solved apart, in pieces, each with its rows of the state."""
    if count == 1:
        return [(part, state)]
    assert part.piece is not None
    program, rows = part.piece.program, len(part.rows)
    assert program.epsilon is not None  # and never read: a multiplier or shares take its place
    program = replace(program, groups=torch.arange(rows), epsilon=program.epsilon.expand(rows))
    apart = replace(part, piece=replace(part.piece, program=program), pieces=count)
    found, start = [], 0
    for piece in apart.divided():
        stop = start + len(piece.rows)
        own = None
        if state is not None:
            cut = slice(start, stop)
            own = Priced(state.weight[cut], state.dual[:, cut], state.squares[cut], state.settled[cut])
        found.append((piece, own))
        start = stop
    return found


def _merged(part: Part, outcomes: Sequence[LayerOutcome], pieces: int) -> LayerOutcome:
    outcome = merge(part.task.layer, part.task.recipe, outcomes)
    if pieces == 1:
        return outcome
    note = f"{part.name}: memory ran out; solved in {pieces} pieces."
    return replace(outcome, notes=(*outcome.notes, note))


def worker() -> str:
    """Who is working: machine, process and thread."""
    return f"{socket.gethostname()}:{os.getpid()}:{threading.current_thread().name}"
