"""Certificates of one program: is it feasible, and how far from optimal can it be?

Everything is computed in float64 from the program, a weight and multipliers, whoever made them. With r = dual
(samples, out) and t = r' inputs (out, in), weak duality gives for any feasible U and any scale s_m >= 0 of row m

    penalty(U) >= sum_m s_m h_m - sum_g eps_g sqrt(sum_{m in g} s_m^2 n_m^2) - penalty*(s t),

h_m = sum_p max(r, 0) lower + min(r, 0) upper, n_m the norm of r over the entries counted in the ball. The derivation
and the regularised form are in docs/mathematics.md. Multipliers of the wrong sign are clipped, free columns are made to
vanish, and the scales put s t into the domain of the conjugate, so every array yields a valid bound.

A weight counts as feasible to within a tiny share of its responses, and responses are rounded. A certificate's bound
is therefore that of constraints wider by the weight's own violation, and by rounding: a weight that counts as feasible
does not undercut it, however large the multipliers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nettrim.errors import DataError, should
from nettrim.programs import Program, group_sums

_CHUNK = 1 << 18  # elements of a float64 temporary, 2 MB: a few of them are in use at a time, and a cache holds them
_ROW_CHUNK = 1 << 19  # multipliers that are treated at a time
_SMALL = 1e-4  # excess is measured against eps, but against no less than this share of the largest response
_NOTHING = 1e-12  # relative size under which an epsilon, or an objective, is zero to rounding
# further scales worth trying where the bound is not linear in the scale: for a penalty that is no norm
_SHRINKS = (1.0, 0.999, 0.99, 0.97, 0.95, 0.9, 0.8, 0.7, 0.5, 0.3, 0.1, 0.03, 1.001, 1.01, 1.05)
_ROUNDING = 1e-11  # relative size under which a sum that should vanish is rounding
_GRANTED = 1e-9  # the violation with which a weight counts as feasible
_ROUNDED = 1e-12  # what rounding may add to sums over samples, as a violation
_UNDERCUT = 1e-4  # the least gap that is believed: coarser weights than `_GRANTED` allows undercut a bound a little


@dataclass(frozen=True, eq=False)
class Certificate:
    """What can be said of a weight without trusting the solver.

    `objective` is its penalty (plus lambda times squared distance in the regularised form), `bound` a number that no
    feasible weight can undercut, nor this one if its violation is at most 1e-9, `gap` = (objective - bound) /
    objective. `discrepancy` is the Frobenius norm of all distances. `violation` is the worst excess over a constraint:
    (distance - eps) / eps of a group, where eps counts as at least 1e-4 of the group's largest response, or, for
    entries whose distance must be zero, the excess over the norm of that neuron's responses; infinite where a product
    is not finite. The `group_` arrays hold the same per budget group.
    """

    objective: float
    bound: float
    gap: float
    discrepancy: float
    violation: float
    group_objective: Tensor  # (groups,) float64
    group_bound: Tensor  # (groups,)
    group_gap: Tensor  # (groups,)
    group_discrepancy: Tensor  # (groups,)
    group_violation: Tensor  # (groups,)

    def holds(self, tolerance: float = 1e-4, feasibility: float = _GRANTED) -> bool:
        """Whether the weight is feasible and within `tolerance` of optimal, both relative.

        A bound far above the objective is refused, as it cannot be true of this weight.
        """
        return self.violation <= feasibility and believable(self.gap, tolerance)


def believable(gap: float, tolerance: float) -> bool:
    """Whether a gap is within `tolerance`, and not so far below zero that its bound is wrong for these weights."""
    return -max(tolerance, _UNDERCUT) <= gap <= tolerance


def certify(program: Program, weight: Tensor, dual: Tensor | None = None) -> Certificate:
    """The certificate of `weight` (out, in) for `program`, with multipliers `dual` (samples, out) from any source.

    Without multipliers the bound is zero. Raises DataError when shapes do not fit or values are not finite.
    """
    _check("weight", weight, program.shape)
    if dual is not None:
        _check("dual", dual, tuple(program.upper.shape))
    weight = weight.detach().to(program.inputs.device, torch.float64)
    squares, excess = distances(program, weight)
    lengths = _lengths(program)
    value = program.penalty.to(weight).value(weight)
    objective = group_sums(value, program.groups.to(value.device), program.group_count)
    group_squares = group_sums(squares, program.groups.to(squares.device), program.group_count)
    discrepancy = group_squares.sqrt()
    violation = _group_max(excess / lengths.norm, program)
    if program.regularization is not None:
        objective = objective + program.regularization * group_squares
    else:
        eps = _epsilon(program, discrepancy)
        over = discrepancy - eps
        scale = _violation_scale(eps, lengths.of_groups(program))
        violation = torch.maximum(violation, torch.where(over > 0, over / scale, 0.0))
    violation = torch.where(torch.isfinite(discrepancy), violation, torch.inf)
    bound = _bound(program, dual, lengths, violation) if dual is not None else torch.zeros_like(objective)
    floor = _floor(program, lengths)
    if program.penalty.couples_rows:
        objective, bound = _total_in_first(objective), _total_in_first(bound)
    return Certificate(
        objective=float(objective.sum()),
        bound=float(bound.sum()),
        gap=float(_gap(objective.sum(), bound.sum(), floor)),
        discrepancy=float(group_squares.sum().sqrt()),
        violation=float(violation.max()),
        group_objective=objective,
        group_bound=bound,
        group_gap=_gap(objective, bound, floor),
        group_discrepancy=discrepancy,
        group_violation=violation,
    )


def distances(program: Program, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Per row, in float64: the sum of squared distances counted in the ball, and the worst excess of the rest,
    infinite where a product is not finite."""
    squares = weight.new_zeros(weight.shape[0])
    excess = weight.new_zeros(weight.shape[0])
    for chunk in _sample_chunks(program):
        inputs, lower, upper = _chunk(program, chunk)
        product = inputs @ weight.T
        gap = product.sub_(product.clamp(lower, upper))
        if program.constraint == "strict":
            beyond = gap * _hard(lower, upper)
            gap.sub_(beyond)
            excess = torch.maximum(excess, beyond.abs_().amax(dim=0))
        squares += gap.square_().sum(dim=0)
    return squares, torch.where(torch.isnan(excess), torch.inf, excess)


