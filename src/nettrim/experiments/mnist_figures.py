"""N figures 3 and 4: which weights of the first layer stay, beside HPTD; accuracy under noise from 0 to 160 %."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nettrim.experiments import figures
from nettrim.experiments.checkpoints import Cell, as_state, of_state
from nettrim.experiments.context import Context, Findings, Source, Table
from nettrim.experiments.image_nets import tested, trained
from nettrim.experiments.mnist import Images, load_images
from nettrim.experiments.noise import robustness
from nettrim.experiments.pruning import OURS, PAPER, prune, supports, truncated
from nettrim.experiments.verdicts import Claim

_METHODS = {"trimmed": PAPER, "our default": OURS}


def data_source(options: Mapping[str, Any]) -> Source:
    """The data that these options ask for, and whether it is the papers\' own."""
    return load_images(options["stand_in"]).source


def run(context: Context) -> Findings:
    """Each network trimmed once; the first layer of the one named for the bands, noise for the others."""
    options = context.options
    images = load_images(options["stand_in"])
    drawings: dict[str, Any] = {}
    claims, rows = [], []
    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for name, column in options["networks"].items():
        if not context.wanted(name) and context.checkpoints.read(f"{name}/trained") is None:
            continue
        data = images.first(column["samples"])
        network, cell = trained(context, data, column["hidden"], column["training"], options["seed"], name)
        dense = network()
        found = {
            method: part
            for method in _METHODS
            if (part := context.maybe(f"{name}/{method}", partial(_trim, context, data, dense, column, method)))
        }
        for method, part in found.items():
            got = part.numbers
            rows.append((name, method, got["epsilon"], cell.numbers["accuracy"], got["accuracy"],
                         100 * (1 - got["total"] / got["before"]), got["discrepancy"]))  # fmt: skip
        if "trimmed" not in found:
            continue
        if column["bands"]:
            matrices = _first_layers(dense, found["trimmed"])
            drawings[f"bands-{name}"] = partial(figures.bands, matrices)
            claims += _band_claims(name, matrices, data)
        if column["noise"]:
            panels[name] = _noise(context, data, dense, found, name)
            claims += _noise_claims(name, panels[name])
    if panels:
        drawings["noise"] = partial(figures.curves, panels, "noise", "test accuracy (%)", columns=2)
    header = ("network", "method", "epsilon", "initial accuracy (%)", "accuracy (%)", "pruned (%)", "discrepancy (%)")
    tables = [Table("networks", "The networks", header, tuple(rows))]
    if panels:
        noise = [(name, line, *curve[1]) for name, lines in panels.items() for line, curve in lines.items()]
        levels = [f"{100 * level:g} %" for level in options["levels"]]
        tables.append(Table("noise", "Test accuracy (%) under noise", ("network", "weights", *levels), tuple(noise)))
    return Findings(tuple(tables), {}, tuple(claims), drawings)


def _trim(context: Context, data: Images, dense: nn.Module, column: Mapping[str, Any], method: str) -> Cell:
    pruned = prune(dense, data.train.to(context.device or "cpu"), column["epsilon"], device=context.device,
                   tolerance=context.options["tolerance"], budget=context.options["budget"],
                   **_METHODS[method])  # fmt: skip
    return Cell(pruned.numbers() | {"accuracy": tested(pruned.model, data, context)}, of_state(pruned.model, ""))


@torch.no_grad()
def _first_layers(dense: nn.Module, cell: Cell) -> dict[str, Tensor]:
    """Net-Trim's first layer, and HPTD's with as many weights."""
    name, old = next((name, parameter) for name, parameter in dense.named_parameters() if parameter.ndim > 1)
    new = as_state(cell.arrays, "")[name]
    cut = supports(truncated(dense, {name: int(new.count_nonzero())}))[name] * old
    return {"Net-Trim": new.cpu(), "HPTD, as many weights": cut.cpu()}


def _band_claims(name: str, matrices: Mapping[str, Tensor], data: Images) -> list[Claim]:
    """A band is a run of used pixels between pixels of the border; the border holds the least information."""
    power = data.train.square().mean(0)
    border = power <= power.max() * 1e-3
    kept = {method: float((matrix[:, border] != 0).float().mean()) for method, matrix in matrices.items()}
    inside = {method: float((matrix[:, ~border] != 0).float().mean()) for method, matrix in matrices.items()}
    used = (matrices["Net-Trim"] != 0).any(0)
    bands = int((used.int().diff() == 1).sum() + used[0].int())
    trim, cut = kept.values()
    told = ", ".join(
        f"{method}: {100 * kept[method]:.2f} % of border weights kept, {100 * inside[method]:.2f} % inside"
        for method in kept
    )
    return [
        Claim(f"{name}: Net-Trim empties the columns of border pixels, HPTD does not.", "N fig. 3",
              trim < 0.5 * cut, told),
        Claim(f"{name}: the empty columns leave bands, one an image row (28 with the empty rows).", "N fig. 3",
              bands >= data.side // 2, f"{bands} bands of used pixels; {int((~used).sum())} empty columns"),
    ]  # fmt: skip


def _noise(
    context: Context, data: Images, dense: nn.Module, found: Mapping[str, Cell], name: str
) -> dict[str, tuple[list[float], list[float]]]:
    levels, draws, device = context.options["levels"], context.options["draws"], context.device or "cpu"

    def marks(state: Mapping[str, Tensor] | None, key: str) -> list[float]:
        def make() -> Cell:
            model = dense
            if state is not None:  # from a file it comes to the CPU
                model = _Swapped(dense, {name: tensor.to(device) for name, tensor in state.items()})
            tests, labels = data.test.to(device), data.test_labels.to(device)
            return Cell({"accuracy": robustness(model, tests, labels, levels, draws)})

        return list(context.cell(f"{name}/noise/{key}", make).numbers["accuracy"])

    lines = {"trained": (levels, marks(None, "trained"))}
    for method, cell in found.items():
        lines[method] = (levels, marks(as_state(cell.arrays, ""), method))
    return lines


class _Swapped(nn.Module):
    """A network that computes with other weights."""

    def __init__(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.model, self.state = model, dict(state)

    def forward(self, inputs: Tensor) -> Tensor:
        """The model's outputs (samples, classes)."""
        return torch.func.functional_call(self.model, self.state, (inputs,))


def _noise_claims(name: str, lines: Mapping[str, tuple[list[float], list[float]]]) -> list[Claim]:
    gains = [new - old for old, new in zip(lines["trained"][1], lines["trimmed"][1], strict=True)]
    third = len(gains) // 3
    low, high = sum(gains[:third]) / max(1, third), sum(gains[-third:]) / max(1, third)
    return [
        Claim(f"{name}: trimming makes the network more robust to noise, the more the noise.", "N fig. 4",
              high > 0 and high > low, f"mean gain {low:.2f} points at little noise, {high:.2f} at much")
    ]  # fmt: skip
