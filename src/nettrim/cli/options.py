"""Arguments and options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_READ, _SHOW = "How to read the model", "What to show"

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="An .onnx file, or package.module:function.", show_default=False),
]
Data = Annotated[
    Path,
    typer.Option(
        "--data",
        metavar="FILE",
        help="Samples: an .npz or .safetensors file with 'inputs' (samples, ...) and perhaps 'labels', an .npy file "
        "with the inputs alone, or a folder of such files.",
    ),
]
Directory = Annotated[
    Path,
    typer.Argument(metavar="DIR", help="A directory that nettrim trim wrote.", show_default=False),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="For package.module:function: the weights, a .safetensors file or a directory that nettrim trim wrote.",
        rich_help_panel=_READ,
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust-model",
        metavar="",
        help="Open a .pt2 file (torch.export). It can run code: only for files from people you trust.",
        rich_help_panel=_READ,
    ),
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json", metavar="", help="Print JSON on standard output, and nothing else there.", rich_help_panel=_SHOW
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", metavar="", help="No progress and no remarks.", rich_help_panel=_SHOW)
]
External = Annotated[
    bool,
    typer.Option(
        "--allow-external-data",
        metavar="",
        help="ONNX: also read tensors from files beside the model, as torch.onnx.export writes them.",
        rich_help_panel=_READ,
    ),
]
