"""Inner passes over all rows of a polish: each row's lasso at a tau that all rows of its budget group share."""

from __future__ import annotations

from collections import Counter
from statistics import median_low

import torch
from torch import Tensor

from nettrim.solvers.homotopy import lead_row, solve_row
from nettrim.solvers.inner import RowModel
from nettrim.solvers.problem import Problem

_PASSES = 40
_HALVINGS = 2  # of tau: more is for the next outer step, which sees other samples count
_CAUTION = 30  # passes after which only the worst feature enters, and one hard sample joins or leaves
_FLOWING = 6  # passes after which a shared tau waits, in the middle of where it was, until its rows have settled
_WAIT = 20  # passes that it waits, and that are granted besides


def solve_models(problem: Problem, models: dict[int, RowModel], tau: Tensor, margin: Tensor) -> None:
    """Solve every row's lasso at the tau where its group meets its budget, which is written into `tau`, (groups,).

    First by passes over all rows; rows that do not settle are solved once more from where they were, change by change.
    `margin` (groups,) is by how much budgets are aimed at from inside, relative. Rows that both fail on are hopeless.
    """
    before = tau.tolist()
    for row in _Passes(problem, models, tau, margin).run():
        model, group = models[row], int(problem.groups[row])
        lost = model.hopeless or model.beyond
        square = None if problem.epsilon is None else float((problem.epsilon[group] * (1 - margin[group])) ** 2)
        model.hopeless = False
        there = solve_row(model, model.start, before[group], square)
        if there is None:
            model.hopeless = lost
        else:
            tau[group] = there


class _Passes:
    """Passes over all rows: solve, choose tau per group, read signs; until nothing changes.

    A row that does not settle moves tau, and with it every row of its group. A shared tau waits after a while,
    therefore, until the rows of its group have settled, and those that do not are led, change by change, from where
    they were to every tau that comes.
    """

    def __init__(self, problem: Problem, models: dict[int, RowModel], tau: Tensor, margin: Tensor) -> None:
        self.problem, self.models, self.tau, self.margin = problem, models, tau, margin
        self.groups, self.before = problem.groups.tolist(), tau.tolist()
        self.apart, self.shared = _apart_and_shared(problem)
        self.rows = list(models)  # those still open
        self.lost: set[int] = set()  # groups that did not settle
        self.halved: Counter[int] = Counter()
        self.seen: list[list[float]] = []  # values of tau in the first passes
        # passes that a shared tau has waited; at once for a row that strayed, whose point would throw it off
        self.waited = Counter({self.groups[row] for row, model in models.items() if model.strayed})
        self.led: dict[int, float] = {}  # rows that are led, and the tau at which each is

    def run(self) -> list[int]:
        """Returns the rows that did not settle and whose tau is their own."""
        for number in range(_PASSES + _WAIT * bool(self.shared)):
            open_groups = self._pass(number)
            self._wait(open_groups, number >= _FLOWING)
            for row in self.rows:
                if self.models[row].hopeless or (self.apart[row] and self.models[row].beyond):
                    self.lost.add(self.groups[row])
            self._keep(open_groups - self.lost)
            if not self.rows:
                break
        self.lost |= {self.groups[row] for row in self.rows}
        self._keep(set())
        return [row for row in self.models if self.apart[row] and self.groups[row] in self.lost]

    def _pass(self, number: int) -> set[int]:
        """One pass; the groups in which something changed."""
        models, tau = self.models, self.tau
        fresh = {row for row in self.rows if models[row].dirty}
        for row in fresh:
            models[row].solve()
        flowing = [row for row in self.rows if not self.waited[self.groups[row]]]
        short = choose_tau(self.problem, models, tau, flowing, self.margin)
        values = tau.tolist()
        if number < _FLOWING:
            self.seen.append(values)
        elif number == _FLOWING:
            for group in self._open_shared():
                values[group] = tau[group] = median_low(seen[group] for seen in self.seen)
        open_groups = set()
        for row in fresh.union(flowing):
            model, group = models[row], self.groups[row]
            piece = model.coefficients
            if row in self.led:
                model.hopeless |= not lead_row(model, self.led[row], values[group])
                self.led[row] = values[group]
            else:
                model.settle(values[group], number >= _CAUTION)
            if model.dirty or model.coefficients is not piece:
                open_groups.add(group)
        for group in short - open_groups:  # settled and too far: a smaller tau lets the supports grow
            if self.halved[group] < _HALVINGS:
                self.halved[group] += 1
                tau[group] *= 0.5
                open_groups.add(group)
        return open_groups

    def _wait(self, open_groups: set[int], late: bool) -> None:
        """Count how long the shared tau of each group has waited; lead what it waits for too long. `late`: whether
        those should wait that do not yet.

        A group that has settled stays open, as tau goes on from there. One with a row that cannot be led is taken out
        of `open_groups`: its last point stands, as the next outer step may do better; the second time it is hopeless.
        """
        for group in self._open_shared():
            if group in open_groups:
                self.waited[group] += late or self.waited[group] > 0
            elif self.waited[group]:
                self.waited[group] = 0
                open_groups.add(group)
        for row in self.rows:
            group = self.groups[row]
            if self.models[row].dirty and self.waited[group] > _WAIT:
                model = self.models[row]
                self.led[row] = float(self.tau[group])
                if not lead_row(model, self.before[group], self.led[row], model.start):
                    model.dirty, model.strayed, model.hopeless = True, True, model.strayed
                    open_groups.discard(group)

    def _open_shared(self) -> set[int]:
        """The groups still open whose tau several rows share."""
        return self.shared & {self.groups[row] for row in self.rows}

    def _keep(self, open_groups: set[int]) -> None:
        """Go on with these groups; in others the last point stands, with the signs it has."""
        for row in self.rows:
            model = self.models[row]
            if self.groups[row] not in open_groups and model.dirty:
                model.signs = torch.where(model.free, 0.0, model.v.sign())
        self.rows = [row for row in self.rows if self.groups[row] in open_groups]


