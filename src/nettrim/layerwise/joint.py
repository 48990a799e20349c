"""The rows of one joint budget, solved apart: they are coupled by a single scalar, the budget's multiplier.

    minimise  sum_m penalty(u_m)   subject to   sum_m d_m(u_m)^2 <= eps^2

is, at its optimal multiplier lambda, the sum of the independent programs  min penalty(u_m) + lambda d_m(u_m)^2  (N eq.
11). `price` solves these for some rows at one lambda. Near the optimal one the distances d_m are the shares of eps that
the joint optimum gives to each row, so `land` solves the rows with these shares as budgets of their own: whatever the
error of lambda, the weights are feasible, and what they lose is of second order in it, as is what the bound loses.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nettrim.certificates.program import certify
from nettrim.layerwise.keeping import feasibility, solve_kept
from nettrim.layerwise.means import Means
from nettrim.layerwise.task import LayerOutcome, LayerTask, Piece
from nettrim.layerwise.trim import finished, record, worst_violation
from nettrim.models.base import Layer
from nettrim.programs import Program
from nettrim.solvers import Solution, Start, Status
from nettrim.solvers.presolve import at_zero

# of the recipe's tolerance for each row: the gaps of bound and weights and the multiplier's error add up
_SHARPER = 0.25
_LITTLE = 0.02  # of the rows' mean penalty: a relative gap of rows with less would cost much and change nothing
_FLOOR = 1e-7  # share of eps^2 kept for rows that use nothing of it, lest their budgets be zero
_ROUGH = 1e-2  # relative gap at which a sample of rows tells the multiplier


@dataclass(frozen=True, eq=False)
class Priced:
    """Rows at one multiplier: what stays where it was computed."""

    weight: Tensor  # (rows, in [+ 1])
    dual: Tensor  # (samples, rows)
    squares: Tensor  # (rows,) float64, squared distances that count in the ball
    settled: Tensor  # (rows,) bool: rows that keep these weights, as next to nothing is left to gain in them


@dataclass(frozen=True)
class Answer:
    """Rows at one multiplier: the sums that travel."""

    multiplier: float  # lambda
    square: float  # of the distances that count in the ball
    settled: float  # the part of it in settled rows: what they will keep
    objective: float  # the penalty alone
    bound: float  # on penalty + lambda * squared distances
    iterations: int = 0
    seconds: float = 0.0

    @classmethod
    def over(cls, parts: Sequence[Answer]) -> Answer:
        """The answer of several parts, solved at the same multiplier, that have no row in common."""
        sums = {name: math.fsum(getattr(part, name) for part in parts) for name in ("square", "settled", "objective")}
        return cls(
            multiplier=parts[0].multiplier,
            **sums,
            bound=math.fsum(part.bound for part in parts),
            iterations=max(part.iterations for part in parts),
            seconds=math.fsum(part.seconds for part in parts),
        )

    def gap(self, epsilon: float) -> float:
        """Relative gap that is certain for these weights in the joint program, infinite where they break its budget.

        Weak duality at this multiplier: no feasible weights undercut bound - lambda eps^2.
        """
        if self.square > epsilon**2:
            return math.inf
        loss = self.objective - max(self.bound - self.multiplier * epsilon**2, 0.0)
        return loss / self.objective if self.objective > 0 else 0.0


@dataclass(frozen=True)
class Shares:
    """How a joint epsilon is dealt out: row m gets scale * d_m, settled rows keep the d_m they have."""

    scale: float
    floor: float = 0.0  # the least that a row gets

    @classmethod
    def of(cls, answer: Answer, epsilon: float, rows: int) -> Shares:
        """Shares whose squares add up to eps^2, from all rows' distances at one multiplier."""
        room = (1 - _FLOOR) * epsilon**2 - answer.settled
        moving = answer.square - answer.settled
        return cls(math.sqrt(max(room, 0.0) / moving) if moving > 0 else 0.0, epsilon * math.sqrt(_FLOOR / rows))


def price(
    task: LayerTask, piece: Piece, multiplier: float, start: Priced | None, means: Means
) -> tuple[Answer, Priced]:
    """Solve the rows of `piece` at one multiplier (N eq. 11), from those of `start` where there are any."""
    program = replace(
        piece.program, epsilon=None, groups=torch.arange(piece.program.shape[0]), regularization=multiplier
    )
    initial = piece.dense.to(program.inputs) if start is None else start.weight
    warm = None if start is None else Start(start.weight, start.dual)
    solution = means.solve(program, _SHARPER * task.recipe.tolerance, initial, warm)
    squares = solution.certificate.group_discrepancy.square().cpu()
    value = program.penalty.to(solution.weight).value(solution.weight).to(torch.float64).cpu()
    settled = value <= _LITTLE * value.mean()
    answer = Answer(
        multiplier=multiplier,
        square=float(squares.sum()),
        settled=float(squares[settled].sum()),
        objective=float(value.sum()),
        bound=solution.certificate.bound,
        iterations=solution.iterations,
        seconds=solution.seconds,
    )
    return answer, Priced(solution.weight, solution.dual, squares, settled)


