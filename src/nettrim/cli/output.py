"""The directory of results: refused before the work where it could not be written after it, and its page."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from nettrim import saving
from nettrim.errors import InputError, should
from nettrim.files import atomic_write
from nettrim.report import Report

PAGE = saving.PAGE
_CURE = "Choose another name."


def check_output(directory: Path) -> None:
    """Refuse before the work a directory of results that could not be written after it. Raises InputError."""
    saving.check_replaceable(directory, "--output")
    check_place(directory)


def check_checkpoint(checkpoint: Path | None, directory: Path) -> None:
    """Refuse a checkpoint in the directory of results, which is replaced as a whole. Raises InputError."""
    if checkpoint is not None and checkpoint.resolve().is_relative_to(directory.resolve()):
        got = f"{str(checkpoint)!r}, in --output {str(directory)!r}"
        raise InputError(should("--checkpoint", "outside the directory of results", got, "Name a folder beside it."))


def check_place(directory: Path) -> None:
    """Refuse a directory that is no directory, or could not be written. Raises InputError."""
    above = directory.resolve()
    while not above.exists():
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK):
        got = f"{str(directory)!r} under {str(above)!r}, which is not"
        raise InputError(should("--output", "in a place that can be written", got, _CURE))


def write_page(report: Report, directory: Path) -> list[str]:
    """Write report.html where the extra is installed; else say how to get it."""
    if find_spec("matplotlib") is None or find_spec("jinja2") is None:
        return [f'No {PAGE}: it needs pip install "nettrim[report]".']
    report.to_html(directory / PAGE)
    return []


def check_directory(directory: Path) -> None:
    """Refuse what is not a directory of results. Raises InputError."""
    if not (directory / saving.INDEX).is_file():
        got = f"{str(directory)!r}" + (f", which has no {saving.INDEX}" if directory.is_dir() else "")
        raise InputError(should("DIR", "a directory that nettrim trim wrote", got))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, and the directory it lies in. Raises InputError when it cannot be written."""
    make_parent(path)
    try:
        atomic_write(path, content)
    except OSError as error:
        raise _unwritable(path, error) from error


def make_parent(path: Path) -> None:
    """The directory that a file is to lie in. Raises InputError when it cannot be made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> InputError:
    got = f"{str(path)!r} ({error.strerror})"
    return InputError(should("--output", "a file that can be written", got, "Choose another place."))
