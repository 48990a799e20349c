"""Random and degenerate programs of every kind, each reproducible from its seed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nettrim.programs import Program, get_activation
from nettrim.programs.penalties import L1, ElasticNet, GroupL2Inputs, GroupL2Outputs, L1Frobenius, MaxNorm, Penalty

INPUT_KINDS = (
    "gaussian",
    "rectified",
    "duplicate rows",
    "duplicate columns",
    "rank deficient",
    "zero inputs",
    "integers",
    "bias column",
    "nearly dependent",
)
WEIGHT_KINDS = ("gaussian", "sparse", "dead", "all active", "zero row", "equal rows")
ACTIVATIONS = ("relu",) * 6 + ("linear",) * 2 + ("relu6", "hardtanh", "leaky_relu", "tanh", "sigmoid", "softplus")
OTHER_PENALTIES = (ElasticNet, L1Frobenius, MaxNorm, GroupL2Inputs, GroupL2Outputs)


@dataclass(frozen=True, eq=False)
class Case:
    """A program and what is known of it."""

    seed: int
    name: str
    program: Program
    initial: Tensor | None  # the dense weights, where they are to be given to the solver
    feasible: bool | None  # None: not known (rounding decides)


def layer(
    constraint: str = "distance",
    budget: str = "neuron",
    penalty: Penalty | None = None,
    *,
    samples: int = 300,
    width: int = 40,
    rows: int = 20,
) -> tuple[Program, Tensor]:
    """An ordinary ReLU layer, a third of whose weights are large, at a tolerance of a tenth; and its dense weights."""
    inputs = torch.randn(samples, width)
    weight = torch.where(torch.rand(rows, width) < 0.3, torch.randn(rows, width), 0.05 * torch.randn(rows, width))
    responses = (inputs @ weight.T).relu()
    epsilon = 0.1 * (responses.norm(dim=0) if budget == "neuron" else responses.norm())
    return Program.relu(inputs, responses, epsilon, constraint, budget=budget, penalty=penalty), weight


class _Draw:
    """Random choices from one generator."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def pick(self, options: tuple):
        return options[int(torch.randint(len(options), (1,), generator=self.generator))]

    def chance(self, probability: float) -> bool:
        return float(torch.rand(1, generator=self.generator)) < probability

    def size(self, most: int) -> int:
        """1 to `most`, small ones as likely as large ones."""
        return max(1, round(math.exp(float(torch.rand(1, generator=self.generator)) * math.log(most))))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def integer(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=self.generator))