def land(task: LayerTask, piece: Piece, priced: Priced | None, shares: Shares, means: Means) -> LayerOutcome:
    """Solve the rows of `piece` within their shares of the joint epsilon, and go on as with any rows.

    The multipliers are those at the common lambda; those of the rows apart belong to other programs. Without `priced`
    the shares are of the distances of zero weights: for a joint epsilon of zero, or one that zero weights keep.
    """
    started = time.perf_counter()
    program = piece.program
    squares = zero_squares(program) if priced is None else priced.squares
    epsilon = (shares.scale * squares.sqrt()).clamp(min=shares.floor) if shares.scale else torch.zeros_like(squares)
    settled = torch.zeros(len(squares), dtype=torch.bool)
    initial = piece.dense.to(program.inputs)
    if priced is not None:
        settled = priced.settled
        epsilon = torch.where(settled, squares.sqrt(), epsilon)
        initial = initial + min(shares.scale, 1.0) * (priced.weight - initial)  # feasible where dense weights are exact
    own = replace(piece, program=replace(program, epsilon=epsilon, groups=torch.arange(len(squares))))
    moving = (~settled).nonzero()[:, 0]
    solution = _solve_rows(own, task.layer, moving, initial, priced, task.recipe.tolerance, means)
    return finished(task, [own], [solution], started, (), math.inf, means)


def conclude_joint(task: LayerTask, piece: Piece, landed: LayerOutcome) -> LayerOutcome:
    """The outcome of a joint budget's rows from that of its parts, with the certificate of the joint program.

    Should the parts together break the budget, which their solver's failures can cause, the dense weights are kept.
    """
    (backing,) = landed.backing
    certificate = certify(piece.program, backing.weight, backing.dual)
    totals = replace(
        landed.totals,
        objective=certificate.objective,
        bound=certificate.bound,
        violation=max(certificate.violation, worst_violation([piece], [backing], landed.weight, landed.bias)),
        epsilon=math.sqrt(piece.allowed),
    )
    result = record(task.layer, task.scheme, task.recipe.tolerance, totals, landed.weight)
    neurons = dict(landed.result.neurons)
    # where the budget is certified, all its rows are
    if certificate.holds(task.recipe.tolerance, feasibility(task.layer)):
        late = sum(neurons.pop(status.name.lower(), 0) for status in (Status.GAP, Status.DENSE))
        neurons |= {"certified": neurons.get("certified", 0) + late} if late else {}
    result = replace(result, neurons=neurons, iterations=landed.result.iterations, seconds=landed.result.seconds)
    outcome = replace(landed, result=result, totals=totals)
    if certificate.violation > feasibility(task.layer) and landed.backing[0].dual is not None:
        failed = Solution(piece.dense, landed.backing[0].dual, (Status.VIOLATED,) * len(piece.dense), certificate)
        outcome = finished(task, [piece], [failed], time.perf_counter(), landed.notes, math.inf)
    limit = task.recipe.certificate_megabytes * 2**20
    if backing.dual is not None and backing.dual.nbytes > limit:
        outcome = replace(outcome, backing=tuple(replace(part, dual=None) for part in outcome.backing))
    return outcome


def rough_multiplier(program: Program, dense: Tensor, share: float, means: Means) -> float | None:
    """lambda from a sample of a joint budget's rows, that are to get this `share` of eps^2; None where it cannot tell.

    `dense` (rows, in [+ 1]) are the rows' original weights.
    """
    assert program.epsilon is not None
    epsilon = math.sqrt(share) * program.epsilon
    solution = means.solve(replace(program, epsilon=epsilon), _ROUGH, dense.to(program.inputs))
    dual, hard = solution.dual.to(torch.float64), program.hard()
    norm = float((dual if hard is None else torch.where(hard, 0.0, dual)).norm())  # 2 lambda eps, as r = -2 lambda d
    found = norm / (2 * float(epsilon)) if float(epsilon) > 0 else 0.0
    return found if 0 < found < math.inf else None


def zero_squares(program: Program) -> Tensor:
    """Squared distances of zero weights that count in the ball, (rows,) float64 on the CPU; inf where they break an
    entry that must be met."""
    zero = at_zero(program)
    squares = zero.squares if zero.worst is None else torch.where(zero.worst > 0, torch.inf, zero.squares)
    return squares.cpu()


def _solve_rows(
    piece: Piece,
    layer: Layer,
    moving: Tensor,
    initial: Tensor,
    priced: Priced | None,
    tolerance: float,
    means: Means,
) -> Solution:
    """The rows in `moving` within their budgets; the others keep their priced weights."""
    program = piece.program
    part = None
    if len(moving):
        rows = program.rows(moving)
        warm = None if priced is None else Start(priced.weight[moving], priced.dual[:, moving])
        part = solve_kept(means, rows, layer, _SHARPER * tolerance, initial[moving], warm)
        if priced is None and len(moving) == len(program.groups):
            return part
    assert priced is not None
    weight, status = priced.weight.clone(), [Status.CERTIFIED] * len(program.groups)
    if part is not None:
        weight[moving] = part.weight
        for row, end in zip(moving.tolist(), part.status, strict=True):
            status[row] = end
    return Solution(
        weight=weight,
        dual=priced.dual,
        status=tuple(status),
        certificate=certify(program, weight, priced.dual),
        iterations=0 if part is None else part.iterations,
    )
