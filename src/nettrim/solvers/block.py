"""The loop over one block of rows: ADMM, then a polish of the candidate, until every budget group is certified."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nettrim.certificates.program import lower_bound
from nettrim.programs.penalties import L1
from nettrim.solvers import admm
from nettrim.solvers.apart import solve_apart
from nettrim.solvers.curvature import Curvatures
from nettrim.solvers.finish import Ending
from nettrim.solvers.guess import Guess, binding
from nettrim.solvers.interior import Central, crossover, solve_interior
from nettrim.solvers.judge import AIM, Polished, relative_gap
from nettrim.solvers.lp import lp_available, solve_rows
from nettrim.solvers.plain import as_program, plain_candidate
from nettrim.solvers.polish import FAR_STEPS, polish
from nettrim.solvers.problem import Problem
from nettrim.solvers.repair import is_feasible, make_feasible, repair

# ADMM iterations after which a candidate is polished; later ones are 1.6 times apart. Bounds that must hold take ADMM
# longer to find.
_CHECKS = (60, 110, 180, 280)
_STRICT_CHECKS = (80, 140, 230, 400)
_DOUBT = 3  # the check from which a group without any feasible point is tested for infeasibility
_INTERIOR_CHECKS = 1  # checks after which groups still open leave ADMM for the interior-point method
_CLOSING = 0.0625  # share of the open groups that a check closes if the next one, too, is worth its iterations: ...
_WIDE = 64  # ... from so many inputs on, where a central path costs many times as much
_EXACT_CHECKS = 1  # checks after which an exact group goes to the linear-programming solver
_STRAGGLING = 0.125  # share of groups with hard bounds which, left by the first check, leave ADMM at once
_LAST = 2  # groups likewise, hard or not: an iteration reads all inputs for one group as for twenty
_FEW = 0.25  # share of groups that a guess may leave open without ADMM starting anew
_LANDING_STEPS = 5  # of the polish from the end of a central path, which is near
_NEAR = 1e-2  # gap of a group whose multiplier the polish has found
_MANY = 0.5  # share of a group's rows which, strayed at the first check, are too many to be solved one by one
_PRESSED = 1e-2  # of a row's largest multiplier: smaller ones of ADMM's are noise


@dataclass(frozen=True)
class Outcome:
    """A block's answer in scaled units."""

    weight: Tensor  # (rows, in)
    dual: Tensor  # (rows, samples)
    ending: list[Ending]  # per group
    iterations: int
    gemms: float


def solve_block(
    problem: Problem,
    tolerance: float,
    initial: Tensor | None,
    max_iterations: int,
    curvatures: Curvatures,
    guess: Guess | None = None,
) -> Outcome:
    """Solve all budget groups of `problem` (at least one row each); `initial` (rows, in) is scaled and feasible.

    `guess` is what a program like this one ended with: groups that the polish certifies from there need no more.
    `curvatures`: what is known of the rows' Gram matrices; what is found out is left there.
    """
    block = _Block(problem, tolerance, initial, curvatures)
    check, gemms, done = 0, 0.0, 0
    if guess is not None and isinstance(problem.penalty, L1):
        gemms += block.start_from(guess)
    while bool(block.open.any()):
        target = min(_next_check(check, strict=problem.soft is not None), max_iterations)
        while block.state.iteration < target:
            block.state.step()
        share = len(block.rows) / problem.rows
        before = int(block.open.sum())
        steps = block.improve(last=target == max_iterations)
        gemms += (2 * (target - done) + 4 * steps) * share
        done = target
        if check >= _EXACT_CHECKS:
            block.solve_exact()
        if check <= _INTERIOR_CHECKS:
            gemms += block.take_apart(early=check == 0)
        closed = before - int(block.open.sum())
        wide = problem.design.width >= _WIDE
        another = check < _DOUBT and target < max_iterations
        promising = another and wide and closed >= _CLOSING * before
        few = max(_LAST, _STRAGGLING * before) if problem.soft is not None else _LAST
        straggling = wide and before - closed <= few
        if straggling or (check >= _INTERIOR_CHECKS and not promising):
            gemms += block.follow_path()
        if check >= _DOUBT or target == max_iterations:
            block.repair()
            block.state.retry(check - _DOUBT)
        if target == max_iterations:
            break
        block.narrow()
        check += 1
    block.fall_back()
    return Outcome(block.weight, block.dual, block.ending, block.iterations, gemms)


