"""`nettrim bench`: what models take on disk and in time, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nettrim.cli import screen
from nettrim.cli.opening import open_model
from nettrim.cli.options import AsJson, External, Trust, Weights
from nettrim.data import load_data
from nettrim.errors import InputError, should
from nettrim.gain import bench, bench_table
from nettrim.gain.latency import BATCHES
from nettrim.saving import ONNX_MODEL


def command(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help=".onnx files, directories that nettrim trim wrote for them, or package.module:function.",
            show_default=False,
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Samples to run on; for .onnx files random numbers will do."),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(metavar="N", min=1, help="Samples a run; several times. \\[default: 1, 16, 256]")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Of every engine. \\[default: one a core]")
    ] = None,
    seconds: Annotated[float, typer.Option(metavar="NUMBER", min=0.0, help="To measure each batch size for.")] = 1.0,
    break_even: Annotated[
        bool,
        typer.Option(
            "--break-even/--no-break-even", metavar="", help="Also look for the sparsity at which a sparse kernel wins."
        ),
    ] = True,
    weights: Weights = None,
    trust_model: Trust = False,
    allow_external_data: External = False,
    as_json: AsJson = False,
) -> None:
    """Measure size and speed truthfully: against the best dense engine here, and "no gain" where there is none.

    Bytes dense, as bit mask and values, as CSR and compressed; latency by PyTorch, ONNX Runtime, a sparse kernel, and
    after exact shrinking, in turns; and from which sparsity on a sparse kernel wins.

    Examples:

      nettrim bench model.onnx trimmed/model.onnx

      nettrim bench mynets:lenet --weights trimmed --data test.npz --batch 1 --json
    """
    named: dict[str, Any] = {}
    for name in models:
        inside = Path(name) / ONNX_MODEL
        opened = open_model(
            str(inside) if inside.is_file() else name,
            weights if ":" in name else None,
            trust=trust_model,
            external=allow_external_data,
        )
        if opened.path is not None:
            from nettrim.cli.onnx_files import read_onnx  # noqa: PLC0415  # an extra

            named[name] = read_onnx(opened)
        else:
            named[name] = opened.module
            if data is None:
                raise InputError(should("--data", "given for Python models: samples to run on", "none"))
    example = None if data is None else load_data(data).inputs
    rows = bench(
        named,
        example,
        batches=tuple(batch) if batch else BATCHES,
        thread_count=threads,
        seconds=seconds,
        find_break_even=break_even,
    )
    if as_json:
        screen.show_json({"rows": rows})
    else:
        print(bench_table(rows))
