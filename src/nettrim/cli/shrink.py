"""`nettrim shrink`: the same function as a smaller dense network."""

from __future__ import annotations

import filecmp
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from safetensors.torch import save as save_tensors

from nettrim.cli import screen
from nettrim.cli.opening import open_model
from nettrim.cli.options import AsJson, Directory, Trust
from nettrim.cli.output import check_directory, write_whole
from nettrim.data import load_data
from nettrim.errors import InputError, should
from nettrim.models.batches import normalise_batches
from nettrim.models.shrink import Summary, shrink
from nettrim.models.state import load_into, state_of
from nettrim.saving import ONNX_ORIGINAL, ONNX_SHRUNK, SHRUNK, belongs_to_trim, holds_onnx, read_trim


def command(
    directory: Directory,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Where the smaller network goes. \\[default: shrunk.onnx or shrunk.safetensors in DIR]",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Samples to check the result on. For ONNX files random ones will do."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="For torch modules: package.module:function, as it was given to trim."),
    ] = None,
    pick_inputs: Annotated[
        bool,
        typer.Option(
            "--pick-inputs/--all-inputs",
            metavar="",
            help="Whether inputs that nobody uses are left out by a copy in front of the first layer, or read all the "
            "same, which can be faster; nettrim bench times both. \\[default: pick-inputs]",
            show_default=False,
        ),
    ] = True,
    trust_model: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Cut out the units that have nothing left to say; the smaller dense network computes the same function.

    Removed are units that are constant (the constant goes into the next bias), units that nobody reads, and inputs
    that nobody uses. The result is compared with the trimmed network before it is written.

    Examples:

      nettrim shrink trimmed

      nettrim shrink trimmed --model mynets:lenet --data test.npz
    """
    check_directory(directory)
    example = None if data is None else load_data(data).inputs
    onnx = holds_onnx(directory)
    target = output or directory / (ONNX_SHRUNK if onnx else SHRUNK)
    _check_target(target, directory, ONNX_SHRUNK if onnx else SHRUNK)
    if onnx:
        from nettrim.cli.onnx_files import shrink_to  # noqa: PLC0415  # an extra

        summary = shrink_to(directory, example, target, pick_inputs=pick_inputs)
    else:
        summary = _shrink_module(directory, model, example, target, trust=trust_model, pick_inputs=pick_inputs)
    if as_json:
        screen.show_json({**summary.to_dict(), "changed": summary.changed, "file": str(target)})
    else:
        print(summary if summary.changed else f"{summary}\nNothing could be removed exactly.")
        screen.say(f"Written to {target}.", "dim")


def _check_target(target: Path, directory: Path, usual: str) -> None:
    """Refuse before the work a file of another kind, of a saved trim, or the network that was trimmed itself."""
    suffix = Path(usual).suffix
    if target.suffix != suffix:
        raise InputError(should("--output", f"a file that ends in {suffix}", f"{str(target)!r}"))
    if belongs_to_trim(target):
        raise InputError(should("--output", "no file of a saved trim", f"{str(target)!r}", "Choose another name."))
    original = directory / ONNX_ORIGINAL
    if target.is_file() and original.is_file() and filecmp.cmp(target, original, shallow=False):
        got = f"{str(target)!r}, the network that was trimmed"
        raise InputError(should("--output", "a new file, or one of an earlier shrink", got, "Choose another name."))


def _shrink_module(
    directory: Path, model: str | None, example: Any, target: Path, *, trust: bool, pick_inputs: bool
) -> Summary:
    """A torch module's smaller form: its tensors, and in the file's header how to cut the module to their shapes."""
    saved = read_trim(directory)
    if model is None or example is None:
        missing = "--model" if model is None else "--data"
        cure = "A torch module is built by its function, and run once: --model package.module:function --data FILE."
        raise InputError(should(missing, "given for torch modules", "none", cure))
    module = open_model(model, trust=trust).module
    if module is None:
        raise InputError(should("--model", "the module that was trimmed", f"the ONNX file {model!r}"))
    trimmed = load_into(module, saved.tensors, saved.plan)
    found = shrink(trimmed, normalise_batches(example, model=trimmed)[0], pick_inputs=pick_inputs)
    header = {"nettrim.shrunk": json.dumps(found.plan), "nettrim.structure": json.dumps(dict(saved.plan))}
    write_whole(target, save_tensors(state_of(found.module), header))
    return found.summary
