"""`nettrim demo`: the main job, shown and explained."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from nettrim import demo
from nettrim.cli import screen
from nettrim.cli.options import AsJson, Quiet
from nettrim.cli.output import check_output, check_place
from nettrim.report import format as fmt
from nettrim.report.gain import gain_table


def command(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where the page and the trimmed networks go.")
    ] = Path("demo-out"),
    epsilon: Annotated[
        float, typer.Option(metavar="NUMBER", help="How far each layer's responses may move, as a fraction.")
    ] = demo.Settings.shown,
    seed: Annotated[int, typer.Option(metavar="N", help="For shuffling and training.")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", metavar="", help="Train less and draw no trade-off curve: a few seconds.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a network on 1,797 scanned digits, trim it in two ways, and explain every number. Under a minute.

    Writes one page with plots, DIR/demo.html, both trimmed networks with their certificates, and the data, so that
    the other verbs have something to work on.

    Example:

      nettrim demo -o demo-out
    """
    check_place(output)
    for scheme in demo.SCHEMES:
        check_output(output / scheme)
    settings = demo.Settings(shown=epsilon, seed=seed)
    if quick:
        settings = demo.Settings(epochs=5, epsilons=(), shown=epsilon, seed=seed)
    with _progress(quiet) as notify:
        found = demo.run(settings, notify)
    page = demo.write(found, output)
    if as_json:
        screen.show_json({scheme: trimmed.report.to_dict() for scheme, trimmed in found.trims.items()})
        return
    show(found, output, page)


def show(found: demo.Demo, output: Path, page: Path) -> None:
    """Everything that was found, in words and tables."""
    weights = sum(a * b for a, b in pairwise(demo.SIZES))
    _heading("1. A trained network")
    _say(
        f"scikit-learn's 1,797 scanned digits of 8 x 8 pixels; {len(found.digits.inputs):,} to train and calibrate on, "
        f"{len(found.digits.test_inputs)} for testing only."
    )
    _say(
        f"A {'-'.join(map(str, demo.SIZES))} ReLU network with {weights:,} weights, trained in "
        f"{fmt.duration(found.training_seconds)}, reads {100 * found.accuracy:.1f} % of the test scans right."
    )
    for number, (scheme, trimmed) in enumerate(found.trims.items(), 2):
        _heading(f"{number}. Trimmed, {scheme} scheme")
        _say(demo.EXPLAINED[scheme])
        if number == 2:
            _say(
                "Each layer gets the weights of least l1 norm whose responses move by at most epsilon "
                f"({found.settings.shown:g} of their norm); gap is the proved distance from the least there is."
            )
        screen.show_report(trimmed.report)
    _heading("4. What a theorem promises, what was measured")
    _say("The bound covers the calibration scans; on the held-out ones there is no promise, so it is measured.")
    screen.show_table(*_bounds(found))
    _heading("5. What was gained in truth, measured on this machine")
    _say("Zeros alone make nothing faster; shrinking cuts out the units that have nothing left to say, exactly.")
    for scheme, trimmed in found.trims.items():
        gain = gain_table(trimmed.report.gain)
        if gain is not None:
            rows = [(title, *cells, change) for title, cells, change in gain.rows]
            screen.show_table((scheme, *gain.stages, "change"), rows, (False, *[True] * len(gain.stages), False))
            _note(gain.note)
            _note(f"Shrunk: {_cut(found, scheme)}.")
    if found.settings.epsilons:
        _heading("6. Accuracy against sparsity")
        _say("A larger epsilon asks less of each layer: fewer weights are left, and more is lost.")
        screen.show_table(*_curve(found))
    _heading("Where to look next")
    _say(f"{page} has all of this with plots. It took {found.seconds:.0f} s.")
    _say(f"Check the certificates yourself:  nettrim verify {output / 'cascade'} --data {output / demo.CALIBRATION} "
         f"--model nettrim.demo:network --weights {output / demo.DENSE}")  # fmt: skip


def _bounds(found: demo.Demo) -> tuple[tuple[str, ...], list[tuple[str, ...]], tuple[bool, ...]]:
    header = ("scheme", "bound", "measured, calibration", "measured, held-out", "certified layers")
    rows = []
    for scheme, trimmed in found.trims.items():
        network, layers = trimmed.report.network, trimmed.report.trimmed
        certified = f"{sum(layer.certified for layer in layers)} of {len(layers)}"
        numbers = (network.bound, network.discrepancy, network.discrepancy_holdout)
        rows.append((scheme, *(fmt.percent(number) for number in numbers), certified))
    return header, rows, (False, True, True, True, True)


def _curve(found: demo.Demo) -> tuple[tuple[str, ...], list[tuple[str, ...]], tuple[bool, ...]]:
    header = ("epsilon", *(f"{scheme}: {what}" for scheme in found.trims for what in ("sparsity", "accuracy")))
    points = {(p["scheme"], p["epsilon"]): p for p in next(iter(found.trims.values())).report.tradeoff}
    rows = []
    for epsilon in sorted({epsilon for _, epsilon in points}):
        here = [points[scheme, epsilon] for scheme in found.trims]
        cells = (cell for p in here for cell in (fmt.percent(p["sparsity"]), fmt.percent(p["accuracy"])))
        rows.append((fmt.setting(epsilon) if epsilon else "(dense)", *cells))
    return header, rows, (True,) * len(header)


def _cut(found: demo.Demo, scheme: str) -> str:
    """What exact shrinking made of each layer."""
    layers = (f"{_shape(layer.before)} -> {_shape(layer.after)}" for layer in found.shrunk[scheme].layers)
    return "layers " + ", ".join(layers)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _note(text: str) -> None:
    screen.out().print(Text(text, style="dim"))


def _heading(text: str) -> None:
    console = screen.out()
    console.print()
    console.print(Text(text, style="bold cyan"))
    if not console.is_terminal:
        console.print("=" * len(text))


def _say(text: str) -> None:
    screen.out().print(Text(text))


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[demo.Step], None]]:
    """A bar on a terminal; elsewhere a line whenever something else begins."""
    if quiet:
        yield lambda step: None
    elif not sys.stderr.isatty():
        said: set[str] = set()

        def tell(step: demo.Step) -> None:
            if step.text not in said:
                said.add(step.text)
                print(f"[{step.done}/{step.total}] {step.text}", file=sys.stderr, flush=True)

        yield tell
    else:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        with Progress(*columns, console=screen.err(), transient=True) as bar:
            job = bar.add_task("starting", total=None)
            yield lambda step: bar.update(job, description=step.text, completed=step.done, total=step.total)
