"""One layer's convex program.

    minimise  penalty(U)   subject to   || dist(inputs U' + offset, [lower, upper]) ||_g <= eps_g   for every budget
    group g

with [lower, upper] the preimage of the responses (`constraint="distance"`), or with distance exactly zero
wherever that interval is not a point (`constraint="strict"`, the set C_eps of N eq. 3). The regularised form
(N eq. 11) has + regularization * sum of squared distances in the objective instead of the ball.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor

from nettrim.errors import DataError, InputError, should
from nettrim.programs.activations import Activation, get_activation
from nettrim.programs.budgets import Budget, budget_groups, split_epsilon
from nettrim.programs.penalties import L1, Penalty

_ROWS = 4096  # checked at a time

Constraint = Literal["distance", "strict"]


@dataclass(frozen=True, eq=False)
class Program:
    """A layer's program; build it with `Program.relu`, `.linear` or `.of`, which check their arguments.

    `lower` and `upper` already have the offset subtracted: they bound inputs @ weight.T itself.
    """

    inputs: Tensor  # (samples, in)
    lower: Tensor  # (samples, out), -inf on half-lines
    upper: Tensor  # (samples, out), +inf on half-lines
    epsilon: Tensor | None  # (groups,) float64, absolute; None for the regularised form
    groups: Tensor  # (out,) int64, the budget group of each row
    penalty: Penalty
    constraint: Constraint = "distance"
    regularization: float | None = None  # lambda of N eq. 11

    @classmethod
    def of(
        cls,
        activation: str | Activation,
        inputs: Tensor,
        responses: Tensor,
        epsilon: float | Tensor | None = None,
        constraint: Constraint = "distance",
        slack: Tensor | None = None,
        budget: Budget | Tensor = "layer",
        penalty: Penalty | None = None,
        *,
        offset: Tensor | None = None,
        regularization: float | None = None,
    ) -> Program:
        """The program of a layer with the named activation.

        `inputs` (samples, in) and `responses` (samples, out) float32 or float64; a bias is a column of ones in
        `inputs`. `epsilon` is absolute: one number for the whole layer (split by cluster sizes when `budget` makes
        several groups, A section 4.1) or one a group. `slack` (samples, out) replaces the upper bound zero where a
        ReLU is off (V of N eq. 3). `offset` (samples, out) is added to the pre-activation besides the weights.
        Exactly one of `epsilon` and `regularization` (lambda of N eq. 11, > 0).

        Raises DataError for wrong shapes or values that are not finite, InputError for the other arguments.
        """
        activation = get_activation(activation)
        inputs, responses = _matrix("inputs", inputs), _matrix("responses", responses)
        if inputs.shape[0] != responses.shape[0]:
            raise DataError(
                should("responses", f"of {inputs.shape[0]} samples, as `inputs`", f"shape {tuple(responses.shape)}")
            )
        if 0 in inputs.shape or 0 in responses.shape:
            raise DataError(
                should(
                    "inputs",
                    "of at least one sample, input and neuron",
                    f"inputs {tuple(inputs.shape)}, responses {tuple(responses.shape)}",
                )
            )
        if constraint not in ("distance", "strict"):
            raise InputError(should("constraint", "'distance' or 'strict'", repr(constraint)))
        groups = budget_groups(budget, responses.shape[1])
        rounded = responses if activation.saturates else responses.to(inputs.dtype)
        lower, upper = (bound.to(inputs.dtype) for bound in activation.preimage(rounded))
        if slack is not None:
            slack = _like("slack", slack, responses, infinite=True).to(inputs)
            upper = torch.where(torch.isinf(lower), slack, upper)
        if offset is not None:
            offset = _like("offset", offset, responses).to(inputs)
            lower, upper = lower - offset, upper - offset
        if not (penalty is None or isinstance(penalty, Penalty)):
            raise InputError(should("penalty", "a nettrim penalty such as nettrim.L1()", repr(penalty)))
        penalty = penalty or L1()
        penalty.value(inputs.new_zeros(responses.shape[1], inputs.shape[1]))  # shapes of its costs are checked here
        if (epsilon is None) == (regularization is None):
            raise InputError(
                should("epsilon", "given, or `regularization`, but not both", f"{epsilon!r} and {regularization!r}")
            )
        if regularization is not None and not (0 < regularization < math.inf):
            raise InputError(should("regularization", "a finite number > 0", repr(regularization)))
        return cls(
            inputs=inputs,
            lower=lower,
            upper=upper,
            epsilon=None if epsilon is None else split_epsilon(epsilon, groups),
            groups=groups,
            penalty=penalty,
            constraint=constraint,
            regularization=regularization,
        )

    @classmethod
    def relu(
        cls,
        inputs: Tensor,
        responses: Tensor,
        epsilon: float | Tensor | None = None,
        constraint: Constraint = "distance",
        slack: Tensor | None = None,
        budget: Budget | Tensor = "layer",
        penalty: Penalty | None = None,
        *,
        offset: Tensor | None = None,
        regularization: float | None = None,
    ) -> Program:
        """The program of a ReLU layer (N eq. 4; with `slack` N eq. 6). Arguments as in `of`; responses must be >= 0."""
        if isinstance(responses, Tensor) and bool((responses < 0).any()):
            raise DataError(
                should(
                    "responses",
                    "at least 0, as a ReLU answers",
                    f"a minimum of {float(responses.min()):g}",
                    "Apply the ReLU first, or use Program.linear.",
                )
            )
        return cls.of(
            "relu",
            inputs,
            responses,
            epsilon,
            constraint,
            slack,
            budget,
            penalty,
            offset=offset,
            regularization=regularization,
        )

    @classmethod
    def linear(
        cls,
        inputs: Tensor,
        responses: Tensor,
        epsilon: float | Tensor | None = None,
        constraint: Constraint = "distance",
        slack: None = None,
        budget: Budget | Tensor = "layer",
        penalty: Penalty | None = None,
        *,
        offset: Tensor | None = None,
        regularization: float | None = None,
    ) -> Program:
        """The program of a layer without activation (A eq. 17). Arguments as in `of`."""
        return cls.of(
            "linear",
            inputs,
            responses,
            epsilon,
            constraint,
            slack,
            budget,
            penalty,
            offset=offset,
            regularization=regularization,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in), the shape of the weight."""
        return self.upper.shape[1], self.inputs.shape[1]

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return self.inputs.shape[0]

    @property
    def group_count(self) -> int:
        """How many budget groups there are."""
        return int(self.groups.max()) + 1

    def hard(self) -> Tensor | None:
        """Mask (samples, out) of the entries whose distance must be exactly zero, None when there are none."""
        return self.lower != self.upper if self.constraint == "strict" else None

    def rows(self, index: Tensor) -> Program:
        """The program of the rows in `index`; every budget group should be whole or absent in it."""
        kept, groups = torch.unique(self.groups[index.cpu()], return_inverse=True)
        return replace(
            self,
            lower=self.lower[:, index],
            upper=self.upper[:, index],
            epsilon=None if self.epsilon is None else self.epsilon[kept],
            groups=groups,
            penalty=self.penalty.rows(index),
        )

    def to(self, device: torch.device) -> Program:
        """The same program on another device; group indices stay on the CPU."""
        if device == self.inputs.device:
            return self
        return replace(
            self,
            inputs=self.inputs.to(device),
            lower=self.lower.to(device),
            upper=self.upper.to(device),
            penalty=self.penalty.to(self.inputs.new_zeros((), dtype=torch.float64, device=device)),
        )


