"""A table 3, figures 6 and 7: networks of 1024 neurons a layer on few MNIST samples, one neuron a cluster."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nettrim.experiments import figures
from nettrim.experiments.checkpoints import Cell, as_state, of_state
from nettrim.experiments.context import Context, Findings, Source, Table
from nettrim.experiments.image_nets import trained
from nettrim.experiments.mnist import Images, load_images
from nettrim.experiments.noise import noisy, robustness
from nettrim.experiments.pruning import OURS, PAPER, count_weights, discrepancy, prune, weight_sizes
from nettrim.experiments.training import accuracy
from nettrim.experiments.verdicts import Claim

_METHODS = {"paper": PAPER, "default": OURS}
_PIXELS = {"as they are": "", "standardised": " standardised"}  # how pixels reach the network, and how parts tell it
_FIRST = "layer 1"  # the paper's method on the first layer, where the whole network has not run
_MARKS = ("CA", "CA (5% noise)", "CA (10% noise)")
_HEADER = ("samples", "pixels", "weights", "epsilon by layer", "SR 1", "SR 2", "SR 3", "SR 4", "discrepancy (%)",
           *_MARKS)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Combination:
    """A network put together from layers that were trimmed apart, at one epsilon each."""

    epsilons: tuple[float, ...]
    model: nn.Module
    weights: tuple[int, ...]
    discrepancy: float
    validated: float  # accuracy in percent on the samples that choose


def data_source(options: Mapping[str, Any]) -> Source:
    """The data that these options ask for, and whether it is the papers\' own."""
    return load_images(options["stand_in"]).source


def run(context: Context) -> Findings:
    """Each sample count: three epsilons, the combination of layers that validates best, and noise."""
    options, device = context.options, context.device or "cpu"
    images = load_images(options["stand_in"])
    rows, numbers, claims, notes = [], {}, [], []
    panels: dict[str, dict[str, tuple[Sequence[float], Sequence[float]]]] = {}
    drawings: dict[str, Any] = {}
    sizes = zip(options["samples"], options["hidden"], strict=True)
    for (count, hidden), (pixels, suffix) in itertools.product(sizes, _PIXELS.items()):
        key = f"P={count}{suffix}"
        if not context.wanted(key) and context.checkpoints.read(f"{key}/trained") is None:
            continue
        data = images.first(count, options["tests"])
        network, _ = trained(context, data, hidden, options["training"], options["seed"], key, as_h2o=bool(suffix))
        dense, data = network(), data.to(device)
        _drop_constant_inputs(dense, data.train)
        states = {method: _parts(context, data, dense, key, method) for method in _METHODS}
        told, layers = "the paper's method, chosen", _layers(dense)
        if not states["paper"]:  # the whole may take an hour, the first layer minutes
            states["paper"], told = _parts(context, data, dense, key, _FIRST), "the paper's method, layer 1 alone"
            layers = layers[:1]
        notes += [
            f"{key}, {method}, epsilon {epsilon:g}: not certified in every layer."
            for method, found in states.items() for epsilon, part in found.items() if not part.numbers["certified"]
        ]  # fmt: skip
        if not states["paper"]:
            continue
        missing = [f"{epsilon:g}" for epsilon in options["epsilons"] if epsilon not in states["paper"]]
        if missing:
            notes.append(f"{key}: epsilon {', '.join(missing)} has not run; the choice is among the others.")
        held = slice(count, count + options["validation"])
        choose = images.train[held].to(device), images.train_labels[held].to(device)
        combined = {method: list(_combine(dense, layers, data, found, choose)) for method, found in states.items()}
        paper = max(combined["paper"], key=lambda one: (one.validated, -sum(one.weights)))
        named = {"trained": None, told: paper} | _ours(combined["default"], paper)
        levels, marked = options["noise"], {}
        for name, one in named.items():
            model = dense if one is None else one.model
            weights = count_weights(model)
            shares = [n / size for n, size in zip(weights, weight_sizes(model), strict=True)]
            marks = robustness(model, data.test, data.test_labels, [0.0, 0.05, 0.1], options["draws"])
            marked[name] = marks
            chosen = None if one is None else ", ".join(f"{epsilon:g}" for epsilon in one.epsilons)
            padded = [*shares, None, None][:4]
            rows.append((count, pixels, name, chosen, *padded, None if one is None else one.discrepancy, *marks))
            if one is None or one is paper:
                when = "before" if one is None else "after"
                numbers |= {f"{key} {when} SR {layer}": share for layer, share in enumerate(shares, 1)}
                numbers |= {f"{key} {when} {title}": mark for title, mark in zip(_MARKS, marks, strict=True)}
        panel = f"{count} samples{suffix and ','}{suffix}" + (", layer 1 trimmed" if "alone" in told else "")
        panels[panel] = {
            title: (levels, robustness(model, data.test, data.test_labels, levels, options["draws"]))
            for title, model in (("trained", dense), ("trimmed", paper.model))
        }
        claims += _claims(panel, marked["trained"], marked[told], panels[panel])
        drawings["corrected-digits"] = partial(_corrected, data, dense, paper.model, options["show"])  # the last's
    drawings["noise"] = partial(figures.curves, panels, "noise", "test accuracy (%)", columns=2)
    table = Table("table-3", "Table 3: sparsity ratio (SR) and classification accuracy (CA)", _HEADER, tuple(rows))
    return Findings((table,), numbers, tuple(claims), drawings if panels else {}, tuple(notes))