def generate(
    seed: int,
    *,
    most: int = 60,
    l1_only: bool = False,
    wild: bool = True,
    double: bool = False,
) -> Case:
    """The program of `seed`: sizes up to `most`; `wild` scales of 1e-10 to 1e10; `double` for float64 only."""
    draw = _Draw(seed)
    if draw.chance(0.06):
        return _infeasible(seed, draw, most, wild)
    samples, columns, rows = draw.size(most), draw.size(most), draw.size(max(2, most // 6))
    input_kind, weight_kind = draw.pick(INPUT_KINDS), draw.pick(WEIGHT_KINDS)
    inputs = _inputs(draw, input_kind, samples, columns)
    weight = _weight(draw, weight_kind, rows, columns)
    if weight_kind == "all active":
        inputs = inputs.abs()
    activation = draw.pick(ACTIVATIONS)
    offset = draw.normal(samples, rows) if draw.chance(0.15) else None
    input_scale = 10.0 ** draw.integer(-10, 10) if wild and draw.chance(0.5) else 1.0
    homogeneous = activation in ("relu", "linear", "leaky_relu")
    response_scale = 10.0 ** draw.integer(-10, 10) if wild and homogeneous and draw.chance(0.5) else 1.0
    dtype = torch.float64 if double or draw.chance(0.6) else torch.float32

    cascade = draw.chance(0.25)
    seen = inputs + 0.1 * draw.normal(samples, columns) if cascade else inputs
    answer = get_activation(activation)
    shift = 0.0 if offset is None else offset
    responses = answer.apply(inputs @ weight.T + shift) * response_scale
    seen, weight = seen * input_scale, weight * response_scale / input_scale
    offset = None if offset is None else (offset * response_scale).to(dtype)
    seen, responses, weight = seen.to(dtype), responses.to(dtype), weight.to(dtype)

    constraint = draw.pick(("distance", "strict"))
    slack_kind = draw.pick(("published", "positive", "none")) if cascade and activation == "relu" else "none"
    slack = None
    if slack_kind != "none":
        product = seen.double() @ weight.double().T
        product = product if offset is None else product + offset.double()
        slack = (product if slack_kind == "published" else product.clamp(min=0)).to(dtype)
    budget = draw.pick(("layer", "neuron", draw.integer(1, 4)))
    penalty = _penalty(draw, rows, columns, l1_only)
    common = dict(constraint=constraint, slack=slack, budget=budget, penalty=penalty, offset=offset)
    names = [
        f"P{samples} N{columns} M{rows}",
        input_kind,
        weight_kind,
        activation,
        constraint,
        f"budget {budget}",
        type(penalty).__name__,
        f"slack {slack_kind}",
        f"offset {offset is not None}",
        f"x{input_scale:g}",
        f"y{response_scale:g}",
        str(dtype).removeprefix("torch."),
    ]

    if draw.chance(0.2):
        level = 10.0 ** draw.integer(-2, 3)
        largest = float(responses.abs().max()) or 1.0
        norm = largest / (float(seen.abs().max()) or 1.0) if penalty.is_norm else largest
        lam = level * norm / largest**2
        program = Program.of(activation, seen, responses, regularization=lam, **common)
        feasible = True if _dense_fits(program, weight) else None
        return Case(seed, ", ".join([*names, f"lambda {lam:.3g}"]), program, None, feasible)

    probe = Program.of(activation, seen, responses, 0.0, **common)
    relative = draw.pick((0.0, 0.001, 0.05, 0.05, 0.2, 0.2, 0.5, 1.5))
    radius = _group_distances(probe, weight)
    if dtype == torch.float64:  # rounding is no tolerance
        radius = torch.where(radius < 1e-12 * float(responses.norm()), 0.0, radius)
    if draw.chance(0.4) and cascade:  # as the cascade sets it: the dense weights' own distance, with or without room
        gamma = draw.pick((1.0, 1.0, 1.1, 2.0))
        epsilon, label = radius * gamma, f"gamma {gamma}"
    else:
        largest = float(torch.where(torch.isfinite(probe.upper), probe.upper, 0.0).double().norm())
        epsilon, label = radius + relative * largest / math.sqrt(len(radius)), f"eps {relative}"
    if len(epsilon) == 1:
        epsilon = float(epsilon[0])
    program = Program.of(activation, seen, responses, epsilon, **common)
    feasible = True if _dense_fits(program, weight) else None
    initial = weight if draw.chance(0.5) and feasible else None
    return Case(seed, ", ".join([*names, label, f"initial {initial is not None}"]), program, initial, feasible)


def _infeasible(seed: int, draw: _Draw, most: int, wild: bool) -> Case:
    """Positive responses that no weights reach: eps is half the least-squares residual."""
    columns = draw.size(most // 2)
    samples, rows = columns + draw.size(most // 2) + 1, draw.size(6)
    inputs, responses = draw.normal(samples, columns), draw.normal(samples, rows).abs() + 0.1
    scale = 10.0 ** draw.integer(-10, 10) if wild else 1.0
    inputs = inputs * scale
    residual = responses - inputs @ torch.linalg.lstsq(inputs, responses).solution
    budget = draw.pick(("layer", "neuron"))
    norms = residual.norm(dim=0) if budget == "neuron" else residual.norm()[None]
    constraint = draw.pick(("distance", "strict"))
    epsilon = draw.pick((0.0, 0.5, 0.9)) * norms
    program = Program.relu(
        inputs, responses, epsilon if budget == "neuron" else float(epsilon[0]), constraint, budget=budget
    )
    return Case(seed, f"infeasible, P{samples} N{columns} M{rows}, budget {budget}, x{scale:g}", program, None, False)


def _inputs(draw: _Draw, kind: str, samples: int, columns: int) -> Tensor:
    x = draw.normal(samples, columns)
    if kind == "rectified":
        x = x.clamp(min=0)
    elif kind == "duplicate rows":
        x = x[torch.randint(samples, (samples,), generator=draw.generator) // 2]
    elif kind == "duplicate columns":
        x = x[:, torch.randint(columns, (columns,), generator=draw.generator) // 2]
    elif kind == "rank deficient":
        rank = draw.size(max(1, min(samples, columns) // 2))
        x = draw.normal(samples, rank) @ draw.normal(rank, columns)
    elif kind == "zero inputs":
        x = x * (torch.rand(columns, generator=draw.generator) < 0.6)
    elif kind == "integers":
        x = x.round()
    elif kind == "bias column":
        x[:, -1] = 1.0
    elif kind == "nearly dependent":
        x = x[:, :1] + 1e-4 * x
    return x


def _weight(draw: _Draw, kind: str, rows: int, columns: int) -> Tensor:
    w = draw.normal(rows, columns)
    if kind == "sparse":
        w = w * (torch.rand(rows, columns, generator=draw.generator) < 0.3)
    elif kind == "dead":
        w[::2] = -w[::2].abs()
    elif kind == "all active":
        w = w.abs()
    elif kind == "zero row":
        w[0] = 0.0
    elif kind == "equal rows":
        w = w[:1].repeat(rows, 1)
    return w


def _penalty(draw: _Draw, rows: int, columns: int, l1_only: bool) -> Penalty:
    if l1_only or draw.chance(0.75):
        kind = draw.pick(("plain", "plain", "costs", "free column", "forbidden", "by entry"))
        costs = torch.rand(columns, generator=draw.generator, dtype=torch.float64) + 0.1
        if kind == "plain":
            return L1()
        if kind == "free column":
            costs = torch.ones_like(costs)
            costs[-1] = 0.0
        elif kind == "forbidden":  # only what a dense weight may still satisfy: see `_dense_fits`
            costs = costs.clone()
            costs[torch.rand(columns, generator=draw.generator) < 0.2] = math.inf
        elif kind == "by entry":
            costs = torch.rand(rows, columns, generator=draw.generator, dtype=torch.float64) + 0.1
        return L1(costs=costs)
    family = draw.pick(OTHER_PENALTIES)
    if family is ElasticNet:
        return ElasticNet(ridge=10.0 ** draw.integer(-2, 1))
    if family is L1Frobenius:
        return L1Frobenius(frobenius=10.0 ** draw.integer(-1, 1))
    penalty = family()
    if columns > 1 and draw.chance(0.3):
        free = torch.zeros(columns, dtype=torch.bool)
        free[-1] = True
        return penalty.with_free_columns(free)
    return penalty


def _group_distances(program: Program, weight: Tensor) -> Tensor:
    product = program.inputs.double() @ weight.double().T
    gap = product - product.clamp(program.lower.double(), program.upper.double())
    hard = program.hard()
    if hard is not None:
        gap = torch.where(hard, 0.0, gap)
    squares = torch.zeros(program.group_count, dtype=torch.float64).index_add_(0, program.groups, (gap**2).sum(dim=0))
    return squares.sqrt()


def _dense_fits(program: Program, weight: Tensor) -> bool:
    """Whether the dense weights are feasible, with a little room for the rounding of other orders of summation."""
    weight = weight.double()
    if bool(torch.isinf(program.penalty.to(weight).value(weight)).any()):
        return False
    product = program.inputs.double() @ weight.T
    gap = (product - product.clamp(program.lower.double(), program.upper.double())).abs()
    hard = program.hard()
    if hard is not None and bool((gap[hard] > 1e-12 * float(product.abs().max())).any()):
        return False
    if program.epsilon is None:
        return True
    slack = program.epsilon - _group_distances(program, weight)
    return bool((slack >= -1e-12 * float(product.abs().max())).all())
