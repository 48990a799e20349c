"""A figure 4: sparsity by layer against the network's discrepancy, cascade beside parallel, over many trainings."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from nettrim.experiments import figures
from nettrim.experiments.checkpoints import Cell
from nettrim.experiments.context import Context, Findings, Source, Table, deviation, mean
from nettrim.experiments.pruning import OURS, PAPER, prune, weight_sizes
from nettrim.experiments.spiral import Spirals, load_spirals
from nettrim.experiments.spiral_nets import trained
from nettrim.experiments.verdicts import Claim

_METHODS = {"strict": PAPER, "default": OURS}
_SCHEMES = ("cascade", "parallel")
Curve = tuple[list[float], list[list[float]]]  # discrepancies (%), and for each the share kept a layer


def data_source(options: Mapping[str, Any]) -> Source:
    """The data that these options ask for, and whether it is the papers\' own."""
    return load_spirals().source


def run(context: Context) -> Findings:
    """Every network size, training and epsilon, in both schemes, by the paper's method and by our default."""
    data, options = load_spirals(), context.options
    curves: dict[tuple[str, str, int], Curve] = {}
    rows = []
    for hidden in options["hidden"]:
        found: dict[tuple[str, str, float], list[Mapping[str, Any]]] = {}
        for seed in range(options["trainings"]):
            key = f"{hidden}-{hidden}/{seed}"
            if not context.wanted(key) and context.checkpoints.read(f"{key}/trained") is None:
                continue
            dense, _ = trained(context, data, hidden, options["training"], seed, key)
            for method in _METHODS:
                for scheme in _SCHEMES:
                    for epsilon in options["epsilons"]:
                        name = f"{key}/{method}/{scheme}/{epsilon}"
                        cell = context.maybe(name, partial(_trim, context, data, dense, method, scheme, epsilon))
                        if cell is not None:
                            found.setdefault((method, scheme, epsilon), []).append(cell.numbers)
        for (method, scheme, epsilon), runs in found.items():
            reached = [run["discrepancy"] for run in runs]
            kept = [mean([run["kept"][layer] for run in runs]) for layer in range(3)]
            across, shares = curves.setdefault((method, scheme, hidden), ([], []))
            across.append(mean(reached))
            shares.append(kept)
            rows.append(
                (f"{hidden}-{hidden}", method, scheme, epsilon, len(runs), mean(reached), deviation(reached), *kept,
                 sum(run["certified"] for run in runs))
            )  # fmt: skip
    header = ("network", "method", "scheme", "epsilon", "trainings", "discrepancy (%)", "its deviation", "layer 1",
              "layer 2", "layer 3", "certified")  # fmt: skip
    table = Table("sparsity-ratios", "Share of active weights by layer, means over the trainings", header, tuple(rows))
    return Findings((table,), {}, _claims(curves, options), {"sparsity-against-discrepancy": partial(_draw, curves)})


def _trim(context: Context, data: Spirals, dense: nn.Module, method: str, scheme: str, epsilon: float) -> Cell:
    options = context.options
    pruned = prune(
        dense, data.points, epsilon, scheme=scheme, gamma=options["gamma"], budget=options["budget"],
        tolerance=options["tolerance"], device=context.device, **_METHODS[method],
    )  # fmt: skip
    sizes = weight_sizes(dense)
    return Cell(pruned.numbers() | {"kept": [count / size for count, size in zip(pruned.weights, sizes, strict=True)]})


def kept_at(curve: Curve, layer: int, discrepancy: float) -> float:
    """The share kept at a discrepancy, between the measured points on a logarithmic axis."""
    across, shares = curve
    order = np.argsort(across)
    x = np.log(np.maximum(np.asarray(across)[order], 1e-9))
    return float(np.interp(np.log(discrepancy), x, np.asarray([share[layer] for share in shares])[order]))


def common(curves: list[Curve]) -> list[float]:
    """Three discrepancies that all curves reach; none where they do not overlap."""
    low, high = max(min(curve[0]) for curve in curves), min(max(curve[0]) for curve in curves)
    return [] if not low < high else [float(value) for value in np.geomspace(low, high, 5)[1:4]]


def _claims(curves: Mapping[tuple[str, str, int], Curve], options: Mapping[str, Any]) -> tuple[Claim, ...]:
    claims = []
    for hidden in options["hidden"]:
        name = f"{hidden}-{hidden}"
        pair = [curves[key] for scheme in _SCHEMES if (key := ("strict", scheme, hidden)) in curves]
        if len(pair) < 2:
            continue
        for layer in range(3):
            falls = all(
                np.polyfit(np.log(np.maximum(curve[0], 1e-9)), [s[layer] for s in curve[1]], 1)[0] <= 1e-3
                for curve in pair
            )
            ends = ", ".join(f"{curve[1][0][layer]:.3f} to {curve[1][-1][layer]:.3f}" for curve in pair)
            claims.append(
                Claim(f"{name}, layer {layer + 1}: more discrepancy, more sparsity.", "A fig. 4", bool(falls), ends)
            )
        at = common(pair)
        for layer in range(3):
            shares = [mean([kept_at(curve, layer, place) for place in at]) for curve in pair]
            claims.append(
                Claim(
                    f"{name}, layer {layer + 1}: at equal discrepancy the cascade is sparser.", "A fig. 4",
                    bool(at) and shares[0] <= shares[1],
                    f"kept {shares[0]:.3f} (cascade) against {shares[1]:.3f} (parallel)",
                )
            )  # fmt: skip
        first = min(share[0] - max(share[1:]) for curve in pair for share in curve[1])
        claims.append(Claim(f"{name}: the first layer stays the densest.", "A section 5.1", first > 0,
                            f"it keeps at least {first:.2f} more of its entries than either other"))  # fmt: skip
        for scheme in _SCHEMES:
            both = [curves[key] for method in _METHODS if (key := (method, scheme, hidden)) in curves]
            at = common(both) if len(both) == 2 else []
            if at:
                shares = [mean([kept_at(curve, 1, place) for place in at]) for curve in both]
                text = f"{name}, {scheme}: at equal discrepancy our default keeps fewer weights of layer 2."
                told = f"{shares[1]:.3f} against {shares[0]:.3f}"
                claims.append(Claim(text, "here", shares[1] <= shares[0], told))
    return tuple(claims)


def _draw(curves: Mapping[tuple[str, str, int], Curve]) -> str:
    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for (method, scheme, hidden), (across, shares) in curves.items():
        order = np.argsort(across)
        for layer in range(3):
            panel = panels.setdefault(f"{hidden}-{hidden}, layer {layer + 1}", {})
            panel[f"{method}, {scheme}"] = ([across[i] for i in order], [shares[i][layer] for i in order])
    return figures.curves(panels, "discrepancy of the network (%)", "share kept", log=True)
