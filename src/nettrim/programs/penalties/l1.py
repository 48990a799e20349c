"""The l1 penalty, with a cost per entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from nettrim.errors import InputError, should
from nettrim.programs.penalties.base import Penalty


def soft_threshold(weight: Tensor, amount: Tensor) -> Tensor:
    """sign(w) max(|w| - amount, 0); an infinite amount gives zero."""
    return weight - weight.clamp(min=-amount, max=amount)


@dataclass(frozen=True, eq=False)
class EntryCosts(Penalty):
    """Base of penalties that are sums over entries with a cost each: a number, (in,), or (out, in).

    Cost 0 leaves an entry unpenalised (a bias), infinity forbids it (a mask, a fixed support), and any other gives
    reweighted l1. Raises InputError for a negative or undefined cost.
    """

    costs: Tensor | float = 1.0

    def __post_init__(self) -> None:
        costs = torch.as_tensor(self.costs)
        if bool(torch.isnan(costs).any()) or bool((costs < 0).any()):
            raise InputError(should("costs", "numbers >= 0 (infinity forbids an entry)", repr(self.costs)))

    def _with(self, costs: Tensor) -> Self:
        return type(self)(costs=costs)

    def full(self, like: Tensor) -> Tensor:
        """The costs as an array that broadcasts against `like` (out, in), in its dtype."""
        costs = torch.as_tensor(self.costs, dtype=like.dtype, device=like.device)
        try:
            np.broadcast_shapes(costs.shape, like.shape)
        except ValueError:
            raise InputError(
                should("costs", f"broadcastable to {tuple(like.shape)}", f"shape {tuple(costs.shape)}")
            ) from None
        return costs

    def free(self, shape: tuple[int, int]) -> Tensor | None:
        costs = torch.as_tensor(self.costs)
        return (costs == 0).expand(shape) if bool((costs == 0).any()) else None

    def rows(self, index: Tensor) -> Self:
        costs = torch.as_tensor(self.costs)
        return self._with(costs[index.to(costs.device)]) if costs.ndim == 2 and costs.shape[0] > 1 else self

    def columns(self, index: Tensor) -> Self:
        costs = torch.as_tensor(self.costs)
        return self._with(costs[..., index.to(costs.device)]) if costs.ndim >= 1 and costs.shape[-1] > 1 else self

    def with_free_columns(self, columns: Tensor) -> Self:
        costs = torch.as_tensor(self.costs, dtype=torch.float64)
        return self._with(torch.where(columns.to(costs.device), 0.0, costs))

    def to(self, like: Tensor) -> Self:
        return self._with(torch.as_tensor(self.costs, dtype=like.dtype, device=like.device))


@dataclass(frozen=True, eq=False)
class L1(EntryCosts):
    """sum of costs * |weight| (N eq. 4), the default."""

    def value(self, weight: Tensor) -> Tensor:
        costs = self.full(weight)
        return torch.where(weight == 0, 0.0, weight.abs() * costs).sum(dim=1)

    def prox(self, weight: Tensor, step: Tensor) -> Tensor:
        return soft_threshold(weight, self.full(weight) * step)

    def gauge(self, dual: Tensor) -> Tensor:
        costs = self.full(dual)
        return torch.where(costs == 0, 0.0, dual.abs() / costs).amax(dim=1)