class _Block:
    """The best answer so far of every group, and ADMM's state of those still open."""

    def __init__(self, problem: Problem, tolerance: float, initial: Tensor | None, curvatures: Curvatures) -> None:
        count = problem.group_count
        self.problem, self.tolerance, self.initial, self.curvatures = problem, tolerance, initial, curvatures
        self.weight = problem.lower.new_zeros(problem.rows, problem.design.width)
        self.dual = torch.zeros_like(problem.lower)
        self.objective = problem.lower.new_full((count,), torch.inf)
        self.bound = problem.lower.new_zeros(count)
        self.open = torch.ones(count, dtype=torch.bool)
        self.followed = torch.zeros(count, dtype=torch.bool)  # groups that had their turn on the central path
        self.ending = [Ending.SOLVED] * count
        self._state: admm.Admm | None = None
        self.seen: Guess | None = None  # where the last polish of an l1 problem began, and the tau at which it ended
        self.strayed: Tensor | None = None  # the rows that strayed there, (rows,) bool
        self.rows = torch.arange(problem.rows)  # rows of the block that the state holds, or will
        self.groups = torch.arange(count)  # groups of the block that the state holds

    @property
    def state(self) -> admm.Admm:
        """ADMM's, which begins with the rows still open when it is first asked for."""
        if self._state is None:
            whole = len(self.rows) == self.problem.rows
            problem = self.problem if whole else self.problem.select(self.rows.to(self.problem.groups.device))
            self._state = admm.start(problem)
        return self._state

    @property
    def iterations(self) -> int:
        return 0 if self._state is None else self._state.iteration

    def start_from(self, guess: Guess) -> float:
        """Polish a guess made elsewhere; returns the work in products of the inputs with all weights."""
        found = polish(self.problem, guess, self.tolerance, FAR_STEPS, self.curvatures)
        self._see(replace(guess, product=None, gradient=None, pull=None), found)
        self._keep(found, self.rows, self.groups)
        self._close()
        gemms = 4.0 * found.steps + self.take_apart()
        if int(self.open.sum()) <= _FEW * len(self.open):
            gemms += self.follow_path()
        self.narrow()
        return gemms

    def improve(self, last: bool) -> int:
        """Judge the present iterate, keep what is better of weights and of multipliers; returns the polish's steps."""
        problem, dual = self.state.problem, self.state.multipliers().to(torch.float64)
        if isinstance(problem.penalty, L1):
            guess = _guess(self.state, dual)
            known = self.curvatures.of(self.rows)
            candidate = polish(problem, guess, self.tolerance, curvatures=known, waiting=True)
            assert candidate.tau is not None
            # where it failed its tau may be anywhere, and that of ADMM is near
            self._see(guess, replace(candidate, tau=torch.where(candidate.gap <= _NEAR, candidate.tau, guess.tau)))
        else:
            candidate = plain_candidate(problem, self.state.w.to(torch.float64), dual, self.tolerance, last)
        self._keep(candidate, self.rows, self.groups)
        self._close()
        still = self.open[self.groups]
        if isinstance(problem.penalty, L1) and bool(still.any()):
            # ADMM's own multipliers are worth a look: degenerate vertices defeat the polish
            bound = _proved(problem, dual)
            unmoved = torch.full_like(candidate.objective, torch.inf)
            self._keep(Polished(candidate.weight, unmoved, dual, bound, 0), self.rows, self.groups)
            self._close()
        return candidate.steps

    def _keep(self, found: Polished, rows: Tensor, groups: Tensor) -> None:
        """Keep per group the least objective and the largest bound; `found` is of these rows and groups of the
        block."""
        local = torch.searchsorted(groups, self.problem.groups.cpu()[rows])
        better = (found.objective < self.objective[groups]).cpu()
        sound = torch.isfinite(found.dual).all(dim=1).cpu()
        tighter = (found.bound > self.bound[groups]).cpu()
        tighter[local[~sound]] = False
        self.weight[rows[better[local]]] = found.weight[better[local]]
        self.dual[rows[tighter[local]]] = found.dual[tighter[local]]
        self.objective[groups[better]] = found.objective[better]
        self.bound[groups[tighter]] = found.bound[tighter]

    def _close(self) -> None:
        self.open &= relative_gap(self.objective, self.bound).cpu() > AIM * self.tolerance

    def follow_path(self) -> float:
        """Give the open groups of an l1 problem to the interior-point method, once, and land on the vertex it shows.

        Returns the work in products of the inputs with all of the block's weights.
        """
        wanted = self.open & ~self.followed
        if self.problem.epsilon is not None:
            wanted &= self.problem.epsilon.cpu() > 0
        if self.seen is None or not bool(wanted.any()):
            return 0.0
        self.followed |= wanted
        rows, groups = wanted[self.problem.groups.cpu()].nonzero()[:, 0], wanted.nonzero()[:, 0]
        problem = self.problem.select(rows.to(self.problem.groups.device))
        near = self.seen.u[torch.searchsorted(self.rows, rows)]
        central = solve_interior(problem, self.tolerance, near)
        found, guess = central.found, central.guess
        self._keep(found, rows, groups)
        self._close()
        # a vertex is worth the polish where the path's own weights are not certified or not as sparse
        more = problem.group_sum(((found.weight != 0).sum(dim=1) - (guess.u != 0).sum(dim=1)).to(torch.float64))
        lacking = (self.open[groups] | (more.cpu() > 0)).nonzero()[:, 0]
        if len(lacking):
            self._land(problem, central, rows, groups, lacking)
        return central.gemms * len(rows) / self.problem.rows

    def take_apart(self, *, early: bool = False) -> float:
        """Solve the open groups of several rows of an l1 problem row by row; returns the work, as `follow_path`.

        `early`: those of which many rows strayed are left to further iterations, which bring all of them nearer.
        """
        epsilon = self.problem.epsilon
        if epsilon is None or self.seen is None:
            return 0.0
        several = torch.bincount(self.problem.groups.cpu(), minlength=len(self.open)) > 1
        gemms = 0.0
        for group in (self.open & several & (epsilon.cpu() > 0)).nonzero()[:, 0].tolist():
            rows = (self.problem.groups == group).nonzero()[:, 0].cpu()
            part, known = self.problem.select(rows), self.curvatures.of(rows)
            strayed = None if self.strayed is None else self.strayed[torch.searchsorted(self.rows, rows)]
            if early and strayed is not None and int(strayed.sum()) > _MANY * len(rows):
                continue
            found, work = solve_apart(part, self._seen(rows, group), self.tolerance, known, strayed)
            self._keep(found, rows, torch.tensor([group]))
            gemms += work * len(rows) / self.problem.rows
        self._close()
        return gemms

    def _land(self, problem: Problem, central: Central, rows: Tensor, groups: Tensor, wanted: Tensor) -> None:
        """Polish the vertices that the path shows for the groups `wanted` of `problem`, whose rows and groups in the
        block are given."""
        guess = central.guess
        local = torch.isin(problem.groups.cpu(), wanted).nonzero()[:, 0]
        there = local.to(problem.groups.device)
        part = problem.select(there)
        near = guess.select(there, wanted.to(guess.tau.device))
        vertex = polish(part, near, self.tolerance, _LANDING_STEPS, self.curvatures.of(rows[local]))
        block_groups = groups[wanted]
        bound = torch.maximum(vertex.bound, self.bound[block_groups])
        limit = bound / (1 - AIM * self.tolerance)
        weight, objective = vertex.weight.clone(), vertex.objective.clone()
        for index in (objective > limit).nonzero()[:, 0].tolist():  # the polish found no vertex
            place = (part.groups == index).nonzero()[:, 0]
            points = _sparse_points(part.select(place), near.u[place], central.found, there[place], self.tolerance)
            for point in points:
                value = part.penalty.rows(place).value(point).sum()
                if value <= limit[index]:
                    weight[place], objective[index] = point, value
                    break
        landed = objective <= limit
        vertex = replace(vertex, weight=weight, objective=objective)
        # a vertex takes the place of the path's own weights, some of them tiny, though these may cost a little less
        self.objective[block_groups] = torch.where(landed, torch.inf, self.objective[block_groups])
        self._keep(vertex, rows[local], block_groups)
        self._close()

    def _see(self, guess: Guess, found: Polished) -> None:
        """Remember where a polish began, and the tau at which it ended."""
        self.seen = guess if found.tau is None else replace(guess, tau=found.tau)
        self.strayed = found.strayed

    def _seen(self, rows: Tensor, group: int) -> Guess:
        """What was remembered of a group of the block, whose rows are given."""
        assert self.seen is not None
        seen, local = self.seen, torch.searchsorted(self.rows, rows)
        return seen.select(local, (self.groups == group).to(seen.tau.device))

    def narrow(self) -> None:
        """Drop finished groups from ADMM's state."""
        keep = self.open[self.groups]
        if bool(keep.all()) or not bool(keep.any()):
            return
        local = self.open[self.problem.groups.cpu()[self.rows]].nonzero()[:, 0]
        if self._state is not None:
            self._state.select(local)
        self.rows, self.groups = self.rows[local], self.groups[keep]

    def solve_exact(self) -> None:
        """Hand open groups with epsilon zero to the linear-programming solver."""
        epsilon = self.problem.epsilon
        if epsilon is None or not isinstance(self.problem.penalty, L1) or not lp_available():
            return
        for group in (self.open & (epsilon.cpu() == 0)).nonzero()[:, 0].tolist():
            rows = (self.problem.groups == group).nonzero()[:, 0]
            weight, dual, feasible, decided = solve_rows(self.problem.select(rows))
            if not bool(decided.all()):
                continue
            self.weight[rows], self.dual[rows] = weight, dual
            self.open[group] = False
            self.ending[group] = Ending.LINEAR_PROGRAM if bool(feasible.all()) else Ending.INFEASIBLE

    def repair(self) -> None:
        """Look for a feasible point, or a proof that there is none, for open groups that have no feasible point yet."""
        for group in (self.open & (self.objective.cpu() == torch.inf)).nonzero()[:, 0].tolist():
            rows = (self.problem.groups == group).nonzero()[:, 0]
            local = (self.state.problem.groups == int((self.groups == group).nonzero()[0])).nonzero()[:, 0]
            start = None if self.initial is None else self.initial[rows]
            answer = repair(self.problem.select(rows), self.state.w[local].to(torch.float64), start)
            self.weight[rows] = answer.weight
            if answer.proof is not None:
                self.dual[rows] = answer.proof
                self.open[group] = False
                self.ending[group] = Ending.INFEASIBLE
            elif answer.feasible and not self.problem.penalty.couples_rows:
                self.objective[group] = float(self.problem.penalty.rows(rows).value(answer.weight).sum())

    def fall_back(self) -> None:
        """For groups left open, the initial weights where they are feasible and no worse than what was found."""
        penalty = self.problem.penalty
        if self.initial is None or penalty.couples_rows or self.problem.epsilon is None:
            return
        for group in self.open.nonzero()[:, 0].tolist():
            rows = (self.problem.groups == group).nonzero()[:, 0]
            value = float(penalty.rows(rows).value(self.initial[rows]).sum())
            if value <= float(self.objective[group]) and is_feasible(
                self.problem.select(rows), self.initial[rows], margin=0.0
            ):
                self.weight[rows], self.objective[group] = self.initial[rows], value
                self.ending[group] = Ending.INITIAL


