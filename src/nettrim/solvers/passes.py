"""Inner passes over all rows of a polish: each row's lasso at a tau that all rows of its budget group share."""

from __future__ import annotations

from collections import Counter
from statistics import median_low

import torch
from torch import Tensor

from nettrim.solvers.homotopy import lead_rows, solve_rows
from nettrim.solvers.inner import Lassos, tau_at
from nettrim.solvers.problem import Problem

_PASSES = 30
_ROUGH_PASSES, _MOVING = 4, 0.5  # passes of a rough solution, ended while more than this share of the rows moves
_HALVINGS = 2  # of tau: more is for the next outer step, which sees other samples count
_CAUTION = 15  # passes after which only the worst feature enters, and one hard sample joins or leaves
_FLOWING = 6  # passes after which a shared tau waits, in the middle of where it was, until its rows have settled
_WAIT = 20  # passes that it waits, and that are granted besides


def solve_lassos(
    problem: Problem, lassos: Lassos, tau: Tensor, margin: Tensor, *, roughly: bool = False, waiting: bool = False
) -> None:
    """Solve every row's lasso at the tau where its group meets its budget, which is written into `tau`, (groups,).

    First by passes over all rows; rows that do not settle are solved once more from where they were, change by change.
    `margin` (groups,) is by how much budgets are aimed at from inside, relative. Rows that both fail on are hopeless.
    `roughly`: where most rows take long, their last points will do, as the next outer step sees other samples count.
    `waiting`: a tau that rows share waits at once, where it is, until they have settled.
    """
    before, groups = tau.clone(), problem.groups
    rows = _Passes(problem, lassos, tau, margin, waiting).run(roughly)
    if not len(rows):
        return
    lost = lassos.hopeless | lassos.beyond
    lassos.hopeless[rows] = False
    square = None if problem.epsilon is None else ((problem.epsilon * (1 - margin)) ** 2)[groups[rows]]
    there, found = solve_rows(lassos, rows, before[groups[rows]], square)
    lassos.hopeless[rows] = lost[rows] & ~found
    tau[groups[rows[found]]] = there[found]


