"""What an experiment works with: its options, its data, its checkpoints, and who hears of progress."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from typing import Any

import torch

from nettrim.experiments.checkpoints import Cell, Checkpoints
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
    seconds: dict[str, float] = field(default_factory=dict)  # of every cell used, also of an earlier run
    makers: set[str] = field(default_factory=set)

    def cell(self, key: str, make: Callable[[], Cell]) -> Cell:
        """The finished cell from an earlier run, or a new one, kept as soon as it is made."""
        found = self.checkpoints.read(key)
        if found is None:
            started = time.perf_counter()
            cell = make()
            found = replace(cell, seconds=time.perf_counter() - started, made_by=self.made_by)
            self.checkpoints.write(key, found)
            self.made.append(key)
            self.say(f"{key}: {found.seconds:.1f} s{_in_short(found.numbers)}")
        self.seconds[key] = found.seconds
        self.makers.add(found.made_by)
        return found

    def wanted(self, key: str) -> bool:
        """Whether a cell, or a group of cells with at least one of its own, is among those asked for."""
        return not self.only or any(_meets(key, pattern) for pattern in self.only)

    def maybe(self, key: str, make: Callable[[], Cell]) -> Cell | None:
        """The cell if it is wanted or there from an earlier run, else None."""
        return self.cell(key, make) if self.wanted(key) or self.checkpoints.read(key) is not None else None


def _meets(key: str, pattern: str) -> bool:
    """Whether a pattern is of this cell or group, of a group around it, or of something inside it."""
    above = "/".join(pattern.split("/")[: key.count("/") + 1])
    return fnmatch(key, pattern) or fnmatch(key, f"{pattern}/*") or (above != pattern and fnmatch(key, above))


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
