"""A program made ready for the solvers: scaled to unit size, neuron-major, in both precisions.

The solvers see X (samples, in) with entries and bounds up to one, scaled by powers of two, stored (rows, samples) so
that a neuron's samples are contiguous. Solver functions never write into these arrays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nettrim.programs import Program, group_sums
from nettrim.programs.penalties import Penalty

_NOTHING = 1e-14  # relative size under which an epsilon is zero
_ROUNDING = 3e-7  # of a float32 response, relative to the largest


@dataclass(frozen=True, eq=False)
class Design:
    """What depends on the inputs alone, shared by all blocks of rows: the samples in both layouts and ADMM's factor."""

    inputs: Tensor  # (samples, in), working precision
    inputs_t: Tensor  # (in, samples) float64
    total: Tensor  # (in, in) float64: X'X
    inverse: Tensor  # (in, in): (X'X + ratio I)^-1, working precision
    ratio: float
    dtype: torch.dtype  # of the program
    scale: float  # the program's inputs are `inputs` times this
    # how far inside the constraints answers are aimed, so that they survive the cast to the weights' dtype
    margin: float  # relative to eps
    hard_margin: float  # of bounds that must hold exactly, in units of a row's largest of 1 and |w|_2

    def forward(self, weight: Tensor) -> Tensor:
        """The products X w of float64 weights (rows, in), (rows, samples)."""
        return weight @ self.inputs_t

    def back(self, dual: Tensor) -> Tensor:
        """The products X'r of float64 multipliers (rows, samples), (rows, in)."""
        return dual @ self.inputs_t.T

    def rows(self, samples: Tensor) -> Tensor:
        """Some samples (index), (count, in) float64."""
        return self.inputs.index_select(0, samples).to(torch.float64)

    def restrict(self, samples: Tensor) -> Design:
        """Some samples (index) only; ADMM's factor stays that of all."""
        part = self.rows(samples)
        return replace(
            self, inputs=self.inputs.index_select(0, samples), inputs_t=part.T.contiguous(), total=part.T @ part
        )

    def gram_of(self, chosen: Tensor) -> Tensor:
        """X'X over the samples in the mask `chosen`; from the complement where that is smaller."""
        count = int(chosen.sum())
        if count <= len(chosen) // 2:
            part = self.rows(chosen.nonzero()[:, 0])
            return part.T @ part
        part = self.rows((~chosen).nonzero()[:, 0])
        return self.total - part.T @ part


@dataclass(frozen=True, eq=False)
class Problem:
    """The scaled program of some rows; see `make_problem`."""

    design: Design
    lower: Tensor  # (rows, samples), float64
    upper: Tensor  # (rows, samples)
    soft: Tensor | None  # (rows, samples) bool, entries counted in the ball; None when all are
    epsilon: Tensor | None  # (groups,) float64
    regularization: float | None
    groups: Tensor  # (rows,)
    penalty: Penalty
    response_scale: float

    @property
    def inputs(self) -> Tensor:
        return self.design.inputs

    @property
    def inputs_t(self) -> Tensor:
        return self.design.inputs_t

    @property
    def margin(self) -> float:
        return self.design.margin

    @property
    def hard_margin(self) -> float:
        return self.design.hard_margin

    @property
    def rows(self) -> int:
        return self.upper.shape[0]

    @property
    def group_count(self) -> int:
        return int(self.groups.max()) + 1

    @property
    def weight_scale(self) -> float:
        """Scaled weights times this are the program's."""
        return self.response_scale / self.design.scale

    @property
    def dual_scale(self) -> float:
        """Scaled multipliers times this are the program's."""
        return 1 / self.design.scale

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

    def restrict(self, samples: Tensor) -> Problem:
        """The problem on some samples (index) only."""
        return replace(
            self,
            design=self.design.restrict(samples),
            lower=self.lower[:, samples],
            upper=self.upper[:, samples],
            soft=None if self.soft is None else self.soft[:, samples],
        )

    def cast(self, weight: Tensor) -> Tensor:
        """Scaled weights as they will be after the cast to the program's dtype, in float64."""
        return weight.to(self.design.dtype).to(torch.float64)

    def group_sum(self, values: Tensor) -> Tensor:
        return group_sums(values, self.groups, self.group_count)

    def distance(self, product: Tensor) -> tuple[Tensor, Tensor]:
        """Signed distance of pre-activations (rows, samples) to the box: the part in the ball and the part that
        should vanish."""
        gap = product - product.clamp(self.lower, self.upper)
        if self.soft is None:
            return gap, torch.zeros((), dtype=gap.dtype, device=gap.device)
        return torch.where(self.soft, gap, 0.0), torch.where(self.soft, 0.0, gap)


