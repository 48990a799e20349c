"""Two nested spirals: the H2O file where it is, else the CMU benchmark's points, made from their formula."""

from __future__ import annotations

import csv
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nettrim.errors import DataError, should
from nettrim.experiments.context import Source
from nettrim.experiments.mnist import VARIABLE, cache_folder

FILE = "h2o_spiral.csv"
_POINTS = 200
_SCALE = 6.5 / 1.4  # brings the CMU points to the H2O file's extent


@dataclass(frozen=True, eq=False)
class Spirals:
    """Points in the plane, of two classes."""

    source: Source
    points: Tensor  # (samples, 2) float32
    labels: Tensor  # (samples,) int64


def load_spirals() -> Spirals:
    """The H2O points of A section 5.1 from NETTRIM_DATA or the cache, else the CMU points.

    Raises DataError for a damaged file.
    """
    path = find_spirals()
    return cmu_spirals() if path is None else read_spirals(path)


def find_spirals() -> Path | None:
    """The H2O file, if it is in NETTRIM_DATA, in its folder `spiral`, or in the cache."""
    given = os.environ.get(VARIABLE)
    places = [Path(given), Path(given) / "spiral"] if given else []
    places += [cache_folder(), cache_folder() / "spiral"]
    return next((place / FILE for place in places if (place / FILE).is_file()), None)


def read_spirals(path: Path) -> Spirals:
    """The file with columns x, y, color. Raises DataError for another layout."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        points = [(float(row["x"]), float(row["y"])) for row in rows]
        colours = [row["color"] for row in rows]
        classes = sorted(set(colours))
        if len(points) != _POINTS or len(classes) != 2 or not all(map(math.isfinite, sum(points, ()))):
            raise ValueError(f"{len(points)} rows of {len(classes)} colours")
    except (OSError, ValueError, KeyError, TypeError) as error:
        be = f"a table x, y, color of {_POINTS} points in two colours"
        raise DataError(should(FILE, be, f"'{path}': {error}")) from error
    labels = torch.tensor([classes.index(colour) for colour in colours])
    return Spirals(Source("the H2O spirals (200 points)"), torch.tensor(points), labels)


def cmu_spirals() -> Spirals:
    """The CMU benchmark's 194 points: angle i pi / 16, radius 6.5 (104 - i) / 104, i = 0..96, and their mirrors."""
    points, labels = [], []
    for i in range(97):
        angle, radius = i * math.pi / 16, 6.5 * (104 - i) / 104 / _SCALE
        x, y = radius * math.sin(angle), radius * math.cos(angle)
        points += [(x, y), (-x, -y)]
        labels += [1, 0]
    name = (
        f"the CMU two spirals (194 points, generated), since no {FILE} was found in {VARIABLE}: not the papers' points"
    )
    return Spirals(Source(name, False), torch.tensor(points), torch.tensor(labels))
