"""`nettrim verify`: every claim of a directory, derived again from its files and the data."""

from __future__ import annotations

from typing import Annotated

import typer

from nettrim.cli import screen
from nettrim.cli.group import CHECK_FAILED
from nettrim.cli.opening import open_model
from nettrim.cli.options import AsJson, Data, Directory, Trust, Weights
from nettrim.cli.output import check_directory, is_onnx
from nettrim.data import load_data
from nettrim.errors import InputError, should
from nettrim.verifying import VerifyReport
from nettrim.verifying import verify as verify_torch


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
    found: VerifyReport
    if is_onnx(directory):
        from nettrim.cli.onnx_trim import verify_onnx  # noqa: PLC0415  # an extra

        found = verify_onnx(directory, inputs)
    else:
        if model is None:
            cure = "Only ONNX files can be checked without it: --model package.module:function --weights FILE."
            raise InputError(should("--model", "the model that was trimmed", "none", cure))
        module = open_model(model, weights, trust=trust_model).module
        if module is None:
            raise InputError(should("--model", "the module that was trimmed", f"the ONNX file {model!r}"))
        found = verify_torch(directory, module, inputs)
    if as_json:
        screen.show_json(found.to_dict())
    else:
        show(found)
    if not found.holds:
        raise typer.Exit(CHECK_FAILED)


def show(found: VerifyReport) -> None:
    """The report made anew, and the verdict."""
    screen.show_report(found.report)
    console = screen.out()
    for note in found.notes:
        console.print(f"note: {note}", markup=False, style="yellow", soft_wrap=True)
    for failure in found.failures:
        console.print(f"does not hold: {failure}", markup=False, style="red", soft_wrap=True)
    verdict = "Every claim holds." if found.holds else f"{len(found.failures)} claims do not hold."
    console.print(verdict, style="bold green" if found.holds else "bold red")
