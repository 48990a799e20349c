"""`nettrim verify`: every claim of a directory, derived again from its files and the data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nettrim.cli import screen
from nettrim.cli.group import CHECK_FAILED
from nettrim.cli.opening import open_model
from nettrim.cli.options import AsJson, Data, Directory, Trust, Weights
from nettrim.cli.output import check_directory
from nettrim.data import load_data
from nettrim.errors import InputError, should
from nettrim.saving import holds_onnx
from nettrim.verifying import VerifyReport, verify


def command(
    directory: Directory,
    data: Data,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The original model, as it was given to nettrim trim. Not needed for ONNX files: the directory "
            "has a copy.",
        ),
    ] = None,
    weights: Weights = None,
    trust_model: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Check every claim of a trim again: tolerances, optimality gaps, the network's bound, discrepancies.

    No solver runs. The weights and multipliers in DIR and the data FILE that the model was trimmed with are all that
    is used, and everything is measured again in float64. Exit code 1 when a claim does not hold.

    Examples:

      nettrim verify trimmed --data calibration.npz

      nettrim verify trimmed --data calibration.npz --model mynets:lenet --weights lenet.safetensors
    """
    check_directory(directory)
    inputs = load_data(data).inputs
    original = _original(directory, model, weights, trust=trust_model)
    with screen.results_only():
        found = verify(directory, original, inputs)
    if as_json:
        screen.show_json(found.to_dict())
    else:
        show(found)
    if not found.holds:
        raise typer.Exit(CHECK_FAILED)


def _original(directory: Path, model: str | None, weights: Path | None, *, trust: bool) -> Any:
    """The model before the trim; None for the copy that an ONNX file's directory has."""
    if model is None:
        if holds_onnx(directory):
            return None
        cure = "Only ONNX files can be checked without it: --model package.module:function --weights FILE."
        raise InputError(should("--model", "the model that was trimmed", "none", cure))
    opened = open_model(model, weights, trust=trust)
    if (opened.path is not None) != holds_onnx(directory):
        raise InputError(should("--model", "the kind of model that was trimmed", repr(model)))
    return opened.module if opened.path is None else opened.path


def show(found: VerifyReport) -> None:
    """The report made anew, and the verdict."""
    screen.show_report(found.report)
    console = screen.out()
    for note in found.notes:
        console.print(f"note: {note}", markup=False, style="yellow", soft_wrap=True)
    for failure in found.failures:
        console.print(f"does not hold: {failure}", markup=False, style="red", soft_wrap=True)
    console.print(f"{found.verdict[0].upper()}{found.verdict[1:]}.", style="bold green" if found.holds else "bold red")
