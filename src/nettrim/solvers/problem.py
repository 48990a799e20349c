"""A program made ready for the solvers: scaled to unit size, neuron-major, in both precisions.

The solvers see X (samples, in) with largest entry one and bounds of unit size, stored (rows, samples) so that a
neuron's samples are contiguous. Solver functions never write into these arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nettrim.programs import Program, group_sums
from nettrim.programs.penalties import Penalty


@dataclass(frozen=True, eq=False)
class Problem:
    """The scaled program of some rows; see `make_problem`."""

    inputs: Tensor  # (samples, in), working precision
    inputs_t: Tensor  # (in, samples) float64
    lower: Tensor  # (rows, samples), float64
    upper: Tensor  # (rows, samples)
    soft: Tensor | None  # (rows, samples) bool, entries counted in the ball; None when all are
    epsilon: Tensor | None  # (groups,) float64
    regularization: float | None
    groups: Tensor  # (rows,)
    penalty: Penalty
    input_scale: float
    response_scale: float

    @property
    def rows(self) -> int:
        return self.upper.shape[0]

    @property
    def group_count(self) -> int:
        return int(self.groups.max()) + 1

    @property
    def weight_scale(self) -> float:
        """Scaled weights times this are the program's."""
        return self.response_scale / self.input_scale

    @property
    def dual_scale(self) -> float:
        """Scaled multipliers times this are the program's."""
        return 1 / (self.input_scale if self.penalty.is_norm else self.response_scale)

    def select(self, index: Tensor) -> Problem:
        """The problem of some rows; budget groups should stay whole."""
        kept, groups = torch.unique(self.groups[index], return_inverse=True)
        return replace(
            self,
            lower=self.lower[index],
            upper=self.upper[index],
            soft=None if self.soft is None else self.soft[index],
            epsilon=None if self.epsilon is None else self.epsilon[kept],
            groups=groups,
            penalty=self.penalty.rows(index),
        )

    def group_sum(self, values: Tensor) -> Tensor:
        return group_sums(values, self.groups, self.group_count)

    def distance(self, product: Tensor) -> tuple[Tensor, Tensor]:
        """Signed distance of pre-activations (rows, samples) to the box: the part in the ball and the part that should vanish."""
        gap = product - product.clamp(self.lower, self.upper)
        if self.soft is None:
            return gap, torch.zeros((), dtype=gap.dtype, device=gap.device)
        return torch.where(self.soft, gap, 0.0), torch.where(self.soft, 0.0, gap)


def make_problem(program: Program, precision: torch.dtype = torch.float32) -> Problem:
    """Scale and transpose a program; `precision` is that of the large products."""
    input_scale = _largest(program.inputs)
    response_scale = max(_largest(program.lower), _largest(program.upper))
    lower = program.lower.T.to(torch.float64).contiguous() / response_scale
    upper = program.upper.T.to(torch.float64).contiguous() / response_scale
    inputs_t = program.inputs.T.to(torch.float64).contiguous() / input_scale
    like = inputs_t.new_zeros(())
    penalty = program.penalty.to(like)
    if not penalty.is_norm:
        penalty = penalty.rescaled(response_scale / input_scale)
    epsilon = None if program.epsilon is None else program.epsilon.to(inputs_t.device) / response_scale
    regularization = program.regularization
    if regularization is not None:
        # penalty(c u) + lambda |c' d|^2, divided by c for a norm
        regularization = regularization * response_scale**2
        if penalty.is_norm:
            regularization *= input_scale / response_scale
    return Problem(
        inputs=inputs_t.T.to(precision).contiguous(),
        inputs_t=inputs_t,
        lower=lower,
        upper=upper,
        soft=(lower == upper) if program.constraint == "strict" else None,
        epsilon=epsilon,
        regularization=regularization,
        groups=program.groups.to(inputs_t.device),
        penalty=penalty,
        input_scale=input_scale,
        response_scale=response_scale,
    )


def _largest(array: Tensor) -> float:
    finite = array[torch.isfinite(array)]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return largest if largest > 0 else 1.0
