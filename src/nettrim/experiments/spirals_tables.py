"""A tables 1 and 2, figure 5: networks of five sizes trained with dropout, without and with l1, cascade below 2 %."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from nettrim.experiments.checkpoints import Cell, as_state, of_state
from nettrim.experiments.context import Context, Findings, Source, Table
from nettrim.experiments.pruning import OURS, PAPER, prune, seek, told
from nettrim.experiments.spiral import Spirals, load_spirals
from nettrim.experiments.spiral_nets import trained
from nettrim.experiments.training import accuracy
from nettrim.experiments.verdicts import Claim
from nettrim.report import plots

_METHODS = {"the paper's method": PAPER, "our default": OURS}
_TABLES = {"dropout": "Table 1: trained with dropout", "dropout and l1": "Table 2: trained with dropout and l1"}


def data_source(options: Mapping[str, Any]) -> Source:
    """The data that these options ask for, and whether it is the papers\' own."""
    return load_spirals().source


def run(context: Context) -> Findings:
    """Every size and training, trimmed so that the network's discrepancy stays under the limit."""
    data, options = load_spirals(), context.options
    tables, numbers, claims, drawings, notes = [], {}, [], {}, []
    for training, title in _TABLES.items():
        rows = []
        for hidden in options["hidden"]:
            key = f"{training}/{hidden}"
            if not context.wanted(key) and context.checkpoints.read(f"{key}/trained") is None:
                continue
            dense, cell = trained(context, data, hidden, options["training"][training], options["seed"], key)
            before = cell.numbers["weights"]
            found = {}
            for method in _METHODS:
                part = context.maybe(f"{key}/{method}", partial(_trim, context, data, dense, method))
                if part is not None:
                    found[method] = part
                    got = part.numbers
                    rows.append((f"2-{hidden}-{hidden}-2", *before, method, *got["weights"], got["total"],
                                 got["discrepancy"], got["accuracy"], got["epsilon"], got["certified"]))  # fmt: skip
                    notes += [f"{key}, {method}: {note}" for note in told(got)]
            paper, ours = (found.get(method) for method in _METHODS)
            if paper is not None:
                after = paper.numbers["weights"]
                numbers |= {f"{key} before layer {place}": count for place, count in enumerate(before, 1)}
                numbers |= {f"{key} after layer {place}": count for place, count in enumerate(after, 1)}
                limit = 100 * options["limit"]
                claims.append(
                    Claim(f"{key}: the discrepancy stays below {limit:g} %.", "A section 5.1",
                          paper.numbers["discrepancy"] < limit, f"{paper.numbers['discrepancy']:.2f} %")
                )  # fmt: skip
                if training == "dropout":
                    drawings[f"histogram-{hidden}"] = partial(_histogram, dense, paper)
            if paper is not None and ours is not None:
                counts = f"{ours.numbers['total']} against {paper.numbers['total']} weights"
                fewer = ours.numbers["total"] <= paper.numbers["total"]
                claims.append(
                    Claim(f"{key}: our default has fewer weights under the same limit.", "here", fewer, counts)
                )
        header = ("network", "trained 1", "trained 2", "trained 3", "method", "layer 1", "layer 2", "layer 3", "all",
                  "discrepancy (%)", "accuracy (%)", "epsilon", "certified")  # fmt: skip
        tables.append(Table(training.replace(" ", "-"), title, header, tuple(rows)))
    return Findings(tuple(tables), numbers, tuple(claims), drawings, tuple(notes))


def _trim(context: Context, data: Spirals, dense: nn.Module, method: str) -> Cell:
    options = context.options
    how = {"scheme": "cascade", "gamma": options["gamma"], "device": context.device, **_METHODS[method]}
    how |= {"budget": options["budget"], "tolerance": options["tolerance"]}
    if _METHODS[method] is PAPER:
        how["kappa"] = options["kappa"]
    pruned = seek(
        lambda epsilon: prune(dense, data.points, epsilon, **how),
        lambda found: found.discrepancy,
        99.9 * options["limit"],
        options["start"],
        within=0.1,
        most=options["attempts"],
    )
    return Cell(
        pruned.numbers() | {"accuracy": accuracy(pruned.model, data.points, data.labels)}, of_state(pruned.model, "")
    )


def _histogram(dense: nn.Module, cell: Cell) -> str:
    """A fig. 5: the middle layer's weights before and after."""
    before = [parameter.detach() for parameter in dense.parameters() if parameter.ndim > 1][1]
    after = next(array for array in as_state(cell.arrays, "").values() if array.shape == before.shape)
    return plots.histogram(before, after)
