"""With what a program is solved: settings of the machine, which no answer depends on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nettrim.programs import Program
from nettrim.solvers import Solution, Start, refit, solve


@dataclass(frozen=True)
class Means:
    """The device, and how many bytes a solver's working arrays may take (None: its own limit)."""

    device: str | torch.device | None = None
    memory_budget: int | None = None

    def solve(self, program: Program, tolerance: float, initial: Tensor | None, warm: Start | None = None) -> Solution:
        """`nettrim.solve` by these means."""
        return solve(
            program, tolerance, initial=initial, warm=warm, memory_budget=self.memory_budget, device=self.device
        )

    def refit(self, program: Program, weight: Tensor, seed: int) -> Tensor:
        """`nettrim.solvers.refit` by these means."""
        return refit(program, weight, seed=seed, memory_budget=self.memory_budget)


HERE = Means()  # on the program's own device
