"""A section 5.1, N figure 1, A figures 1 and 3: networks 2-200-200-2 on nested spirals, trimmed in the cascade."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nettrim.experiments import figures
from nettrim.experiments.checkpoints import Cell, as_state, of_state
from nettrim.experiments.context import Context, Findings, Source, Table
from nettrim.experiments.pruning import OURS, PAPER, prune, seek, told
from nettrim.experiments.spiral import Spirals, load_spirals
from nettrim.experiments.spiral_nets import trained
from nettrim.experiments.training import accuracy
from nettrim.experiments.verdicts import Claim
from nettrim.report import plots

_EXTENT = 1.5  # half the edge of the square that the classifiers are drawn on
_METHODS = ("paper", "paper at its discrepancy", "equal discrepancy", "equal sparsity")


def data_source(options: Mapping[str, Any]) -> Source:
    """The data that these options ask for, and whether it is the papers\' own."""
    return load_spirals().source


def run(context: Context) -> Findings:
    """Both networks of A section 5.1: trained plainly, and with dropout and l1."""
    data, options = load_spirals(), context.options
    rows, numbers, claims = [], {}, []
    notes: list[str] = []
    drawings: dict[str, Any] = {}
    for name, how in options["networks"].items():
        if not context.wanted(name) and context.checkpoints.read(f"{name}/trained") is None:
            continue
        dense, cell = trained(context, data, options["hidden"], how, options["seed"], name)
        before = cell.numbers["weights"]
        rows.append((name, "trained", None, *before, sum(before), None, cell.numbers["accuracy"], None, None))
        numbers |= {f"{name} before layer {place}": count for place, count in enumerate(before, 1)}
        found: dict[str, Cell] = {}
        for method in _METHODS:
            if method.startswith("equal") and "paper at its discrepancy" not in found:
                continue
            part = context.maybe(f"{name}/{method}", partial(_trim, context, data, dense, name, method, found))
            if part is None:
                continue
            found[method] = part
            got = part.numbers
            rows.append(
                (name, _LABEL[method], got["epsilon"], *got["weights"], got["total"], got["discrepancy"],
                 got["accuracy"], got["agreement"], got["certified"])
            )  # fmt: skip
            notes += [f"{name}, {_LABEL[method]}: {note}" for note in told(got)]
        if "paper at its discrepancy" not in found:
            continue
        paper = found["paper at its discrepancy"].numbers
        numbers |= {f"{name} after layer {place}": count for place, count in enumerate(paper["weights"], 1)}
        numbers[f"{name} discrepancy (%)"] = paper["discrepancy"]
        claims += _claims(name, before, paper, found)
        drawings |= _drawings(name, data, dense, found["paper at its discrepancy"])
    header = ("network", "weights", "epsilon", "layer 1", "layer 2", "layer 3", "all", "discrepancy (%)",
              "accuracy (%)", "same class on the plane (%)", "certified")  # fmt: skip
    table = Table("weights", "Active weights by layer", header, tuple(rows))
    return Findings((table,), numbers, tuple(claims), drawings, tuple(notes))


_LABEL = {
    "paper": "the paper's method (strict, no refit), at its epsilon",
    "paper at its discrepancy": "the paper's method, at its discrepancy",
    "equal discrepancy": "our default (distance, refit), at equal discrepancy",
    "equal sparsity": "our default (distance, refit), at equal sparsity",
}