def _parts(context: Context, data: Images, dense: nn.Module, key: str, method: str) -> dict[float, Cell]:
    """What has run of a method, or is asked for, by epsilon."""
    parts = {
        epsilon: context.maybe(f"{key}/{method}/{epsilon}", partial(_trim, context, data, dense, epsilon, method))
        for epsilon in context.options["epsilons"]
    }
    return {epsilon: part for epsilon, part in parts.items() if part is not None}


def _trim(context: Context, data: Images, dense: nn.Module, epsilon: float, method: str) -> Cell:
    how = dict(_METHODS["paper" if method == _FIRST else method])
    if method == _FIRST:
        how["targets"] = _layers(dense)[:1]
    pruned = prune(
        dense, data.train, epsilon, budget="neuron", device=context.device, tolerance=context.options["tolerance"],
        **how,
    )  # fmt: skip
    return Cell(pruned.numbers(), of_state(pruned.model, ""))


def _layers(model: nn.Module) -> tuple[str, ...]:
    """The names of the layers that have weights, in order."""
    return tuple(name.rsplit(".", 1)[0] for name, parameter in model.named_parameters() if parameter.ndim > 1)


@torch.no_grad()
def _drop_constant_inputs(model: nn.Sequential, inputs: Tensor) -> None:
    """Weights of pixels that are zero in every sample do nothing; H2O, which the paper used, drops them too."""
    first = next(layer for layer in model if isinstance(layer, nn.Linear))
    first.weight[:, (inputs == 0).all(dim=0)] = 0.0


def _combine(
    dense: nn.Module, layers: Sequence[str], data: Images, found: Mapping[float, Cell], choose: tuple[Tensor, Tensor]
) -> Iterator[Combination]:
    """Every choice of one epsilon a layer: in the parallel scheme layers were trimmed apart, so all of them exist."""
    states = {epsilon: as_state(cell.arrays, "") for epsilon, cell in found.items()}
    for epsilons in itertools.product(found, repeat=len(layers)):
        model = copy.deepcopy(dense)
        for layer, epsilon in zip(layers, epsilons, strict=True):
            part = {name: tensor for name, tensor in states[epsilon].items() if name.rsplit(".", 1)[0] == layer}
            model.load_state_dict(part, strict=False)
        yield Combination(
            epsilons, model, count_weights(model), discrepancy(dense, model, data.train), accuracy(model, *choose)
        )


def _ours(combined: Sequence[Combination], paper: Combination) -> dict[str, Combination]:
    """Of our default's combinations: the sparsest not above the paper's discrepancy, and the nearest in weights."""
    if not combined:
        return {}
    within = [one for one in combined if one.discrepancy <= paper.discrepancy]
    total = sum(paper.weights)
    named = {"our default, equal sparsity": min(combined, key=lambda one: abs(sum(one.weights) - total))}
    if within:
        named["our default, at most equal discrepancy"] = min(within, key=lambda one: sum(one.weights))
    return named


def _claims(
    network: str, trained: Sequence[float], trimmed: Sequence[float], curves: Mapping[str, tuple[Any, Any]]
) -> list[Claim]:
    claims = [
        Claim(f"{network}: trimming improves the accuracy, {title}.", "A table 3", after > before,
              f"{before:.2f} -> {after:.2f} %")
        for title, before, after in zip(_MARKS, trained, trimmed, strict=True)
    ]  # fmt: skip
    gains = [after - before for before, after in zip(curves["trained"][1], curves["trimmed"][1], strict=True)]
    text = f"{network}: the gain grows with the noise."
    claims.append(
        Claim(
            text,
            "A fig. 6",
            max(gains[1:]) > max(0.0, gains[0]),
            f"gain {gains[0]:.2f} points without, up to {max(gains):.2f}",
        )
    )
    return claims


@torch.no_grad()
def _corrected(data: Images, dense: nn.Module, trimmed: nn.Module, count: int) -> str:
    """A fig. 7: digits, without noise and with, that the trained network misreads and the trimmed one reads."""
    images, titles = [], []
    for level in (0.0, 0.05, 0.1, 0.3):
        tests = data.test if level == 0 else noisy(data.test, level, 0)
        old, new = dense(tests).argmax(1), trimmed(tests).argmax(1)
        for place in ((old != data.test_labels) & (new == data.test_labels)).nonzero()[: count // 4, 0].tolist():
            images.append(tests[place].reshape(data.side, data.side).clamp(0, 1).cpu().numpy())
            titles.append(f"{old[place]} → {new[place]}")
    blank = [torch.zeros(data.side, data.side).numpy()]
    return figures.digits(images or blank, titles or ["none"])
