"""The lasso of one quadratic per row, by a primal-dual active set; see `polish` for the mathematics."""

from __future__ import annotations

import torch
from torch import Tensor

from nettrim.solvers.curvature import Curvature, extended, nothing_known
from nettrim.solvers.problem import Problem

_JOINING = 0.07  # hard samples that join in a pass, per weight of the support: more throw the point far away
_MOST_BINDING = 2  # hard samples per weight of the support, above which a row is given up
_LARGEST_SINGULAR = 100  # a singular system up to this size is solved by its pseudo-inverse, else its row is given up
_SPARE = 20  # weights that a support may have, while hard samples join, beyond twice those that bind


class RowModel:
    """|X_A u - b|^2 of one row on a working set of features, by its Gram matrix; see `curvature`."""

    def __init__(self, problem: Problem, known: Curvature | None = None) -> None:
        self.design = problem.design
        self.curvature = known or nothing_known(self.design)
        self.binding: Tensor | None = None
        self.costs = self.start = self.v = self.signs = self.nu = self.linear = self.gram.new_zeros(0)
        self.free = self.curvature.active
        self.constant = 0.0
        self.tiny = 0.0  # weights below are zero to rounding
        self.dirty = True
        self.strayed = False  # whether it kept a joint budget waiting in an earlier outer step
        self.hopeless = False  # more bounds bind than weights could meet: not a vertex that this method finds

    @property
    def features(self) -> Tensor:
        """The working set."""
        return self.curvature.features

    @property
    def gram(self) -> Tensor:
        return self.curvature.gram

    def update(self, wanted: Tensor, active: Tensor) -> None:
        """Extend the working set to the mask `wanted`, and let the samples in the mask `active` count."""
        self.curvature = extended(self.curvature, self.design, wanted, active)

    def begin(self, u: Tensor, signs: Tensor, gradient: Tensor, square: float, t: Tensor) -> None:
        """Start from u, where X_A' (b - X_A u) = `gradient` and |b - X_A u|^2 = `square`."""
        curved = self.gram @ u
        self.linear = gradient + curved
        self.constant = square + float(2 * (gradient @ u) + u @ curved)
        entering = (signs == 0) & (t.abs() > self.costs) & ~self.free
        self.signs = torch.where(entering, t.sign(), signs)
        self.signs[self.free] = 0.0
        self.start = self.v = u
        self.dirty = True
        self.nu = u.new_zeros(0)
        self.binding = None

    def bind(self, near: Tensor, held: Tensor, edge: Tensor, pull: Tensor, margin: float) -> None:
        """Ask X u = edge of the hard samples `near` (index) that are `held` (mask); the others may come to be held.

        `pull` is the sign each multiplier must have, 0 where both will do; a sample outside by more than `margin` is
        held.
        """
        self.near, self.edge, self.pull, self.margin = near, edge, pull, margin
        self.around = self.design.take(near, self.features).T
        self.began = held
        self.hold(held)

    def hold(self, held: Tensor) -> None:
        """Let the watched hard samples in the mask `held` bind, and no other."""
        self.held = held
        self.binding = self.near[held]
        self.hard = self.around[:, held]

    @property
    def state(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Weights, their signs, the multipliers of the hard samples that bind, and which do."""
        return self.v, self.signs, self.nu, None if self.binding is None else self.held

    @state.setter
    def state(self, values: tuple[Tensor, Tensor, Tensor, Tensor | None]) -> None:
        self.v, self.signs, self.nu, held = values
        if held is not None:
            self.hold(held)

    def solve(self) -> None:
        """v = v0 - tau v1 for the present signs, and the coefficients of the squared distance in tau."""
        support = ((self.signs != 0) | self.free).nonzero()[:, 0]
        self.support = support
        sides = self.linear.new_zeros(2, len(self.features))
        moved = sides
        self.nu0 = self.nu1 = self.linear.new_zeros(0 if self.binding is None else len(self.binding))
        quadratic, linear = [[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0]
        if len(support):
            rows = self.gram.index_select(0, support)
            gram = rows.index_select(1, support)
            here = self.linear[support]
            rhs = torch.stack([here, (self.costs * self.signs)[support]], dim=1)
            if self.binding is not None and len(self.binding):
                solution = self._saddle(gram, rhs, self.hard[support])
            else:
                solution = self._definite(gram, rhs)
            sides[:, support] = solution.T
            moved = solution.T @ rows
            quadratic, linear = (moved[:, support] @ solution).tolist(), (here @ solution).tolist()
        self.v0, self.v1 = sides
        self.q0, self.q1 = self.linear - moved[0], moved[1]
        if self.binding is not None and len(self.binding):
            self.q0 = self.q0 - self.hard @ self.nu0
            self.q1 = self.q1 + self.hard @ self.nu1
        self.coefficients = (
            max(self.constant - 2 * linear[0] + quadratic[0][0], 0.0),
            2 * linear[1] - 2 * quadratic[0][1],
            quadratic[1][1],
        )
        self.dirty = False

    def _definite(self, gram: Tensor, rhs: Tensor) -> Tensor:
        """The solution; `gram` may be overwritten."""
        gram.diagonal().mul_(1 + 1e-13).add_(1e-300)
        factor, info = torch.linalg.cholesky_ex(gram)
        if not int(info):
            return torch.cholesky_solve(rhs, factor)
        if len(gram) > _LARGEST_SINGULAR:  # more weights than the samples that count can tell apart
            self.hopeless = True
            return torch.zeros_like(rhs)
        values, vectors = torch.linalg.eigh(gram)
        inverse = torch.where(values > 1e-12 * values[-1], 1 / values, 0.0)
        return vectors @ (inverse[:, None] * (vectors.T @ rhs))

    def _saddle(self, gram: Tensor, rhs: Tensor, hard: Tensor) -> Tensor:
        count, size = hard.shape[1], len(gram)
        if count > _MOST_BINDING * (size + 1):
            self.hopeless = True
            self.nu0 = self.nu1 = gram.new_zeros(count)
            return torch.zeros_like(rhs)
        pressure = float((hard**2).sum()) / max(count, 1)
        scale = max(float(gram.diagonal().mean()), pressure) + 1e-300
        system = gram.new_zeros(size + count, size + count)
        system[:size, :size] = gram
        system[:size, size:], system[size:, :size] = hard, hard.T
        system.diagonal()[:size] += 1e-11 * scale
        system.diagonal()[size:] -= 1e-11 * pressure / scale
        right = gram.new_zeros(size + count, 2)
        right[:size] = rhs
        right[size:, 0] = self.edge[self.held]
        solution, _ = torch.linalg.solve_ex(system, right)
        if not bool(torch.isfinite(solution).all()):
            self.hopeless |= len(system) > _LARGEST_SINGULAR
            solution = torch.zeros_like(right) if self.hopeless else torch.linalg.pinv(system, hermitian=True) @ right
        self.nu0, self.nu1 = solution[size:, 0], solution[size:, 1]
        return solution[:size]

    @property
    def beyond(self) -> bool:
        """Whether the support is far larger than that of any vertex: the passes are lost.

        A vertex has at most one weight for each sample that counts or binds.
        """
        rank = self.curvature.count + int(self.free.sum())
        if self.binding is not None:
            rank += 2 * len(self.binding) + _SPARE
        return len(self.support) > rank + 1

    def take(self, tau: float) -> None:
        """The point and the hard multipliers at tau."""
        self.v = self.v0 - tau * self.v1
        self.nu = self.nu0 - tau * self.nu1

    def settle(self, tau: float, cautious: bool) -> None:
        """Take the point at tau and read the signs off it."""
        self.take(tau)
        limit = tau * self.costs
        q = self.q0 + tau * self.q1
        if self.binding is not None:
            self._rebind(cautious)
        flipped = self.v * self.signs < -self.tiny  # a weight that hard samples hold at zero keeps its sign
        excess = torch.where((self.signs == 0) & ~self.free, q.abs() - limit * (1 + 1e-9), -1.0)
        entering = excess > 0
        if cautious and bool(entering.any()):
            only = torch.zeros_like(entering)
            only[excess.argmax()] = True
            entering = only
        if bool(flipped.any()) or bool(entering.any()):
            self.signs = torch.where(flipped, 0.0, torch.where(entering, q.sign(), self.signs))
            self.v = torch.where(flipped, 0.0, self.v)
            self.dirty = True

    def _rebind(self, cautious: bool) -> None:
        """Let go of the hard samples whose multiplier has the wrong sign, and hold the worst of those outside.

        When cautious, one of the first or, where there are none, of the second.
        """
        wrong = -self.nu * self.pull[self.held]
        outside = torch.where(self.held, 0.0, (self.around.T @ self.v - self.edge) * self.pull - self.margin)
        count = max(1, int(_JOINING * len(self.support)))
        leaving = wrong > 0
        if cautious and bool(leaving.any()):
            leaving, count = wrong == wrong.max(), 0
        elif cautious:
            count = 1
        joining = outside.topk(min(count, len(outside)))
        held = self.held.index_fill(0, joining.indices[joining.values > 0], True)
        held[self.held.nonzero()[leaving, 0]] = False
        if bool((held == self.held).all()):
            return
        nu = torch.zeros_like(self.edge)
        nu[self.held] = self.nu
        self.hold(held)
        self.nu = nu[held]
        self.dirty = True
