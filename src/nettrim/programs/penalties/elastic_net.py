"""The elastic net: l1 plus a ridge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from nettrim.errors import InputError, should
from nettrim.programs.penalties.l1 import EntryCosts, soft_threshold


@dataclass(frozen=True, eq=False)
class ElasticNet(EntryCosts):
    """sum of costs * (|w| + ridge w^2 / 2), with ridge > 0.

    Its conjugate is sum of costs * max(|t|/cost - 1, 0)^2 / (2 ridge).
    """

    ridge: float = 1.0
    is_norm = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.ridge < float("inf"):
            raise InputError(should("ridge", "a finite number > 0", repr(self.ridge), "Use L1() for no ridge."))

    def _with(self, costs: Tensor) -> Self:
        return type(self)(costs=costs, ridge=self.ridge)

    def rescaled(self, factor: float) -> Self:
        return type(self)(costs=self.costs, ridge=self.ridge * factor)

    def value(self, weight: Tensor) -> Tensor:
        costs = self.full(weight)
        return torch.where(weight == 0, 0.0, (weight.abs() + self.ridge / 2 * weight**2) * costs).sum(dim=1)

    def prox(self, weight: Tensor, step: Tensor) -> Tensor:
        amount = self.full(weight) * step
        shrunk = soft_threshold(weight, amount) / (1 + self.ridge * amount)
        return torch.where(torch.isinf(amount), 0.0, shrunk)

    def gauge(self, dual: Tensor) -> Tensor:
        return dual.new_zeros(dual.shape[0])

    def conjugate(self, dual: Tensor) -> Tensor:
        costs = self.full(dual)
        # costs * max(|t|/cost - 1, 0)^2 written without dividing an infinity by an infinity
        excess = torch.where((costs == 0) | torch.isinf(costs), 0.0, (dual.abs() - costs).clamp(min=0))
        return (excess**2 / torch.where(costs == 0, 1.0, costs)).sum(dim=1) / (2 * self.ridge)