def make_design(inputs: Tensor, precision: torch.dtype) -> Design:
    """Scale and transpose the samples, and factor X'X + ratio I once; `precision` is that of the large products.

    The ratio is small against the samples' sizes, so that z = X u rules ADMM's steps.
    """
    scale = _power(_largest(inputs))
    inputs_t = inputs.T.to(torch.float64).contiguous() / scale
    gram = inputs_t @ inputs_t.T
    ratio = 0.01 * float((inputs_t**2).sum(dim=0).max()) or 1.0
    damped = gram.clone()
    damped.diagonal().add_(ratio)
    single = inputs.dtype == torch.float32
    return Design(
        inputs=inputs_t.T.to(precision).contiguous(),
        inputs_t=inputs_t,
        total=gram,
        inverse=torch.cholesky_inverse(torch.linalg.cholesky(damped)).to(precision),
        ratio=ratio,
        dtype=inputs.dtype,
        scale=scale,
        margin=1e-6 if single else 1e-10,
        hard_margin=2e-7 if single else 1e-13,
    )


def make_problem(program: Program, design: Design | None = None) -> Problem:
    """Scale and transpose a program; without a `design` its large products are in the inputs' precision."""
    design = design or make_design(program.inputs, program.inputs.dtype)
    response_scale = _power(max(_largest(program.lower), _largest(program.upper)))
    lower = program.lower.T.to(torch.float64).contiguous() / response_scale
    upper = program.upper.T.to(torch.float64).contiguous() / response_scale
    exact = _exact(program).to(lower.device)
    if program.inputs.dtype == torch.float32 and bool(exact.any()):
        # float32 responses are known to rounding only: asking for them exactly would be infeasible
        slack = _ROUNDING * exact[:, None]
        lower, upper = lower - slack, upper + slack
    factor = response_scale / design.scale
    regularization = program.regularization
    if regularization is not None:
        regularization *= response_scale**2 / factor
    return Problem(
        design=design,
        lower=lower,
        upper=upper,
        soft=_soft(program, lower, upper),
        epsilon=_epsilon(program, response_scale),
        regularization=regularization,
        groups=program.groups.to(lower.device),
        penalty=program.penalty.to(lower.new_zeros(())).rescaled(factor),
        response_scale=response_scale,
    )


def _power(value: float) -> float:
    """The next power of two: dividing by it rounds nothing, so a cast of scaled weights is the scaled cast."""
    return 2.0 ** math.ceil(math.log2(value))


def _largest(array: Tensor) -> float:
    finite = array[torch.isfinite(array)]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return largest if largest > 0 else 1.0


def _exact(program: Program) -> Tensor:
    """Mask of the rows whose budget is zero to rounding, (rows,)."""
    if program.epsilon is None:
        return torch.zeros(program.shape[0], dtype=torch.bool)
    reach = max(_largest(program.lower), _largest(program.upper)) * program.samples**0.5
    return (program.epsilon.cpu() <= _NOTHING * reach)[program.groups.cpu()]


def _soft(program: Program, lower: Tensor, upper: Tensor) -> Tensor | None:
    """Which entries count in the ball; in a row with epsilon zero none do, each must be met exactly."""
    exact = _exact(program)
    if program.constraint == "distance" and not bool(exact.any()):
        return None
    soft = (
        (program.lower == program.upper).T
        if program.constraint == "strict"
        else torch.ones_like(lower, dtype=torch.bool)
    )
    return soft & ~exact.to(soft.device)[:, None]


def _epsilon(program: Program, response_scale: float) -> Tensor | None:
    """The scaled budgets, zero where they are zero to rounding."""
    if program.epsilon is None:
        return None
    exact = torch.zeros_like(program.epsilon, dtype=torch.bool)
    exact[program.groups.cpu()[_exact(program)]] = True
    return torch.where(exact, 0.0, program.epsilon.cpu() / response_scale).to(program.inputs.device)