def _trim(context: Context, data: Spirals, dense: nn.Module, name: str, method: str, found: Mapping[str, Cell]) -> Cell:
    options = context.options
    cascade = {"scheme": "cascade", "gamma": options["gamma"], "budget": options["budget"], "device": context.device}
    cascade["tolerance"] = options["tolerance"]
    if method == "paper":
        pruned = prune(dense, data.points, options["epsilon"], kappa=options["kappa"], **cascade, **PAPER)
    elif method == "paper at its discrepancy":
        pruned = seek(
            lambda epsilon: prune(dense, data.points, epsilon, kappa=options["kappa"], **cascade, **PAPER),
            lambda found: found.discrepancy, options["discrepancy"][name], options["epsilon"],
            within=options["within"], most=options["attempts"],
        )  # fmt: skip
    else:
        paper = found["paper at its discrepancy"].numbers
        target, measure, rising = {
            "equal discrepancy": (paper["discrepancy"], lambda pruned: pruned.discrepancy, True),
            "equal sparsity": (paper["total"], lambda pruned: pruned.total, False),
        }[method]
        pruned = seek(
            lambda epsilon: prune(dense, data.points, epsilon, **cascade, **OURS),
            measure, target, paper["epsilon"], rising=rising, within=options["within"], most=options["attempts"],
        )  # fmt: skip
    grid = _grid(options["grid"])
    agree = (dense(grid).argmax(1) == pruned.model(grid).argmax(1)).float().mean()
    more = {"accuracy": accuracy(pruned.model, data.points, data.labels), "agreement": 100 * float(agree)}
    return Cell(pruned.numbers() | more, of_state(pruned.model, ""))


def _claims(name: str, before: list[int], paper: Mapping[str, Any], found: Mapping[str, Cell]) -> list[Claim]:
    middle = 1 - paper["weights"][1] / before[1]
    links = f"{before[1]} -> {paper['weights'][1]} links, {100 * middle:.1f} % pruned"
    if name == "plain":
        claims = [
            Claim("More than 93 % of the links between the hidden layers are pruned.", "N, A section 1",
                  middle > 0.93, links),
            Claim(
                "The classifier hardly changes.", "A fig. 3", paper["agreement"] > 97,
                f"{paper['agreement']:.1f} % of the plane in the same class, discrepancy {paper['discrepancy']:.2f} %",
            ),
        ]  # fmt: skip
    else:
        factor = before[1] / max(1, paper["weights"][1])
        text = "Trained with dropout and l1, the network is over 7 times sparser after trimming."
        claims = [Claim(text, "N, A fig. 1c", factor > 7, f"{links}: {factor:.1f} times")]
    if "equal discrepancy" not in found:
        return claims
    fewer = found["equal discrepancy"].numbers
    text = f"{name}: our default has fewer weights at the paper's discrepancy."
    claims.append(
        Claim(text, "here", fewer["total"] <= paper["total"] and fewer["discrepancy"] <= paper["discrepancy"] * 1.001,
              f"{fewer['total']} weights at {fewer['discrepancy']:.2f} % against {paper['total']} at "
              f"{paper['discrepancy']:.2f} %")
    )  # fmt: skip
    return claims


def _drawings(name: str, data: Spirals, dense: nn.Module, cell: Cell) -> dict[str, Any]:
    state = as_state(cell.arrays, "")
    old = [parameter.detach().numpy() for parameter in dense.parameters() if parameter.ndim > 1]
    new = [tensor.numpy() for tensor in state.values() if tensor.ndim > 1]
    new = [next(tensor for tensor in new if tensor.shape == matrix.shape) for matrix in old]
    grids = {"trained": _classes(dense, None), "trimmed": _classes(dense, state)}
    last = min(100, old[1].shape[0])
    file = name.replace(" ", "-")
    return {
        f"classifier-{file}": partial(figures.contours, grids, data.points, data.labels, _EXTENT),
        f"adjacency-{file}": partial(plots.adjacency, old[1], new[1]),
        f"topology-{file}": partial(figures.topology, {"before": old[1], "after": new[1]}, max(1, last - 19), last),
        f"last-layer-{file}": partial(figures.stems, {"before": old[2], "after": new[2]}),
    }


@torch.no_grad()
def _classes(model: nn.Module, state: Mapping[str, Tensor] | None) -> Tensor:
    """Probability of class 1 on the drawing's grid, with other weights if given."""
    side = 201
    grid = _grid(side)
    outputs = model(grid) if state is None else torch.func.functional_call(model, dict(state), (grid,))
    return outputs.softmax(1)[:, 1].reshape(side, side)


def _grid(side: int) -> Tensor:
    ticks = torch.linspace(-_EXTENT, _EXTENT, side)
    up, across = torch.meshgrid(ticks, ticks, indexing="ij")
    return torch.stack([across.flatten(), up.flatten()], dim=1)
