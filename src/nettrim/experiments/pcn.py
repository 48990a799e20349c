"""A section 4.1: partially clustered neurons. One layer with clusters of 1, 5, ... M neurons: sparsity against time."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from nettrim.experiments import figures
from nettrim.experiments.checkpoints import Cell
from nettrim.experiments.context import Context, Findings, Source, Table
from nettrim.experiments.image_nets import tested, trained
from nettrim.experiments.mnist import Images, load_images
from nettrim.experiments.pruning import OURS, PAPER, prune
from nettrim.experiments.verdicts import Claim

_METHODS = {"the paper's method (strict, no refit)": PAPER, "our default (distance, refit)": OURS}


def data_source(options: Mapping[str, Any]) -> Source:
    """The data that these options ask for, and whether it is the papers\' own."""
    return load_images(options["stand_in"]).source


def run(context: Context) -> Findings:
    """The first hidden layer of a network with budgets shared by clusters of several sizes."""
    options = context.options
    data = load_images(options["stand_in"]).first(options["samples"], options["tests"])
    network, start = trained(context, data, options["hidden"], options["training"], options["seed"], "network")
    dense = network()
    neurons = int(options["hidden"][0])
    cells: dict[tuple[str, int, float], Mapping[str, Any]] = {}
    for method in _METHODS:
        for epsilon in options["epsilons"]:
            for size in options["sizes"]:
                key = f"epsilon={epsilon}/clusters of {size}/{method.split(' (')[0]}"
                cell = context.maybe(
                    key, partial(_trim, context, data, dense, method, epsilon, max(1, neurons // size))
                )
                if cell is not None:
                    cells[method, size, epsilon] = cell.numbers
    rows = tuple(
        (method, epsilon, size, got["total"], got["objective"], got["layer discrepancy"], got["accuracy"], got["solve"],
         got["certified"])
        for (method, size, epsilon), got in cells.items()
    )  # fmt: skip
    header = ("method", "epsilon", "neurons a cluster", "weights kept", "sum of absolute weights",
              "layer's discrepancy (%)", "test accuracy (%)", "seconds", "certified")  # fmt: skip
    title = f"One layer of {neurons} neurons (initial test accuracy {start.numbers['accuracy']:.1f} %)"
    table = Table("clusters", title, header, rows)
    claims = _claims(cells, options["sizes"], options["epsilons"])
    panels = {
        f"epsilon {epsilon:g}": {
            method: (
                [size for size in options["sizes"] if (method, size, epsilon) in cells],
                [
                    cells[method, size, epsilon]["total"]
                    for size in options["sizes"]
                    if (method, size, epsilon) in cells
                ],
            )
            for method in _METHODS
        }
        for epsilon in options["epsilons"]
    }
    paint = partial(figures.curves, panels, "neurons a cluster", "weights kept", log=True)
    return Findings((table,), {}, claims, {"clusters": paint})


def _trim(context: Context, data: Images, dense: nn.Module, method: str, epsilon: float, clusters: int) -> Cell:
    pruned = prune(
        dense, data.train.to(context.device or "cpu"), epsilon, budget=clusters, targets=("0",), device=context.device,
        **_METHODS[method],
    )  # fmt: skip
    more = {
        "objective": pruned.objective,
        "layer discrepancy": pruned.layer_discrepancies[0],
        "accuracy": tested(pruned.model, data, context),
        "solve": pruned.seconds,
    }
    return Cell(pruned.numbers() | more)


def _claims(
    cells: Mapping[tuple[str, int, float], Mapping[str, Any]], sizes: list[int], epsilons: list[float]
) -> tuple[Claim, ...]:
    kept = all(got["layer discrepancy"] <= 100 * place[2] * (1 + 1e-6) for place, got in cells.items())
    worst = max((got["layer discrepancy"] / (100 * place[2]) for place, got in cells.items()), default=0.0)
    claims = [
        Claim("With eps_k = eps sqrt(|C_k|/M) the whole layer keeps eps.", "A eq. 23", kept,
              f"the largest discrepancy is {worst:.4f} of epsilon")
    ]  # fmt: skip
    paper = next(iter(_METHODS))
    for epsilon in epsilons:
        small, large = cells.get((paper, sizes[0], epsilon)), cells.get((paper, sizes[-1], epsilon))
        if small is None or large is None:
            continue
        ratio, before = small["total"] / max(1, large["total"]), small["before"]
        claims.append(
            Claim(
                f"Single neurons (epsilon {epsilon:g}) prune nearly as well as one cluster.", "A section 4.1",
                (before - small["total"]) >= 0.9 * (before - large["total"]),
                f"{small['total']:,} against {large['total']:,} of {before:,} weights: {ratio:.2f} times, in "
                f"{small['solve']:.0f} s against {large['solve']:.0f} s",
            )
        )  # fmt: skip
    return tuple(claims)
