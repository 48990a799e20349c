"""Who shows a trim's progress: rich where it is installed and there is a terminal, plain lines, or nobody.

Everything goes to standard error; standard output stays the caller's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TextIO

from nettrim.results import Event, Listener


@contextmanager
def progress_listener(progress: bool | Listener) -> Iterator[Listener]:
    """The listener for `progress`: True chooses by the terminal, False is silent, a function receives the events."""
    if callable(progress):
        yield progress
    elif not progress or not sys.stderr.isatty():
        yield lambda event: None
    elif find_spec("rich") is None:
        yield PlainProgress(sys.stderr)
    else:
        with _rich_bar() as listener:
            yield listener


class PlainProgress:
    """One line a finished layer."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __call__(self, event: Event) -> None:
        """Write the line of a "layer" event."""
        if event.kind == "layer" and event.layer is not None:
            self.stream.write(f"[{event.finished}/{event.total}] {describe(event)}\n")
            self.stream.flush()


def describe(event: Event) -> str:
    """A finished layer in a few words."""
    layer = event.layer
    if layer is None:
        return ""
    return f"{layer.name}: {layer.nonzeros_before:,} -> {layer.nonzeros_after:,} weights in {layer.seconds:.1f} s"


@contextmanager
def _rich_bar() -> Iterator[Listener]:
    from rich.console import Console  # noqa: PLC0415  # an extra
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        job = bar.add_task("trimming", total=None)

        def show(event: Event) -> None:
            bar.update(job, total=event.total, completed=event.finished, description=describe(event) or "trimming")

        yield show
