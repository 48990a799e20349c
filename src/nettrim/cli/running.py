"""Trimming and verifying what MODEL turned out to be, and the directory both agree on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from nettrim import api, saving
from nettrim.cli.opening import Opened
from nettrim.cli.output import write_page
from nettrim.errors import InputError, should
from nettrim.recipe import Recipe
from nettrim.report import Report
from nettrim.results import Listener


class Run(Protocol):
    """A trim that can be saved."""

    @property
    def report(self) -> Report:
        """What it did."""
        ...

    def save(self, directory: Path) -> list[str]:
        """Write the directory, whole or not at all; returns remarks."""
        ...


@dataclass(frozen=True, eq=False)
class TorchRun:
    """A trimmed module."""

    trimmed: api.Trimmed

    @property
    def report(self) -> Report:
        """What the trim did."""
        return self.trimmed.report

    def save(self, directory: Path) -> list[str]:
        """What `Trimmed.save` writes, and the page."""
        with saving.new_directory(directory) as temporary:
            self.trimmed.save(temporary)
            return write_page(self.report, temporary)


def run_trim(
    opened: Opened,
    data: Any,
    held: Any,
    recipe: Recipe,
    listener: Listener,
    device: str | None = None,
) -> Run:
    """Trim what was opened; `held` is data to measure on only, or None."""
    check_device(device)
    if opened.path is not None:
        from nettrim.cli.onnx_trim import trim_onnx  # noqa: PLC0415  # an extra

        return trim_onnx(opened, data, held, recipe, listener, device)
    assert opened.module is not None
    return TorchRun(
        api.trim(opened.module, data, recipe=recipe, holdout=held, device=device, progress=listener)
    )


def check_device(device: str | None) -> None:
    """Refuse a device that this machine lacks. Raises InputError."""
    if device is None:
        return
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise InputError(should("--device", "a device of this machine", f"{device!r} ({first})", "Use cpu.")) from error