class _Passes:
    """Passes over all rows: solve, choose tau per group, read signs; until nothing changes.

    A row that does not settle moves tau, and with it every row of its group. A shared tau waits after a while,
    therefore, until the rows of its group have settled, and those that do not are led, change by change, from where
    they were to every tau that comes.
    """

    def __init__(self, problem: Problem, lassos: Lassos, tau: Tensor, margin: Tensor, waiting: bool) -> None:
        self.problem, self.lassos, self.tau, self.margin = problem, lassos, tau, margin
        self.groups, self.before = problem.groups.tolist(), tau.clone()
        self.apart, self.shared = _apart_and_shared(problem)
        self.rows = list(range(lassos.rows))  # those still open
        self.lost: set[int] = set()  # groups that did not settle
        self.halved: Counter[int] = Counter()
        self.seen: list[list[float]] = []  # values of tau in the first passes
        # passes that a shared tau has waited; at once for a row that strayed, whose point would throw it off
        strayed = {self.groups[row] for row in lassos.strayed.nonzero()[:, 0].tolist()}
        self.waited = Counter(self.shared if waiting else strayed)
        self.led: dict[int, float] = {}  # rows that are led, and the tau at which each is

    def run(self, roughly: bool) -> Tensor:
        """Returns the rows (index) that did not settle and whose tau is their own. `roughly`: see `solve_lassos`."""
        lassos = self.lassos
        roughly &= not lassos.watching and not self.shared
        most = _MOVING * len(self.rows)
        for number in range(_PASSES + _WAIT * bool(self.shared)):
            open_groups = self._pass(number)
            self._wait(open_groups, number >= _FLOWING)
            hopeless, beyond = lassos.hopeless.tolist(), lassos.beyond.tolist()
            for row in self.rows:
                if hopeless[row] or (self.apart[row] and beyond[row]):
                    self.lost.add(self.groups[row])
            self._keep(open_groups - self.lost)
            if not self.rows:
                break
            if roughly and number + 1 == _ROUGH_PASSES and len(self.rows) > most:
                self._keep(set())
                break
        self.lost |= {self.groups[row] for row in self.rows}
        self._keep(set())
        return self._index([row for row in range(lassos.rows) if self.apart[row] and self.groups[row] in self.lost])

    def _pass(self, number: int) -> set[int]:
        """One pass; the groups in which something changed."""
        lassos, tau = self.lassos, self.tau
        dirty = lassos.dirty.tolist()
        fresh = [row for row in self.rows if dirty[row]]
        if fresh:
            lassos.solve(self._index(fresh))
        flowing = [row for row in self.rows if not self.waited[self.groups[row]]]
        short = choose_tau(self.problem, lassos.coefficients, tau, flowing, self.margin)
        if number < _FLOWING:
            self.seen.append(tau.tolist())
        elif number == _FLOWING:
            for group in self._open_shared():
                tau[group] = median_low(seen[group] for seen in self.seen)
        settled = [row for row in sorted({*fresh, *flowing}) if row not in self.led]
        open_groups = set()
        if settled:
            index = self._index(settled)
            lassos.settle(index, tau[self.problem.groups[index]], number >= _CAUTION)
            open_groups = {self.groups[row] for row in index[lassos.dirty[index]].tolist()}
        led = sorted(self.led.keys() & {*fresh, *flowing})
        if led:
            open_groups |= self._lead(led)
        for group in short - open_groups:  # settled and too far: a smaller tau lets the supports grow
            if self.halved[group] < _HALVINGS:
                self.halved[group] += 1
                tau[group] *= 0.5
                open_groups.add(group)
        return open_groups

    def _lead(self, led: list[int]) -> set[int]:
        """Lead rows to the present taus; the groups where a path bent on the way."""
        lassos, rows = self.lassos, self._index(led)
        here, to = self.tau.new_tensor([self.led[row] for row in led]), self.tau[self.problem.groups[rows]]
        pieces = lassos.coefficients[rows]
        lassos.hopeless[rows] |= ~lead_rows(lassos, rows, here, to)
        self.led.update(zip(led, to.tolist(), strict=True))
        bent = (lassos.coefficients[rows] != pieces).any(dim=1)
        return set(self.problem.groups[rows[bent]].tolist())

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
        lassos, problem = self.lassos, self.problem
        rows = self._index([row for row in self.rows if self.waited[self.groups[row]] > _WAIT])
        rows = rows[lassos.dirty[rows]]
        if len(rows):
            to = self.tau[problem.groups[rows]]
            self.led.update(zip(rows.tolist(), to.tolist(), strict=True))
            stuck = rows[~lead_rows(lassos, rows, self.before[problem.groups[rows]], to, anew=True)]
            lassos.hopeless[stuck] = lassos.strayed[stuck]
            lassos.dirty[stuck] = lassos.strayed[stuck] = True
            open_groups -= set(problem.groups[stuck].tolist())

    def _open_shared(self) -> set[int]:
        """The groups still open whose tau several rows share."""
        return self.shared & {self.groups[row] for row in self.rows}

    def _keep(self, open_groups: set[int]) -> None:
        """Go on with these groups; in others the last point stands, with the signs it has."""
        lassos = self.lassos
        ended = self._index([row for row in self.rows if self.groups[row] not in open_groups])
        ended = ended[lassos.dirty[ended]]
        lassos.signs[ended] = torch.where(lassos.free[ended], 0.0, lassos.v[ended].sign())
        self.rows = [row for row in self.rows if self.groups[row] in open_groups]

    def _index(self, rows: list[int]) -> Tensor:
        return torch.tensor(rows, dtype=torch.int64, device=self.tau.device)


def _apart_and_shared(problem: Problem) -> tuple[list[bool], set[int]]:
    """Which rows have a tau of their own, and the groups whose tau several rows share; neither where it does not
    matter."""
    if problem.epsilon is None:
        return [True] * problem.rows, set()
    alone, matters = torch.bincount(problem.groups) == 1, problem.epsilon > 0
    return (alone & matters)[problem.groups].tolist(), set((~alone & matters).nonzero()[:, 0].tolist())


def choose_tau(problem: Problem, coefficients: Tensor, tau: Tensor, rows: list[int], margin: Tensor) -> set[int]:
    """The scalar equation of each group: squared distance = (eps (1 - margin))^2, `margin` (groups,).

    `coefficients` (rows, 3) are those of the squared distance in tau, of which `rows` count. Returns the groups whose
    supports cannot come that near at any tau, which is left as it is.
    """
    if problem.regularization is not None:
        tau.fill_(1 / (2 * problem.regularization))
        return set()
    if not rows:
        return set()
    assert problem.epsilon is not None
    counted = torch.zeros_like(coefficients)
    counted[rows] = coefficients[rows]
    sums = torch.stack([problem.group_sum(values) for values in counted.T], dim=1)
    square = (problem.epsilon * (1 - margin)) ** 2
    touched = torch.zeros_like(tau, dtype=torch.bool)
    touched[problem.groups[rows]] = True
    reached = touched & (problem.epsilon > 0) & (square > sums[:, 0]) & (sums[:, 2] > 0)
    tau.copy_(torch.where(reached, tau_at(sums, square), tau))
    # where epsilon is zero and nothing counts in the ball, tau only scales the multipliers
    return set((touched & (problem.epsilon > 0) & ~reached).nonzero()[:, 0].tolist())
