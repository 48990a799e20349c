"""A section 6: trimming on the validation set, hybrid schemes, and other penalties."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from nettrim.experiments.checkpoints import Cell
from nettrim.experiments.context import Context, Findings, Source, Table
from nettrim.experiments.image_nets import tested, trained
from nettrim.experiments.mnist import Images, load_images
from nettrim.experiments.pruning import OURS, PAPER, discrepancy, prune
from nettrim.experiments.verdicts import Claim
from nettrim.programs.penalties import L1, ElasticNet, GroupL2Inputs, L1Frobenius, MaxNorm, Penalty

_METHODS = {"paper": PAPER, "default": OURS}
_SELECT = "default without refit"  # the penalty's own answer: a refit only keeps its zeros
_OPTIONS: Mapping[str, Any] = {**_METHODS, _SELECT: {**OURS, "refit": False}}
_SCHEMES: Mapping[str, Any] = {
    "parallel": "parallel",
    "cascade": "cascade",
    "hybrid": {"0": "parallel", "2": "parallel", "*": "cascade"},  # the last layer alone mends what the others did
}
_PENALTIES: Mapping[str, Penalty] = {
    "l1": L1(),
    "elastic net": ElasticNet(ridge=1.0),
    "l1 + Frobenius": L1Frobenius(frobenius=1.0),
    "group l2 by input": GroupL2Inputs(),
    "max norm": MaxNorm(),
}


def data_source(options: Mapping[str, Any]) -> Source:
    """The data that these options ask for, and whether it is the papers\' own."""
    return load_images(options["stand_in"]).source


def run(context: Context) -> Findings:
    """One network, trimmed on either set, in three schemes, and with five penalties."""
    options = context.options
    images = load_images(options["stand_in"])
    data = images.first(options["samples"], options["tests"])
    held = slice(options["samples"], options["samples"] + options["validation"])
    sets = {"training set": data.train, "validation set": images.train[held]}
    network, cell = trained(context, data, options["hidden"], options["training"], options["seed"], "network")
    dense = network()
    found: dict[tuple[str, str, str, str], Mapping[str, Any]] = {}

    def add(method: str, calibration: str, scheme: str, penalty: str) -> None:
        key = f"{method}/{calibration}/{scheme}/{penalty}"
        make = partial(_trim, context, data, dense, sets[calibration], method, scheme, penalty)
        part = context.maybe(key, make)
        if part is not None:
            found[method, calibration, scheme, penalty] = part.numbers

    for method in _METHODS:
        for scheme in _SCHEMES:
            for calibration in sets:
                add(method, calibration, scheme, "l1")
    for penalty in ("l1", *options["penalties"]):
        add(_SELECT, "validation set", "parallel", penalty)
    rows = tuple(
        (*place, got["total"], 100 * (1 - got["total"] / got["before"]), got["inputs"], got["largest"],
         got["discrepancy"], got["test discrepancy"], got["accuracy"], got["seconds"], got["certified"])
        for place, got in found.items()
    )  # fmt: skip
    header = ("method", "trimmed on", "scheme", "penalty", "weights", "pruned (%)", "inputs used", "largest weight",
              "discrepancy there (%)", "discrepancy on the test set (%)", "test accuracy (%)", "seconds",
              "certified")  # fmt: skip
    initial = cell.numbers["accuracy"]
    table = Table("variants", f"Variants of one network (initial test accuracy {initial:.2f} %)", header, rows)
    return Findings((table,), {}, _claims(found, initial))


def _trim(
    context: Context, data: Images, dense: nn.Module, calibration: torch.Tensor, method: str, scheme: str, penalty: str
) -> Cell:
    options = context.options
    pruned = prune(
        dense, calibration.to(context.device or "cpu"), options["epsilon"], scheme=_SCHEMES[scheme],
        penalty=_PENALTIES[penalty], device=context.device, tolerance=options["tolerance"], **_OPTIONS[method],
    )  # fmt: skip
    matrices = [parameter.detach() for parameter in pruned.model.parameters() if parameter.ndim > 1]
    more = {
        "accuracy": tested(pruned.model, data, context),
        "test discrepancy": discrepancy(dense, pruned.model, data.test.to(context.device or "cpu")),
        "inputs": sum(int((matrix != 0).any(0).sum()) for matrix in matrices),
        "largest": max(float(matrix.abs().max()) for matrix in matrices),
    }
    return Cell(pruned.numbers() | more)


def _claims(found: Mapping[tuple[str, str, str, str], Mapping[str, Any]], initial: float) -> tuple[Claim, ...]:
    claims = []
    for method in _METHODS:
        large, small = (found.get((method, name, "parallel", "l1")) for name in ("training set", "validation set"))
        if large and small:
            holds = small["seconds"] < large["seconds"] and small["accuracy"] >= large["accuracy"] - 1
            told = (
                f"{large['seconds']:.0f} -> {small['seconds']:.0f} s, "
                f"{large['total']:,} -> {small['total']:,} weights, "
                f"accuracy {large['accuracy']:.2f} -> {small['accuracy']:.2f} % (initially {initial:.2f} %)"
            )
            text = f"{method}: the validation set saves work and costs less than a point against the training set."
            claims.append(Claim(text, "A section 6", holds, told))
        kept = {scheme: found.get((method, "training set", scheme, "l1")) for scheme in _SCHEMES}
        if all(kept.values()):
            told = ", ".join(
                f"{scheme} {got['total']:,} weights at {got['discrepancy']:.2f} %"
                for scheme, got in kept.items()
                if got
            )
            pure = max(kept[scheme]["discrepancy"] for scheme in ("parallel", "cascade"))  # type: ignore[index]
            holds = kept["hybrid"]["discrepancy"] <= 1.1 * pure  # type: ignore[index]
            text = f"{method}: a hybrid of the schemes keeps the discrepancy of the pure ones."
            claims.append(Claim(text, "A section 6", holds, told))
    plain = found.get((_SELECT, "validation set", "parallel", "l1"))
    for penalty, measured, told, structure in (
        ("group l2 by input", "inputs", "{} inputs used against {} with l1", "whole inputs"),
        ("max norm", "largest", "largest weight {:.3f} against {:.3f} with l1", "small weights"),
    ):
        other = found.get((_SELECT, "validation set", "parallel", penalty))
        if plain and other:
            ours, theirs = other[measured], plain[measured]
            text = f"Other penalties bring the structure they ask for: {structure}."
            claims.append(Claim(text, "A section 6", ours < theirs, told.format(ours, theirs)))
    return tuple(claims)