@dataclass(frozen=True)
class _Lengths:
    """What "relative" means in the units of the responses, per row, (rows,): from the finite bounds, or, where all are
    zero, from those of the other rows."""

    largest: Tensor
    norm: Tensor

    def of_groups(self, program: Program) -> Tensor:
        """The largest of each budget group."""
        return _group_max(self.largest, program)


def response_lengths(program: Program) -> Tensor:
    """The length that an excess over an exact constraint is measured against, per budget group, (groups,) float64."""
    return _lengths(program).of_groups(program)


def _lengths(program: Program) -> _Lengths:
    squares = [torch.zeros(program.shape[0], dtype=torch.float64, device=program.inputs.device) for _ in range(2)]
    for chunk in _sample_chunks(program):
        finite = _finite_square(*_chunk(program, chunk)[1:])
        squares = [torch.maximum(squares[0], finite.amax(dim=0)), squares[1] + finite.sum(dim=0)]
    largest, norm = (part.sqrt() for part in squares)
    other = largest.amax()
    other = torch.where(other > 0, other, 1.0)
    return _Lengths(torch.where(largest > 0, largest, other), torch.where(norm > 0, norm, other))


def lower_bound(program: Program, dual: Tensor) -> Tensor:
    """The dual bound of each budget group, (groups,) float64, at least 0; a penalty that couples rows: total in group
    0. It holds for weights that keep the constraints to the last digit."""
    return _bound(program, dual)


