"""What a penalty is: a value, a proximal map, and its conjugate."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class Penalty(ABC):
    """A convex penalty on a weight (out, in), zero at zero.

    A penalty that is a norm answers `gauge`; the conjugate is then the indicator of gauge <= 1. One that is not
    answers `conjugate` as well. Rows of a penalty with `couples_rows` false can be solved apart.
    """

    couples_rows: bool = False
    is_norm: bool = True
    selects: bool = True  # whether its zeros are what it is for: a refit keeps these and nothing else of the answer

    @abstractmethod
    def value(self, weight: Tensor) -> Tensor:
        """The penalty of each row, (out,); a penalty that couples rows puts its total in row 0."""

    @abstractmethod
    def prox(self, weight: Tensor, step: Tensor) -> Tensor:
        """argmin_V step * penalty(V) + ||V - weight||^2 / 2, with one `step` a row, (out, 1).

        A penalty that couples rows may rely on all steps being equal.
        """

    @abstractmethod
    def gauge(self, dual: Tensor) -> Tensor:
        """The least s >= 0 with conjugate(dual / s) finite, one a row, (out,).

        Entries of `free` are left out. A penalty that couples rows repeats the same number.
        """

    def conjugate(self, dual: Tensor) -> Tensor:
        """sup_V <dual, V> - penalty(V) of each row, (out,), for a dual inside the domain (gauge <= 1)."""
        return dual.new_zeros(dual.shape[0])

    def free(self, shape: tuple[int, int]) -> Tensor | None:
        """Mask (out, in) of entries that cost nothing, or None; the dual must vanish there."""
        return None

    def rows(self, index: Tensor) -> Penalty:
        """The penalty of the rows in `index`."""
        return self

    def columns(self, index: Tensor) -> Penalty:
        """The penalty of the columns in `index`."""
        return self

    @abstractmethod
    def with_free_columns(self, columns: Tensor) -> Penalty:
        """The same penalty with the columns marked in the mask `columns` (in,) costing nothing."""

    def rescaled(self, factor: float) -> Penalty:
        """V -> penalty(factor V) / factor, which for a norm is the norm itself."""
        return self

    def to(self, like: Tensor) -> Penalty:
        """The same penalty with its arrays on the device and in the dtype of `like`."""
        return self