def _sparse_points(
    problem: Problem, vertex: Tensor, path: Polished, rows: Tensor, tolerance: float
) -> Iterator[Tensor]:
    """Feasible points of one budget group, the sparsest first: the support that the path shows, moved a little; a
    vertex of the face in which the path ended. `rows` are the group's among those of `path`."""
    point = make_feasible(problem, vertex, cast=True)
    if point is not None:
        yield point
    assert isinstance(problem.penalty, L1)
    costs = problem.penalty.full(vertex).expand(vertex.shape)
    found = crossover(problem, path.weight[rows], path.dual[rows], costs, tolerance)
    point = make_feasible(problem, found, cast=True)
    if point is not None:
        yield point


def _proved(problem: Problem, dual: Tensor) -> Tensor:
    """The bound (groups,) of multipliers (rows, samples) of an l1 problem, in slices over the program's own inputs.

    These are X / f: weights and bounds are f times smaller there, and so is lambda.
    """
    factor = problem.design.factor
    program = as_program(problem, problem.design.source)
    if program.regularization is not None:
        program = replace(program, regularization=factor * program.regularization)
    return lower_bound(program, factor * dual.T) / factor


def _next_check(number: int, *, strict: bool) -> int:
    checks = _STRICT_CHECKS if strict else _CHECKS
    if number < len(checks):
        return checks[number]
    return int(checks[-1] * 1.6 ** (number - len(checks) + 1))


def _guess(state: admm.Admm, dual: Tensor) -> Guess:
    """ADMM's present iterate, as the polish of an l1 problem begins with it."""
    problem = state.problem
    u = state.w.to(torch.float64)
    shrink = state.shrink[:, 0].to(torch.float64)
    mu = state.rho[:, 0].to(torch.float64) * (1 - shrink) / shrink.clamp(min=1e-9)
    largest = mu.new_zeros(problem.group_count).scatter_reduce(0, problem.groups, mu, "amax")
    tau = 1 / largest.clamp(min=1e-12)
    if problem.epsilon is not None:
        tau = torch.where(problem.epsilon == 0, 1.0, tau)
    return Guess(u, dual, binding(problem, dual, u, _PRESSED), tau)
