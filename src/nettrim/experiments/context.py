"""What an experiment works with: its options, its data, its checkpoints, and who hears of progress."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nettrim.experiments.checkpoints import Absent, Cell, Checkpoints
from nettrim.experiments.verdicts import Claim

Say = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """Where an experiment's data come from, and whether they are the papers' own."""

    name: str
    papers: bool = True


@dataclass(frozen=True)
class Table:
    """Rows under headings; `None` is shown as a dash."""

    name: str  # of the CSV file
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Findings:
    """What an experiment found; numbers go by the keys of the expected ones."""

    tables: tuple[Table, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)
    claims: tuple[Claim, ...] = ()
    figures: Mapping[str, Callable[[], str]] = field(default_factory=dict)  # name -> what draws the SVG
    notes: tuple[str, ...] = ()


@dataclass(eq=False)
class Context:
    """One run of one experiment. Not frozen: it counts the cells it has made."""

    options: Mapping[str, Any]
    checkpoints: Checkpoints
    say: Say
    quick: bool = False
    only: tuple[str, ...] = ()  # patterns of cells to make; no pattern: all
    made_by: str = ""
    device: torch.device | None = None
    made: list[str] = field(default_factory=list)
    used: dict[str, Cell] = field(default_factory=dict)  # every cell, also of an earlier run, without its arrays
    notes: list[str] = field(default_factory=list)  # for the page
    met: set[str] = field(default_factory=set)  # patterns of `only` that some cell goes by

    def cell(self, key: str, make: Callable[[], Cell]) -> Cell:
        """The finished cell from an earlier run, or a new one, kept as soon as it is made."""
        self.meet(key)
        found = self.checkpoints.read(key)
        if found is None:
            started = time.perf_counter()
            cell = make()
            found = replace(cell, seconds=time.perf_counter() - started, made_by=self.made_by)
            self.checkpoints.write(key, found)
            self.made.append(key)
            self.say(f"{key}: {found.seconds:.1f} s{_in_short(found.numbers)}")
        elif found.missing:
            found = replace(found, arrays=Absent(found.missing, partial(self._again, key, found, make)), missing=())
        self.used[key] = found.told
        return found

    def _again(self, key: str, told: Cell, make: Callable[[], Cell]) -> Mapping[str, Tensor]:
        """The arrays of a cell of which an earlier run left the numbers alone."""
        self.say(f"  {key}: made again, since an earlier run left its numbers alone")
        cell = make()
        changed = [
            f"{name} {cell.numbers[name]:.6g}, before {value:.6g}"
            for name, value in told.numbers.items()
            if isinstance(value, float) and name in cell.numbers and cell.numbers[name] != value
        ]
        if changed:
            self.notes.append(f"{key} was made again for parts that build on it: {', '.join(changed)}.")
        self.checkpoints.write(key, replace(told, arrays=cell.arrays, missing=()))
        return cell.arrays

    def wanted(self, key: str) -> bool:
        """Whether a cell, or a group of cells with at least one of its own, is among those asked for."""
        self.meet(key)
        return not self.only or any(_meets(key, pattern) for pattern in self.only)

    def meet(self, key: str) -> None:
        """Take note of the patterns that are of this cell or of a group around it: they name something."""
        self.met.update(pattern for pattern in self.only if _within(key, pattern))

    @property
    def unmet(self) -> tuple[str, ...]:
        """The patterns that no cell went by, whether made now or before."""
        return tuple(pattern for pattern in self.only if pattern not in self.met)

    def maybe(self, key: str, make: Callable[[], Cell]) -> Cell | None:
        """The cell if it is wanted or there from an earlier run, else None."""
        return self.cell(key, make) if self.wanted(key) or self.checkpoints.read(key) is not None else None


def _meets(key: str, pattern: str) -> bool:
    """Whether a pattern is of this cell or group, of a group around it, or of something inside it."""
    above = "/".join(pattern.split("/")[: key.count("/") + 1])
    return _within(key, pattern) or (above != pattern and fnmatch(key, above))


def _within(key: str, pattern: str) -> bool:
    """Whether a pattern is of this cell or group, or of a group around it."""
    return fnmatch(key, pattern) or fnmatch(key, f"{pattern}/*")


def mean(values: Sequence[float]) -> float:
    """The mean; NaN of nothing."""
    return math.fsum(values) / len(values) if values else math.nan


def deviation(values: Sequence[float]) -> float:
    """The standard deviation of a sample; 0 of fewer than two."""
    if len(values) < 2:
        return 0.0
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


def _in_short(numbers: Mapping[str, Any]) -> str:
    shown = [f"{name} {value:.4g}" for name, value in numbers.items() if isinstance(value, int | float)][:6]
    return f"  ({', '.join(shown)})" if shown else ""
