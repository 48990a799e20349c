"""Finished parts of an experiment as files, so that an interrupted run goes on where it stopped.

A part ("cell") is one trained network, one trimmed network or one cell of a table: numbers in JSON, arrays in
safetensors beside them. A file counts only while the settings it was made with are the present ones.

The numbers of all parts stand in one small file beside a run's page, too: where only that is left of a run, on another
machine or in a clone, the run goes on from it, and arrays are made again where something needs them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from nettrim.files import atomic_write

FORMAT = 1
RECORD = "parts.json"  # beside the page


@dataclass(frozen=True, eq=False)
class Cell:
    """The outcome of one part."""

    numbers: Mapping[str, Any] = field(default_factory=dict)  # whatever JSON can hold
    arrays: Mapping[str, Tensor] = field(default_factory=dict)
    seconds: float | None = 0.0  # None: not known
    made_by: str = ""  # version and commit
    missing: tuple[str, ...] = ()  # names of arrays that a record tells of but does not hold

    @property
    def told(self) -> Cell:
        """What a record holds of it."""
        return replace(self, arrays={}, missing=tuple(sorted(self.arrays)))

    @property
    def described(self) -> dict[str, Any]:
        """All but the arrays themselves, for JSON."""
        return {
            "seconds": None if self.seconds is None else round(self.seconds, 3),
            "made_by": self.made_by,
            "arrays": sorted({*self.arrays, *self.missing}),
            "numbers": self.numbers,
        }


class Absent(Mapping[str, Tensor]):
    """Arrays that are made when they are first asked for."""

    def __init__(self, names: tuple[str, ...], make: Callable[[], Mapping[str, Tensor]]) -> None:
        self._names, self._make = names, make

    @cached_property
    def _present(self) -> Mapping[str, Tensor]:
        return self._make()

    def __getitem__(self, name: str) -> Tensor:
        return self._present[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def settings_digest(settings: Mapping[str, Any]) -> str:
    """A short digest of settings: equal for equal settings, whatever their order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Checkpoints:
    """The cells of one run in one folder."""

    folder: Path
    digest: str

    def read(self, key: str) -> Cell | None:
        """A finished cell, from its files or else from the record, None where there is none that was made with these
        settings and can be read."""
        return self._kept(key) or self.record.get(key)

    @cached_property
    def record(self) -> Mapping[str, Cell]:
        """The cells that the file beside the page held at first."""
        return self._read_record()

    def _read_record(self) -> Mapping[str, Cell]:
        """The cells in the file beside the page, made with these settings; empty where there is none to be read."""
        try:
            data = json.loads(self._record_file.read_text(encoding="utf-8"))
            if data["format"] != FORMAT or data["digest"] != self.digest:
                return {}
            return {key: _cell(part) for key, part in data["parts"].items() if _whole(part)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def write_record(self, cells: Mapping[str, Cell]) -> None:
        """Write the file beside the page: what it holds by now, and `cells`."""
        parts = {key: cell.described for key, cell in sorted({**self._read_record(), **cells}.items())}
        data = {"format": FORMAT, "digest": self.digest, "parts": parts}
        atomic_write(self._record_file, (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode())

    @property
    def _record_file(self) -> Path:
        return self.folder.parent / RECORD

    def _kept(self, key: str) -> Cell | None:
        """A finished cell from its files."""
        path = self._path(key, ".json")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["format"] != FORMAT or data["digest"] != self.digest or data["key"] != key:
                return None
            if not _whole(data):
                return None
            cell = _cell(data)
            if not cell.missing:
                return cell
            content = self._path(key, ".safetensors").read_bytes()
            if data.get("sha256", _hash(content)) != _hash(content):  # parts of earlier versions have none
                return None
            arrays = load(content)
            return replace(cell, arrays=arrays, missing=()) if set(arrays) == set(cell.missing) else None
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            return None  # absent, damaged or half written: it is made again

    def write(self, key: str, cell: Cell) -> None:
        """Keep a finished cell; the JSON file appears last and whole, so that it vouches for the arrays."""
        self.folder.mkdir(parents=True, exist_ok=True)
        data = {"format": FORMAT, "key": key, "digest": self.digest, **cell.described}
        if cell.arrays:
            arrays = {name: array.detach().cpu().contiguous().clone() for name, array in cell.arrays.items()}
            content = save(arrays)
            atomic_write(self._path(key, ".safetensors"), content)
            data["sha256"] = _hash(content)
        atomic_write(self._path(key, ".json"), json.dumps(data, indent=1).encode())

    def _path(self, key: str, suffix: str) -> Path:
        plain = re.sub(r"[^A-Za-z0-9._=+-]+", "_", key)
        return self.folder / f"{plain}-{hashlib.sha256(key.encode()).hexdigest()[:6]}{suffix}"


def _whole(part: Any) -> bool:
    """Whether a part as read from JSON has all that a cell needs, of the right types; if not it is made again."""
    return (
        isinstance(part, dict)
        and isinstance(part.get("numbers"), dict)
        and bool(part["numbers"])
        and isinstance(part.get("seconds", ""), int | float | None)
        and isinstance(part.get("made_by"), str)
        and isinstance(part.get("arrays"), list)
        and all(isinstance(name, str) for name in part["arrays"])
    )


def _cell(part: Mapping[str, Any]) -> Cell:
    """The cell that a whole part tells of, its arrays missing."""
    seconds = part["seconds"]
    return Cell(
        part["numbers"], {}, None if seconds is None else float(seconds), part["made_by"], tuple(part["arrays"])
    )


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def as_state(arrays: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The arrays whose names begin with `prefix`, without it: a module's state."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def of_state(module: torch.nn.Module, prefix: str) -> dict[str, Tensor]:
    """A module's state under a prefix."""
    return {f"{prefix}{name}": array for name, array in module.state_dict().items()}
