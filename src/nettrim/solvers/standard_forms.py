"""The papers' standard forms, written out: the quadratic program of one neuron (N eq. 12-14) and the quadratically
constrained one of a layer or budget group (A eq. 25-28).

Both state the strict constraint, whose squared distance is one quadratic. In the papers' letters P_m u <= c_m are the
hard entries, Q_m and q_m the quadratic of the others, and u = [I, -I] u~ with u~ = [u+; -u-] >= 0. Entry costs and
lower bounds (as a clipped activation has) are the only additions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nettrim.errors import InputError, should
from nettrim.programs import Program
from nettrim.programs.penalties import L1


@dataclass(frozen=True, eq=False)
class Tilde:
    """A form in u~ >= 0: linear'u~ (+ u~'quadratic u~ in a QP), rows u~ <= bounds; for a QCQP also 2 ball'u~."""

    quadratic: Tensor  # (2n, 2n) = [[1, -1], [-1, 1]] kron Q
    linear: Tensor  # (2n,)
    ball: Tensor  # (2n,) = [q; -q]
    rows: Tensor  # (constraints, 2n) = [P, -P]
    bounds: Tensor  # (constraints,)


@dataclass(frozen=True, eq=False)
class _Form:
    """What both forms share: the entries behind P, Q and q, and how to come back from a solution."""

    Q: Tensor  # (n, n)
    q: Tensor  # (n,)
    P: Tensor  # (constraints, n)
    c: Tensor  # (constraints,)
    costs: Tensor  # (n,)
    kept: Tensor  # (rows, in) bool: entries of the weight that u holds, in this order (not those of infinite cost)
    soft: Tensor  # (samples, rows) bool: entries counted in the quadratic
    sides: Tensor  # (constraints, 3): sample, row, and +1 for an upper bound, -1 for a lower one
    inputs: Tensor  # (samples, in) float64
    targets: Tensor  # (samples, rows): the point preimages where soft

    def tilde(self) -> Tilde:
        """The change of variables to u~ (N eq. 14, A eq. 28)."""
        sign = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=self.Q.dtype)
        ball = torch.cat([self.q, -self.q])
        return Tilde(
            quadratic=torch.kron(sign, self.Q),
            linear=torch.cat([self.costs, self.costs]) + self._linear_share * 2 * ball,
            ball=ball,
            rows=torch.cat([self.P, -self.P], dim=1),
            bounds=self.c,
        )

    @property
    def _linear_share(self) -> float:
        raise NotImplementedError

    def weight(self, u: Tensor) -> Tensor:
        """u put back into a weight (rows, in)."""
        weight = u.new_zeros(self.kept.shape)
        weight[self.kept] = u
        return weight

    def _multipliers(self, u: Tensor, nu: Tensor, slope: float) -> Tensor:
        """r (samples, rows): slope times the residual where the quadratic counts, -+ nu on hard entries."""
        residual = self.targets - self.inputs @ self.weight(u).T
        r = torch.where(self.soft, slope * residual, 0.0)
        sample, row, sign = self.sides.T
        return r.index_put((sample, row), -sign * nu, accumulate=True)


@dataclass(frozen=True, eq=False)
class QP(_Form):
    """min costs'|u| + u'Qu + 2 q'u subject to P u <= c: N eq. 12, its matrices N eq. 13."""

    regularization: float = 1.0

    @property
    def _linear_share(self) -> float:
        return 1.0

    def multipliers(self, u: Tensor, nu: Tensor, slope: float = 1.0) -> Tensor:
        """Our r (samples, 1) from the multipliers nu >= 0 of P u <= c."""
        return self._multipliers(u, nu, 2 * self.regularization * slope)


@dataclass(frozen=True, eq=False)
class QCQP(_Form):
    """min costs'|u| subject to u'Qu + 2 q'u <= room, P u <= c: A eq. 25, its matrices A eq. 26 and 27."""

    room: float = 0.0  # eps^2 - y'y

    @property
    def _linear_share(self) -> float:
        return 0.0

    def multipliers(self, u: Tensor, nu: Tensor, slope: float) -> Tensor:
        """Our r (samples, rows) from nu >= 0 of P u <= c and the multiplier `slope` >= 0 of the ball."""
        return self._multipliers(u, nu, 2 * slope)


def qp_of(program: Program, row: int) -> QP:
    """The quadratic program of one neuron of a regularised program (N eq. 11 as 12).

    Raises InputError for a penalty other than L1, a program without `regularization`, or one that counts half-lines.
    """
    if program.regularization is None:
        raise InputError(should("regularization", "given for form 'qp'", "an epsilon", "Use form 'qcqp' or 'direct'."))
    single = program.rows(torch.tensor([row]))
    lam = program.regularization
    shared, squares = _matrices(single, lam)
    del squares
    return QP(**shared, regularization=lam)


def qcqp_of(program: Program) -> QCQP:
    """The quadratically constrained program of one budget group (A eq. 24 as 25): all rows of `program` together.

    Raises InputError for a penalty other than L1, a program without `epsilon` or with several groups, or one that
    counts half-lines.
    """
    if program.epsilon is None:
        raise InputError(should("epsilon", "given for form 'qcqp'", "a regularization", "Use form 'qp' or 'direct'."))
    if program.group_count != 1:
        raise InputError(should("budget", "one group for form 'qcqp'", f"{program.group_count} groups"))
    shared, squares = _matrices(program, 1.0)
    return QCQP(**shared, room=float(program.epsilon[0]) ** 2 - squares)


def _matrices(program: Program, factor: float) -> tuple[dict[str, Tensor], float]:
    """Q, q, P, c and what goes with them; y'y of the soft entries."""
    lower, upper = program.lower.to(torch.float64), program.upper.to(torch.float64)
    soft = lower == upper
    if not isinstance(program.penalty, L1):
        raise InputError(
            should("penalty", "L1 for a standard form", type(program.penalty).__name__, "Use form 'direct'.")
        )
    if program.constraint == "distance" and not bool(soft.all()):
        cure = "Use form 'direct', which states every program."
        raise InputError(should("constraint", "'strict' for a standard form of this activation", "'distance'", cure))
    inputs = program.inputs.to(torch.float64)
    rows, columns = program.shape
    costs = program.penalty.full(inputs.new_zeros(rows, columns)).expand(rows, columns)
    kept = ~torch.isinf(costs)
    size = int(kept.sum())
    Q, q = inputs.new_zeros(size, size), inputs.new_zeros(size)
    P, c, sides = [], [], []
    start = 0
    for row in range(rows):
        part = inputs[:, kept[row]]
        span = slice(start, start + part.shape[1])
        start = span.stop
        counted = part[soft[:, row]]
        Q[span, span] = factor * counted.T @ counted
        q[span] = -factor * counted.T @ lower[soft[:, row], row]
        for bound, sign in ((upper[:, row], 1), (lower[:, row], -1)):
            samples = (~soft[:, row] & torch.isfinite(bound)).nonzero()[:, 0]
            block = inputs.new_zeros(len(samples), size)
            block[:, span] = sign * part[samples]
            P.append(block)
            c.append(sign * bound[samples])
            sides.append(torch.stack([samples, torch.full_like(samples, row), torch.full_like(samples, sign)], dim=1))
    shared = {
        "Q": Q,
        "q": q,
        "P": torch.cat(P),
        "c": torch.cat(c),
        "costs": costs[kept],
        "kept": kept,
        "soft": soft,
        "sides": torch.cat(sides),
        "inputs": inputs,
        "targets": torch.where(soft, lower, 0.0),
    }
    return shared, float((lower[soft] ** 2).sum())
