"""What a verb shows: colour on a terminal, plain text in a pipe, JSON when asked."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nettrim.progress import PlainProgress, progress_listener
from nettrim.report import Report
from nettrim.report.table import text_table
from nettrim.results import Listener


def out() -> Console:
    """Standard output; wide enough for every table when it is not a terminal."""
    return _console(sys.stdout.isatty(), stderr=False)


def err() -> Console:
    """Standard error: remarks and progress."""
    return _console(sys.stderr.isatty(), stderr=True)


def say(text: str, style: str = "") -> None:
    """A remark on standard error; never read as markup, since it may hold names from files."""
    err().print(Text(text, style=style), soft_wrap=True)


@contextmanager
def results_only() -> Iterator[None]:
    """Standard output is for results: what a user's own module prints goes to standard error."""
    with redirect_stdout(sys.stderr):
        yield


def show_json(data: Mapping[str, Any]) -> None:
    """A dictionary on standard output."""
    print(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False))


def show_report(report: Report) -> None:
    """A report's table on standard output."""
    console = out()
    if console.is_terminal:
        console.print(report.rich())
    else:
        print(report)


def show_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool], console: Console | None = None
) -> None:
    """A table: boxed on a terminal, aligned columns elsewhere."""
    console = console or out()
    if not console.is_terminal:
        console.print("\n".join(text_table(header, rows, right)), markup=False, highlight=False, soft_wrap=True)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title, to_right in zip(header, right, strict=True):
        table.add_column(title, justify="right" if to_right else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


@contextmanager
def showing_progress(quiet: bool) -> Iterator[Listener]:
    """A listener for a trim: a bar on a terminal, a line a layer elsewhere, nothing when quiet."""
    if quiet or sys.stderr.isatty():
        with progress_listener(not quiet) as listener:
            yield listener
    else:
        yield PlainProgress(sys.stderr)


def _console(terminal: bool, *, stderr: bool) -> Console:
    return Console(stderr=stderr, highlight=False) if terminal else Console(stderr=stderr, highlight=False, width=160)
