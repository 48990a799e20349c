"""Times that can be compared: interleaved repeats in random order, medians, and when a difference is one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

_LEAST = 2e-4  # seconds of one measurement: shorter runs are repeated inside it
_QUARTILES = (25, 75)
_CONFIDENCE = 0.95
_LEAST_GAIN = 0.03  # copies of one network in one process differ by this much, however well they are timed


@dataclass(frozen=True, eq=False)
class Timing:
    """Seconds of one run: a measurement a round, warm-up left out."""

    seconds: np.ndarray  # (rounds,)

    @property
    def median(self) -> float:
        """The middle one, in seconds."""
        return float(np.median(self.seconds))

    @property
    def fastest(self) -> float:
        """The least disturbed one, in seconds: what else runs on a machine only adds to a time."""
        return float(self.seconds.min())

    @property
    def spread(self) -> tuple[float, float]:
        """The quartiles, in seconds."""
        low, high = np.percentile(self.seconds, _QUARTILES)
        return float(low), float(high)


@dataclass(frozen=True)
class Ratio:
    """How many times faster: the median over rounds, its 95 % interval, and the least ratio that counts as a gain."""

    median: float
    low: float
    high: float
    least: float = 1 + _LEAST_GAIN

    @property
    def faster(self) -> bool:
        """Whether the whole interval lies above what counts as a gain."""
        return self.low > self.least

    @property
    def slower(self) -> bool:
        """Whether it lies as far on the other side."""
        return self.high < 1 / self.least

    @property
    def change(self) -> str:
        """The verdict as a word of a table."""
        if self.faster:
            return f"{self.median:.2f} × faster"
        return f"{1 / self.median:.2f} × slower" if self.slower else "no gain"

    @property
    def verdict(self) -> str:
        """The verdict with its numbers."""
        if self.low == self.median == self.high == 1:
            return "no gain (the same dense engine on the same shapes)"
        if self.faster:
            return f"{self.median:.2f} x faster"
        if self.slower:
            return f"no gain ({1 / self.median:.2f} x slower)"
        span = f"{self.median:.2f} x, 95 % interval {self.low:.2f} to {self.high:.2f}"
        return f"no gain ({span}; above {self.least:.2f} would be one)"


def interleaved(runs: Mapping[str, Callable[[], Any]], *, seconds: float, rounds: int = 7) -> dict[str, Timing]:
    """Time several functions in turn, so that what disturbs the machine disturbs them all alike.

    seconds: about how long to measure in all; at least `rounds` rounds are made, each in a random order of its own:
    what follows itself, or follows the same neighbour every time, finds its data in the cache.
    """
    inner: dict[str, int] = {}
    for name, run in runs.items():
        run()  # warm-up
        took = min(_timed(run, 1) for _ in range(2))
        inner[name] = max(1, min(1000, int(np.ceil(_LEAST / max(took, 1e-7)))))
    found: dict[str, list[float]] = {name: [] for name in runs}
    names, start, random = list(runs), time.perf_counter(), np.random.default_rng(0)
    while len(found[names[0]]) < rounds or time.perf_counter() - start < seconds:
        for place in random.permutation(len(names)):
            found[names[place]].append(_timed(runs[names[place]], inner[names[place]]))
    return {name: Timing(np.array(times)) for name, times in found.items()}


def ratio(slow: Timing, fast: Timing, again: Timing | None = None) -> Ratio:
    """How many times faster the second is, round by round.

    again: a copy of the slow one, timed in the same rounds. What counts as a gain is more than 3 %, and more than twice
    what the copy may differ by, either way: it is one draw of a difference that means nothing, the next may be larger.
    """
    quotients = _quotients(slow, fast)
    low, high = median_interval(quotients)
    least = _LEAST_GAIN
    if again is not None:
        below, above = median_interval(_quotients(slow, again))
        least = max(least, 2 * (above - 1), 2 * (1 / below - 1) if below > 0 else math.inf)
    return Ratio(float(np.median(quotients)), low, high, 1 + least)


def median_interval(values: np.ndarray, confidence: float = _CONFIDENCE) -> tuple[float, float]:
    """An interval that holds the median of what `values` (n,) are drawn from, whatever their distribution.

    Of the ordered values the k-th and the (n + 1 - k)-th, with the largest k such that P(fewer than k of n fair coins
    show heads) <= (1 - confidence) / 2. Fewer than six values say nothing at 95 %: zero to infinity.
    """
    ordered, count = np.sort(values), len(values)
    tail, place = 0.5**count, 0
    while tail <= (1 - confidence) / 2:
        place += 1
        tail += math.exp(_log_choose(count, place) - count * math.log(2))
    return (0.0, math.inf) if place == 0 else (float(ordered[place - 1]), float(ordered[count - place]))


def _log_choose(count: int, chosen: int) -> float:
    return math.lgamma(count + 1) - math.lgamma(chosen + 1) - math.lgamma(count - chosen + 1)


def _quotients(slow: Timing, fast: Timing) -> np.ndarray:
    return slow.seconds / np.maximum(fast.seconds, 1e-12)


def _timed(run: Callable[[], Any], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - start) / times
