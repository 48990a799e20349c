"""`nettrim reproduce`: the papers' tables and figures, one name each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nettrim.cli import screen
from nettrim.cli.options import Quiet
from nettrim.errors import InputError, should
from nettrim.experiments.run import Reproduced, reproduce
from nettrim.experiments.settings import names, read_settings
from nettrim.experiments.verdicts import in_short
from nettrim.experiments.writing import RESULTS, shown
from nettrim.layerwise import check_device


def command(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="An experiment; --list shows them.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Where tables, figures and finished parts go. Default: reproduced/NAME.",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", metavar="", help="A small version that takes under two minutes.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only", metavar="PART", help="Run these parts alone, such as NN2-10K. May be given several times."
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="Where programs are solved, such as cuda.")
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", metavar="", help="Show the experiments.")] = False,
    quiet: Quiet = False,
) -> None:
    """Run an experiment of the papers, and compare its numbers with theirs.

    Finished parts are kept: the same command goes on where an interrupted run stopped. MNIST and the spirals are
    read from the folder in the environment variable NETTRIM_DATA, or from the cache, where MNIST is downloaded to.

    Examples:

      nettrim reproduce --list

      nettrim reproduce recovery --quick -o recovery

      nettrim reproduce mnist-table1 --only NN2-10K
    """
    if show_list:
        show_names()
        return
    if name is None:
        raise InputError(should("NAME", "an experiment", "none", "Known: " + ", ".join(names()) + "."))
    check_device(device, "--device")
    folder = output or Path("reproduced") / (f"{name}-quick" if quick else name)
    done = reproduce(
        name, folder, quick=quick, only=only or (), device=device, say=(lambda text: None) if quiet else screen.say
    )
    show(done)


def show_names() -> None:
    """What there is to reproduce, and how long it takes."""
    rows = []
    for name in names():
        settings = read_settings(name)
        times = [f"{settings.minutes[version]:g}" for version in ("quick", "full")]
        rows.append([name, settings.title, settings.source, *times])
    header = ["name", "what", "source", "quick, minutes", "full, minutes"]
    screen.show_table(header, rows, [False, False, False, True, True])


def show(done: Reproduced) -> None:
    """The verdicts, and where everything was written."""
    rows = [
        [
            entry.expected.key,
            entry.expected.instead or shown(entry.expected.value),
            shown(entry.measured),
            str(entry.verdict),
        ]
        for entry in done.compared
    ]
    if rows:
        screen.show_table(["number", "paper", "here", "verdict"], rows, [False, True, True, False])
    console = screen.out()
    for claim in done.findings.claims:
        console.print(f"{claim.verdict}: {claim.text} {claim.evidence}", markup=False, soft_wrap=True)
    told = in_short(done.compared) or "No numbers to compare."
    console.print(f"{told} See {done.folder / RESULTS}.", markup=False, soft_wrap=True)
