"""Penalties on whole rows, columns or matrices: structured pruning and the norms of A section 6."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from nettrim.errors import InputError, should
from nettrim.programs.penalties.base import Penalty
from nettrim.programs.penalties.l1 import soft_threshold


@dataclass(frozen=True, eq=False)
class _Norm(Penalty):
    """A norm of the weight with some columns left out: subclasses see only the others."""

    free_columns: Tensor | None = None  # (in,) bool

    def free(self, shape: tuple[int, int]) -> Tensor | None:
        return None if self.free_columns is None else self.free_columns.expand(shape)

    def _replace(self, free_columns: Tensor | None) -> Self:
        return type(self)(free_columns=free_columns)

    def with_free_columns(self, columns: Tensor) -> Self:
        return self._replace(columns if self.free_columns is None else self.free_columns | columns)

    def columns(self, index: Tensor) -> Self:
        return (
            self if self.free_columns is None else self._replace(self.free_columns[index.to(self.free_columns.device)])
        )

    def to(self, like: Tensor) -> Self:
        return self if self.free_columns is None else self._replace(self.free_columns.to(like.device))

    def _penalised(self, array: Tensor) -> Tensor:
        return array if self.free_columns is None else torch.where(self.free_columns.to(array.device), 0.0, array)

    def value(self, weight: Tensor) -> Tensor:
        return self._value(self._penalised(weight))

    def prox(self, weight: Tensor, step: Tensor) -> Tensor:
        shrunk = self._prox(self._penalised(weight), step)
        return shrunk if self.free_columns is None else torch.where(self.free_columns.to(weight.device), weight, shrunk)

    def gauge(self, dual: Tensor) -> Tensor:
        return self._gauge(self._penalised(dual))

    @abstractmethod
    def _value(self, weight: Tensor) -> Tensor: ...
    @abstractmethod
    def _prox(self, weight: Tensor, step: Tensor) -> Tensor: ...
    @abstractmethod
    def _gauge(self, dual: Tensor) -> Tensor: ...


def _total(value: Tensor, rows: int) -> Tensor:
    """A matrix penalty's total, put in row 0."""
    spread = value.new_zeros(rows)
    spread[0] = value
    return spread


def _shrink(norms: Tensor, step: Tensor) -> Tensor:
    """The factor max(1 - step / norm, 0) of a group's proximal map."""
    return torch.where(norms > step, 1 - step / norms.clamp(min=torch.finfo(norms.dtype).tiny), 0.0)


class GroupL2Outputs(_Norm):
    """sum over neurons of ||row||_2: removes whole neurons."""

    def _value(self, weight: Tensor) -> Tensor:
        return weight.norm(dim=1)

    def _prox(self, weight: Tensor, step: Tensor) -> Tensor:
        return weight * _shrink(weight.norm(dim=1, keepdim=True), step)

    def _gauge(self, dual: Tensor) -> Tensor:
        return dual.norm(dim=1)


class GroupL2Inputs(_Norm):
    """sum over inputs of ||column||_2: removes whole inputs; couples the rows."""

    couples_rows = True

    def _value(self, weight: Tensor) -> Tensor:
        return _total(weight.norm(dim=0).sum(), weight.shape[0])

    def _prox(self, weight: Tensor, step: Tensor) -> Tensor:
        return weight * _shrink(weight.norm(dim=0), step.flatten()[0])

    def _gauge(self, dual: Tensor) -> Tensor:
        return dual.norm(dim=0).amax().expand(dual.shape[0])


class MaxNorm(_Norm):
    """sum over neurons of max |row|: keeps the largest weights small."""

    selects = False

    def _value(self, weight: Tensor) -> Tensor:
        return weight.abs().amax(dim=1)

    def _prox(self, weight: Tensor, step: Tensor) -> Tensor:
        return weight - _project_l1_ball(weight, step)

    def _gauge(self, dual: Tensor) -> Tensor:
        return dual.abs().sum(dim=1)


@dataclass(frozen=True, eq=False)
class L1Frobenius(_Norm):
    """||W||_1 + frobenius ||W||_F (A section 6), with frobenius > 0; couples the rows."""

    frobenius: float = 1.0
    couples_rows = True

    def __post_init__(self) -> None:
        if not 0 < self.frobenius < float("inf"):
            raise InputError(should("frobenius", "a finite number > 0", repr(self.frobenius), "Use L1() for none."))

    def _replace(self, free_columns: Tensor | None) -> Self:
        return type(self)(free_columns=free_columns, frobenius=self.frobenius)

    def _value(self, weight: Tensor) -> Tensor:
        return _total(weight.abs().sum() + self.frobenius * weight.norm(), weight.shape[0])

    def _prox(self, weight: Tensor, step: Tensor) -> Tensor:
        amount = step.flatten()[0]
        shrunk = soft_threshold(weight, amount)
        return shrunk * _shrink(shrunk.norm(), amount * self.frobenius)

    def _gauge(self, dual: Tensor) -> Tensor:
        """Least s with ||soft(dual / s, 1)||_F <= frobenius: bisection, ending on the safe side."""
        low, high = dual.new_zeros(()), dual.abs().amax() + dual.norm() / self.frobenius
        for _ in range(200):
            middle = (low + high) / 2
            inside = soft_threshold(dual, middle).norm() <= self.frobenius * middle
            low, high = torch.where(inside, low, middle), torch.where(inside, middle, high)
        return high.expand(dual.shape[0])


def _project_l1_ball(rows: Tensor, radius: Tensor) -> Tensor:
    """Each row's projection on the l1 ball of its radius (Duchi et al.: sort, find the threshold)."""
    magnitude, _ = rows.abs().sort(dim=1, descending=True)
    excess = magnitude.cumsum(dim=1) - radius
    count = torch.arange(1, rows.shape[1] + 1, device=rows.device, dtype=rows.dtype)
    kept = (magnitude * count > excess).sum(dim=1, keepdim=True).clamp(min=1)
    threshold = (excess.gather(1, kept - 1) / kept).clamp(min=0)
    return soft_threshold(rows, threshold)