def _matrix(name: str, array: Tensor) -> Tensor:
    if not isinstance(array, Tensor) or array.ndim != 2:
        got = f"shape {tuple(array.shape)}" if isinstance(array, Tensor) else type(array).__name__
        raise DataError(should(name, "a tensor (samples, features)", got))
    if not array.is_floating_point():
        raise DataError(should(name, "of a floating dtype", str(array.dtype), "Convert it with .float()."))
    array = array.detach()
    if array.dtype not in (torch.float32, torch.float64):
        array = array.float()
    for start in range(0, len(array), _ROWS):  # in pieces, as it may be larger than memory
        finite = torch.isfinite(array[start : start + _ROWS])
        if not bool(finite.all()):
            row, column = cast("list[int]", (~finite).nonzero()[0].tolist())
            row += start
            raise DataError(should(name, "finite", f"{float(array[row, column])} at {[row, column]}"))
    return array


def _like(name: str, array: Tensor, responses: Tensor, infinite: bool = False) -> Tensor:
    if not isinstance(array, Tensor) or array.shape != responses.shape:
        got = f"shape {tuple(array.shape)}" if isinstance(array, Tensor) else type(array).__name__
        raise DataError(should(name, f"of the responses' shape {tuple(responses.shape)}", got))
    if bool(torch.isnan(array).any()) or not (infinite or bool(torch.isfinite(array).all())):
        raise DataError(should(name, "free of NaN" if infinite else "finite", "values that are not"))
    return array.detach()