def _bound(
    program: Program, dual: Tensor, lengths: _Lengths | None = None, violation: Tensor | None = None
) -> Tensor:
    """As `lower_bound`; with `lengths`, of constraints that are wider by rounding and a `violation` (groups,)."""
    like = program.inputs.new_zeros((), dtype=torch.float64)
    penalty = program.penalty.to(like)
    free = penalty.free(program.shape)
    step = max(1, _ROW_CHUNK // program.samples)
    parts = []
    for start in range(0, program.shape[0], step):  # a float64 copy of all multipliers may be larger than the inputs
        rows = slice(start, start + step)
        part = replace(program, lower=program.lower[:, rows], upper=program.upper[:, rows])
        parts.append(_row_sums(part, dual[:, rows].detach().to(like), None if free is None else free[rows]))
    support, ball, pushed, transposed = (torch.cat(sums) for sums in zip(*parts, strict=True))
    if lengths is not None and violation is not None:
        granted = violation.clamp(_ROUNDED, _GRANTED)
        support = support - granted[program.groups.to(granted.device)] * lengths.norm * pushed
        if program.regularization is None:
            eps = _epsilon(program, support)
            program = replace(program, epsilon=eps + granted * _violation_scale(eps, lengths.of_groups(program)))
    return _best_scale(program, penalty, support, ball, transposed)


def _row_sums(program: Program, dual: Tensor, free: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`_dual_sums` of some rows, zero for those whose t does not vanish on free columns."""
    dual = _vanish_on_free_columns(program, dual, free)
    support, ball, pushed, transposed = _dual_sums(program, dual)
    if free is not None:
        reach = _reach(program, dual)
        vanished = (torch.where(free, transposed.abs(), 0.0) <= _ROUNDING * reach).all(dim=1)
        support = torch.where(vanished, support, 0.0)
        ball = torch.where(vanished, ball, 0.0)
        transposed = torch.where(vanished[:, None] & ~free, transposed, 0.0)
    return support, ball, pushed, transposed


def _best_scale(program: Program, penalty, support: Tensor, ball: Tensor, transposed: Tensor) -> Tensor:
    """Maximise the bound over the rows' scales, as far as closed forms go; any scale is valid."""
    groups, count = program.groups.to(support.device), program.group_count
    gauge = penalty.gauge(transposed)
    limit = torch.where(gauge > 0, 1 / gauge, torch.inf)
    bounds = []
    for candidate in (limit.clamp(max=1.0), limit):
        candidate = torch.where(torch.isfinite(candidate), candidate, 1.0)
        candidate = torch.where(support > 0, candidate, 0.0)
        for shrink in (1.0,) if penalty.is_norm else _SHRINKS:
            bounds.append(_bound_at(program, penalty, candidate * shrink, support, ball, transposed, groups, count))
    best = torch.stack(bounds).amax(dim=0).clamp(min=0)
    if penalty.couples_rows:
        total = torch.stack([bound.sum() for bound in bounds]).amax().clamp(min=0)
        best = torch.zeros(program.group_count, dtype=best.dtype, device=best.device)
        best[0] = total
    return best


def _bound_at(
    program: Program,
    penalty,
    scale: Tensor,
    support: Tensor,
    ball: Tensor,
    transposed: Tensor,
    groups: Tensor,
    count: int,
) -> Tensor:
    conjugate = penalty.conjugate(transposed * scale[:, None]) if not penalty.is_norm else 0.0
    if program.regularization is not None:
        curvature = ball**2 / (4 * program.regularization)  # sup of -s^2 |r|^2 / (4 lambda) + s h, row by row
        if penalty.is_norm:
            top = torch.where(curvature > 0, support.clamp(min=0) / (2 * curvature), torch.inf)  # no scale is negative
            if penalty.couples_rows:
                total = (scale**2 * curvature).sum()
                factor = torch.where(total > 0, (scale * support).sum() / (2 * total), 1.0).clamp(0.0, 1.0)
                scale = scale * factor
            else:
                scale = torch.minimum(scale, top)
        return group_sums(scale * support - scale**2 * curvature - conjugate, groups, count)
    norms = group_sums((scale * ball) ** 2, groups, count).sqrt()
    return group_sums(scale * support - conjugate, groups, count) - _epsilon(program, norms) * norms


def _dual_sums(program: Program, dual: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h_m and n_m of the clipped multipliers, the sum of those on entries that must stay within bounds, and t."""
    rows, columns = program.shape
    support, squares, pushed = dual.new_zeros(rows), dual.new_zeros(rows), dual.new_zeros(rows)
    transposed = dual.new_zeros(rows, columns)
    for chunk in _sample_chunks(program):
        inputs, lower, upper = _chunk(program, chunk)
        part = clip_multipliers(dual[chunk], lower, upper)
        support += support_value(part, lower, upper, dim=0)
        transposed += part.T @ inputs
        counted = part
        if program.constraint == "strict":
            counted = part * (1 - _hard(lower, upper))
            pushed += (part - counted).abs_().sum(dim=0)
        squares += counted.square().sum(dim=0)
    return support, squares.sqrt(), pushed, transposed


def clip_multipliers(part: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Multipliers may be positive only where `lower` is finite and negative only where `upper` is."""
    most = torch.finfo(part.dtype).max
    return part.clamp((upper - most).clamp_(max=0), (lower + most).clamp_(min=0))  # no choice entry by entry: slow


def support_value(part: Tensor, lower: Tensor, upper: Tensor, dim: int) -> Tensor:
    """h: the least sum of r z over the box, that of max(r, 0) lower + min(r, 0) upper; -inf where r pushes on an
    infinite bound."""
    return torch.minimum(part * lower, part * upper).nansum(dim=dim)  # zero times infinity counts nothing


def _hard(lower: Tensor, upper: Tensor) -> Tensor:
    """1 for entries of the strict constraint that must stay within their bounds, 0 for those counted in the ball."""
    return (upper - lower).sign_()


def _vanish_on_free_columns(program: Program, dual: Tensor, free: Tensor | None) -> Tensor:
    """Move the multipliers of two-sided entries, least squares, so that t is zero on free columns."""
    if free is None:
        return dual
    lower, upper = program.lower, program.upper
    dual = clip_multipliers(dual, lower.to(dual), upper.to(dual))
    movable = torch.isfinite(lower) & torch.isfinite(upper)
    for row in range(dual.shape[1]) if not bool((free == free[0]).all()) else [None]:
        columns = (free[0] if row is None else free[row]).nonzero()[:, 0]
        if not len(columns):
            continue
        picked = slice(None) if row is None else slice(row, row + 1)
        basis = program.inputs[:, columns].to(torch.float64)
        moved = movable[:, picked].to(torch.float64)
        part = dual[:, picked]
        for _ in range(2):  # the second pass removes the first one's rounding
            residual = basis.T @ part  # (free, rows)
            if len(columns) == 1:
                step = residual / ((basis**2).T @ moved).clamp(min=torch.finfo(torch.float64).tiny)
            else:
                gram = torch.einsum("pi,pj,pm->mij", basis, basis, moved)
                step = (torch.linalg.pinv(gram, hermitian=True) @ residual.T[:, :, None])[:, :, 0].T
            part = part - moved * (basis @ step)
        dual = part if row is None else torch.cat([dual[:, :row], part, dual[:, row + 1 :]], dim=1)
    return dual


def _reach(program: Program, dual: Tensor) -> Tensor:
    """sum_p |r| |x|, the size against which t's rounding is measured, (out, in)."""
    reach = dual.new_zeros(program.shape)
    for chunk in _sample_chunks(program):
        reach += dual[chunk].abs().T @ program.inputs[chunk].to(torch.float64).abs()
    return reach


def _sample_chunks(program: Program) -> Iterator[slice]:
    rows, columns = program.shape
    step = max(1, _CHUNK // (rows + columns))
    for start in range(0, program.samples, step):
        yield slice(start, start + step)


def _chunk(program: Program, chunk: slice) -> list[Tensor]:
    """Inputs, lower and upper bounds of some samples in float64."""
    return [array[chunk].to(torch.float64) for array in (program.inputs, program.lower, program.upper)]


def _finite_square(lower: Tensor, upper: Tensor) -> Tensor:
    return torch.maximum(
        torch.nan_to_num(lower, posinf=0.0, neginf=0.0) ** 2, torch.nan_to_num(upper, posinf=0.0, neginf=0.0) ** 2
    )


def largest_finite(array: Tensor) -> float:
    """The largest finite absolute entry, 0 where there is none."""
    if not array.numel():
        return 0.0
    size = max(abs(float(end)) for end in torch.aminmax(array))
    if math.isfinite(size):
        return size
    return float(torch.nan_to_num(array, nan=0.0, posinf=0.0, neginf=0.0).abs_().max())


def _violation_scale(eps: Tensor, response: Tensor) -> Tensor:
    return torch.where(eps > _NOTHING * response, torch.maximum(eps, _SMALL * response), response)


def _epsilon(program: Program, like: Tensor) -> Tensor:
    assert program.epsilon is not None
    return program.epsilon.to(like)


def _group_max(values: Tensor, program: Program) -> Tensor:
    result = values.new_zeros(program.group_count)
    return result.scatter_reduce(0, program.groups.to(values.device), values, "amax")


def _total_in_first(values: Tensor) -> Tensor:
    spread = torch.zeros_like(values)
    spread[0] = values.sum()
    return spread


def _floor(program: Program, lengths: _Lengths) -> float:
    """An objective that is zero to rounding: what rounded responses cost in the regularised form."""
    if program.regularization is None:
        return 0.0
    return program.regularization * program.samples * (_NOTHING * float(lengths.largest.amax())) ** 2


def _gap(objective: Tensor, bound: Tensor, floor: float) -> Tensor:
    positive = objective > floor
    return torch.where(positive, (objective - bound) / torch.where(positive, objective, 1.0), 0.0)


def _check(name: str, array: Tensor, shape: tuple[int, ...]) -> None:
    if not isinstance(array, Tensor) or tuple(array.shape) != tuple(shape):
        got = f"shape {tuple(array.shape)}" if isinstance(array, Tensor) else type(array).__name__
        raise DataError(should(name, f"a tensor of shape {tuple(shape)}", got))
    if array.numel() and not all(math.isfinite(end) for end in torch.aminmax(array)):
        raise DataError(should(name, "finite", "NaN or infinity"))
