"""A program made ready for the solvers: scaled to unit size, neuron-major, in both precisions.

The solvers see X (samples, in) with entries and bounds up to one, scaled by powers of two, stored (rows, samples) so
that a neuron's samples are contiguous. Solver functions never write into these arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nettrim.programs import Program, group_sums
from nettrim.programs.penalties import L1, Penalty
from nettrim.solvers.design import Design, largest, make_design, power_of_two

_NOTHING = 1e-14  # relative size under which an epsilon is zero
ROUNDING = 3e-7  # of a float32 response, relative to the largest


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
    response_scale: Tensor  # (rows, 1), the same in rows of a budget group

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
    def weight_scale(self) -> Tensor:
        """Scaled weights times this (rows, 1) are the program's."""
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
            response_scale=self.response_scale[index],
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

    def inside(self, weight: Tensor, share: float) -> Problem:
        """The constraint shrunk by `share` times the margins that a cast of weights such as `weight` needs."""
        shrunk = self if self.epsilon is None else replace(self, epsilon=self.epsilon * (1 - share * self.margin))
        if self.soft is None:
            return shrunk
        width = torch.where(self.soft | torch.isinf(self.upper - self.lower), torch.inf, self.upper - self.lower)
        size = weight.norm(dim=1, keepdim=True).clamp(min=1.0)
        margin = torch.where(self.soft, 0.0, torch.minimum(share * self.hard_margin * size, 0.25 * width))
        return replace(shrunk, lower=self.lower + margin, upper=self.upper - margin)

    def group_sum(self, values: Tensor) -> Tensor:
        return group_sums(values, self.groups, self.group_count)

    def distance(self, product: Tensor) -> tuple[Tensor, Tensor]:
        """Signed distance of pre-activations (rows, samples) to the box: the part in the ball and the part that
        should vanish."""
        box = product.clamp(self.lower, self.upper)
        gap = torch.sub(product, box, out=box)
        if self.soft is None:
            return gap, torch.zeros((), dtype=gap.dtype, device=gap.device)
        soft = self.soft.to(gap.dtype).mul_(gap)  # several times as fast as a choice entry by entry
        return soft, gap.sub_(soft)


def make_problem(program: Program, design: Design | None = None) -> Problem:
    """Scale and transpose a program; without a `design` its large products are in the inputs' precision."""
    design = design or make_design(program.inputs, program.inputs.dtype)
    size = max(largest(program.lower), largest(program.upper))
    whole = power_of_two(size)
    groups = program.groups.to(program.inputs.device)
    lower, upper = (bounds.T.to(torch.float64).contiguous() for bounds in (program.lower, program.upper))
    scale = _response_scale(program, lower, upper, whole)
    lower, upper = lower / scale, upper / scale
    exact = _exact(program, size).to(lower.device)
    if program.inputs.dtype == torch.float32 and bool(exact.any()):
        # float32 responses are known to rounding only: asking for them exactly would be infeasible
        slack = torch.where(exact[:, None], ROUNDING * whole / scale, 0.0)
        lower, upper = lower - slack, upper + slack
    factor = whole / design.scale  # where it matters, all rows have the scale of the whole
    regularization = program.regularization
    if regularization is not None:
        regularization *= whole**2 / factor
    return Problem(
        design=design,
        lower=lower,
        upper=upper,
        soft=_soft(program, lower, exact),
        epsilon=_epsilon(program, scale, groups, exact),
        regularization=regularization,
        groups=groups,
        penalty=program.penalty.to(lower.new_zeros(())).rescaled(factor),
        response_scale=scale,
    )


def _response_scale(program: Program, lower: Tensor, upper: Tensor, whole: float) -> Tensor:
    """A power of two near the largest finite bound of each budget group, (rows, 1); that of all rows, `whole`, where
    they are coupled or where the penalty is no multiple of itself under scaling."""
    scale = lower.new_full((len(lower), 1), whole)
    if program.regularization is not None or not isinstance(program.penalty, L1):
        return scale
    sizes = torch.maximum(*(bound.abs().nan_to_num_(torch.nan, 0.0).amax(dim=1) for bound in (lower, upper)))
    groups = program.groups.to(lower.device)
    sizes = sizes.new_zeros(program.group_count).scatter_reduce(0, groups, sizes, "amax")[groups][:, None]
    return torch.where(sizes > 0, torch.exp2(torch.log2(sizes).ceil()), scale)


def _exact(program: Program, size: float) -> Tensor:
    """Mask of the rows whose budget is zero to rounding beside bounds of `size`, (rows,)."""
    if program.epsilon is None:
        return torch.zeros(program.shape[0], dtype=torch.bool)
    reach = size * program.samples**0.5
    return (program.epsilon.cpu() <= _NOTHING * reach)[program.groups.cpu()]


def _soft(program: Program, lower: Tensor, exact: Tensor) -> Tensor | None:
    """Which entries count in the ball; in the rows `exact` (mask) none do, each must be met exactly."""
    if program.constraint == "distance" and not bool(exact.any()):
        return None
    soft = (
        (program.lower == program.upper).T
        if program.constraint == "strict"
        else torch.ones_like(lower, dtype=torch.bool)
    )
    return soft & ~exact[:, None]


def _epsilon(program: Program, scale: Tensor, groups: Tensor, exact: Tensor) -> Tensor | None:
    """The budgets over the scale (rows, 1) of their groups, zero where they are of rows in the mask `exact`."""
    if program.epsilon is None:
        return None
    budgets = program.epsilon.to(scale.device)
    own = scale.new_ones(program.group_count).scatter(0, groups, scale[:, 0])
    nothing = torch.zeros_like(budgets, dtype=torch.bool)
    nothing[groups[exact]] = True
    return torch.where(nothing, 0.0, budgets / own)
