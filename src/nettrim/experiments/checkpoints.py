"""Finished parts of an experiment as files, so that an interrupted run goes on where it stopped.

A part ("cell") is one trained network, one trimmed network or one cell of a table: numbers in JSON, arrays in
safetensors beside them. A file counts only while the settings it was made with are the present ones.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from nettrim.files import atomic_write

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Cell:
    """The outcome of one part."""

    numbers: Mapping[str, Any] = field(default_factory=dict)  # whatever JSON can hold
    arrays: Mapping[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    made_by: str = ""  # version and commit


def settings_digest(settings: Mapping[str, Any]) -> str:
    """A short digest of settings: equal for equal settings, whatever their order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Checkpoints:
    """The cells of one run in one folder."""

    folder: Path
    digest: str

    def read(self, key: str) -> Cell | None:
        """A finished cell, None where there is none that was made with these settings and can be read."""
        path = self._path(key, ".json")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["format"] != FORMAT or data["digest"] != self.digest or data["key"] != key:
                return None
            arrays = load_file(self._path(key, ".safetensors")) if data["arrays"] else {}
            if set(arrays) != set(data["arrays"]):
                return None
            return Cell(data["numbers"], arrays, float(data["seconds"]), data["made_by"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            return None  # absent, damaged or half written: it is made again

    def write(self, key: str, cell: Cell) -> None:
        """Keep a finished cell; the JSON file appears last and whole, so that it vouches for the arrays."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if cell.arrays:
            arrays = {name: array.detach().cpu().contiguous().clone() for name, array in cell.arrays.items()}
            atomic_write(self._path(key, ".safetensors"), save(arrays))
        data = {
            "format": FORMAT,
            "key": key,
            "digest": self.digest,
            "seconds": round(cell.seconds, 3),
            "made_by": cell.made_by,
            "arrays": sorted(cell.arrays),
            "numbers": cell.numbers,
        }
        atomic_write(self._path(key, ".json"), json.dumps(data, indent=1).encode())

    def _path(self, key: str, suffix: str) -> Path:
        plain = re.sub(r"[^A-Za-z0-9._=+-]+", "_", key)
        return self.folder / f"{plain}-{hashlib.sha256(key.encode()).hexdigest()[:6]}{suffix}"


def as_state(arrays: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The arrays whose names begin with `prefix`, without it: a module's state."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def of_state(module: torch.nn.Module, prefix: str) -> dict[str, Tensor]:
    """A module's state under a prefix."""
    return {f"{prefix}{name}": array for name, array in module.state_dict().items()}
