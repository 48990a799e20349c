"""What every solver shares: its outcome, and how each neuron ended."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Protocol

import torch
from torch import Tensor

from nettrim.certificates import Certificate
from nettrim.programs import Program

ABSURD = 1e5  # multipliers that bound the penalty by so many times a plausible one prove that nothing is feasible


class Status(Enum):
    """How a neuron ended; the text says cause and cure."""

    CERTIFIED = "Feasible and optimal within the tolerance."
    ZERO = "The zero row is feasible, hence optimal."
    LINEAR_PROGRAM = "Certified by the linear-programming fallback (HiGHS)."
    RESCUED = "Certified with the weights of a general solver (Clarabel through CVXPY)."
    GAP = "Feasible, but the gap is above the tolerance. Accept the gap in the certificate, or raise the tolerance."
    DENSE = "Only the given initial weights are known to be feasible. Raise epsilon."
    INFEASIBLE = "No plausible weights satisfy the constraint; the multipliers prove it. Raise epsilon or the slack."
    VIOLATED = "No feasible weights were found and infeasibility was not proved. Raise epsilon."

    @property
    def certified(self) -> bool:
        """Whether the neuron's weights are proved to be optimal within the tolerance."""
        return self in (Status.CERTIFIED, Status.ZERO, Status.LINEAR_PROGRAM, Status.RESCUED)

    @property
    def feasible(self) -> bool:
        """Whether the neuron's weights satisfy the constraint."""
        return self not in (Status.INFEASIBLE, Status.VIOLATED)


@dataclass(frozen=True, eq=False)
class Start:
    """What is known of the solution of a program that differs little: all that a warm start reads of a `Solution`."""

    weight: Tensor  # (out, in)
    dual: Tensor  # (samples, out)


@dataclass(frozen=True, eq=False)
class Solution:
    """A weight, the multipliers that back it, and how each neuron ended."""

    weight: Tensor  # (out, in), in the dtype of the inputs
    dual: Tensor  # (samples, out)
    status: tuple[Status, ...]  # one a row
    certificate: Certificate  # of exactly this weight and dual
    iterations: int = 0
    seconds: float = 0.0
    gemms: float = 0.0  # work in units of one inputs @ weight.T

    @property
    def certified(self) -> bool:
        """Whether every neuron is certified."""
        return all(status.certified for status in self.status)

    def to(self, device: torch.device) -> Solution:
        """The same solution on another device."""
        return replace(self, weight=self.weight.to(device), dual=self.dual.to(device))


class Solver(Protocol):
    """A solver is an immutable value; `solve` is a pure function of the program."""

    def solve(self, program: Program, tolerance: float, initial: Tensor | None) -> Solution:
        """Solve `program`; `initial` (out, in), if given, should be feasible."""
        ...