def _apart_and_shared(problem: Problem) -> tuple[list[bool], set[int]]:
    """Which rows have a tau of their own, and the groups whose tau several rows share; neither where it does not
    matter."""
    if problem.epsilon is None:
        return [True] * problem.rows, set()
    alone, matters = torch.bincount(problem.groups) == 1, problem.epsilon > 0
    return (alone & matters)[problem.groups].tolist(), set((~alone & matters).nonzero()[:, 0].tolist())


def choose_tau(problem: Problem, models: dict[int, RowModel], tau: Tensor, rows: list[int], margin: Tensor) -> set[int]:
    """The scalar equation of each group: squared distance = (eps (1 - margin))^2, `margin` (groups,).

    Returns the groups whose supports cannot come that near at any tau, which is left as it is.
    """
    if problem.regularization is not None:
        tau.fill_(1 / (2 * problem.regularization))
        return set()
    if not rows:
        return set()
    assert problem.epsilon is not None
    sums = torch.zeros(3, problem.rows, dtype=torch.float64)
    sums[:, rows] = torch.tensor([models[row].coefficients for row in rows], dtype=torch.float64).T
    c0, c1, c2 = (problem.group_sum(values.to(tau.device)) for values in sums)
    room = (problem.epsilon * (1 - margin)) ** 2 - c0
    root = (c1**2 / 4 + c2 * room).clamp(min=0).sqrt() - c1 / 2
    touched = torch.zeros_like(tau, dtype=torch.bool)
    touched[problem.groups[rows]] = True
    reached = touched & (problem.epsilon > 0) & (room > 0) & (c2 > 0)
    tau.copy_(torch.where(reached, root / c2.clamp(min=1e-300), tau))
    # where epsilon is zero and nothing counts in the ball, tau only scales the multipliers
    return set((touched & (problem.epsilon > 0) & ~reached).nonzero()[:, 0].tolist())
