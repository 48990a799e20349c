"""Trimming and verifying what MODEL turned out to be, and the directory both agree on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nettrim import api, saving
from nettrim.cli.opening import Opened
from nettrim.cli.output import write_page
from nettrim.errors import InputError, near, should
from nettrim.executors import Executor, LocalExecutor, Processes, Ray, Shard
from nettrim.layerwise import check_device
from nettrim.recipe import Recipe
from nettrim.results import Listener


@dataclass(frozen=True, eq=False)
class Where:
    """Where the work runs, and where finished blocks are kept."""

    device: str | None = None
    executor: Executor | None = None  # None: whichever of this machine's fits
    checkpoint: Path | None = None
    memory_budget: int | None = None  # bytes

    @classmethod
    def of(
        cls,
        device: str | None,
        executor: str | None,
        checkpoint: Path | None,
        shard: str | None,
        memory: str | None = None,
        wait: float | None = None,
        spread: bool = False,
    ) -> Where:
        """From the words of the command line. Raises InputError for words that are not known or do not fit."""
        check_device(device, "--device")
        chosen: Executor | None = None
        if executor == "processes":
            chosen = Processes()
        elif executor == "local":
            chosen = LocalExecutor()
        elif executor is not None:
            if executor != "ray" and not executor.startswith("ray://"):
                cure = near(executor, ("local", "processes", "ray", "ray://ADDRESS"))
                known = "local, processes, ray or ray://ADDRESS"
                raise InputError(should("--executor", known, repr(executor), cure))
            chosen = Ray.parse(executor, captures=spread and shard is None)
        if shard is not None:
            if checkpoint is None:
                raise InputError(should("--shard", "given with --checkpoint FOLDER", repr(shard)))
            chosen = Shard.parse(shard, wait=wait or 0.0, executor=chosen, captures=spread)
        elif wait is not None:
            raise InputError(should("--wait", "given with --shard I/N", f"{wait:g}"))
        if spread and (chosen is None or not chosen.captures):
            cure = "In one process there is nothing to spread."
            raise InputError(should("--spread-data", "given with --executor ray or --shard I/N", "neither", cure))
        return cls(device, chosen, checkpoint, None if memory is None else parse_bytes(memory))


def parse_bytes(text: str) -> int:
    """Bytes from a size such as 800MB or 1.5 GiB. Raises InputError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", text.lower())
    size = 0
    if match is not None:
        number, prefix, binary = match.groups()
        size = int(float(number) * (1024 if binary else 1000) ** " kmgt".index(prefix or " "))
    if size < 1:
        raise InputError(should("--memory", "a size such as 800MB or 2GiB", repr(text)))
    return size


def run_trim(opened: Opened, data: Any, held: Any, recipe: Recipe, listener: Listener, where: Where) -> api.Trimmed:
    """Trim what was opened; `held` is data to measure on only, or None."""
    model: Any = opened.module
    if opened.path is not None:
        from nettrim.cli.onnx_files import read_onnx  # noqa: PLC0415  # an extra

        model = read_onnx(opened)
    return api.trim(
        model,
        data,
        recipe=recipe,
        holdout=held,
        device=where.device,
        executor=where.executor,
        checkpoint=where.checkpoint,
        memory_budget=where.memory_budget,
        progress=listener,
    )


def save_run(trimmed: api.Trimmed, directory: Path) -> list[str]:
    """Write what `Trimmed.save` writes, and the page, whole or not at all; returns remarks."""
    with saving.new_directory(directory) as temporary:
        trimmed.save(temporary)
        return write_page(trimmed.report, temporary)
