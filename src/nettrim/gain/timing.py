"""Times that can be compared: interleaved repeats, medians, spreads."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

_LEAST = 2e-4  # seconds of one measurement: shorter runs are repeated inside it
_QUARTILES = (25, 75)


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
    """How many times faster: the median over rounds, and its quartiles (the spread)."""

    median: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Faster or slower only where the spread leaves 1 out."""
        if self.low == self.median == self.high == 1:
            return "no gain (the same dense engine on the same shapes)"
        if self.low > 1:
            return f"{self.median:.2f} x faster"
        if self.high < 1:
            return f"no gain ({1 / self.median:.2f} x slower)"
        return f"no gain ({self.median:.2f} x, between {self.low:.2f} and {self.high:.2f})"


def interleaved(runs: Mapping[str, Callable[[], Any]], *, seconds: float, rounds: int = 7) -> dict[str, Timing]:
    """Time several functions in turn, so that what disturbs the machine disturbs them all alike.

    seconds: about how long to measure in all; at least `rounds` rounds are made, whose order alternates.
    """
    inner: dict[str, int] = {}
    for name, run in runs.items():
        run()  # warm-up
        took = min(_timed(run, 1) for _ in range(2))
        inner[name] = max(1, min(1000, int(np.ceil(_LEAST / max(took, 1e-7)))))
    found: dict[str, list[float]] = {name: [] for name in runs}
    order, start = list(runs), time.perf_counter()
    while len(found[order[0]]) < rounds or time.perf_counter() - start < seconds:
        for name in order:
            found[name].append(_timed(runs[name], inner[name]))
        order = order[::-1]
    return {name: Timing(np.array(times)) for name, times in found.items()}


def ratio(slow: Timing, fast: Timing) -> Ratio:
    """How many times faster the second is, round by round."""
    quotients = slow.seconds / np.maximum(fast.seconds, 1e-12)
    low, high = np.percentile(quotients, _QUARTILES)
    return Ratio(float(np.median(quotients)), float(low), float(high))


def _timed(run: Callable[[], Any], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - start) / times
