"""With what a program is solved: settings of the machine, which no answer depends on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nettrim.errors import InputError, should
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


def check_device(device: object, name: str = "device") -> None:
    """Refuse what is no device of this machine; None is the default. Raises InputError, which calls it `name`."""
    if device is None:
        return
    try:
        torch.zeros(1, device=device)  # type: ignore[call-overload]  # whatever was given
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise InputError(should(name, "a device of this machine", f"{device!r} ({first})", "Use cpu.")) from error
