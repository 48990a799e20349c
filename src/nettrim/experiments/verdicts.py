"""The papers' numbers, ours beside them, and a verdict for each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from nettrim.errors import InputError, should


class Verdict(StrEnum):
    """How a measured number stands to the paper's."""

    REACHED = "reached"
    BETTER = "better"
    DIFFERS = "differs"
    SET = "set"  # chosen to match the paper's, so it is no outcome
    MISSING = "not run"
    UNLIKE = "not comparable"  # another size, or other data


class Sense(StrEnum):
    """Which way is better; MATCH where neither is, SET where the run was made to have the paper's number."""

    HIGHER = "higher"
    LOWER = "lower"
    MATCH = "match"
    SET = "set"


@dataclass(frozen=True)
class Expected:
    """One number of a paper: where it stands there, which way is better, and how near counts as reached.

    `within` is absolute, in the number's own unit. `why` says why ours differs, where it is known to. `instead` is what
    the paper has in place of a number ("EMT"), and then `value` is NaN.
    """

    key: str
    value: float
    where: str
    sense: Sense = Sense.MATCH
    within: float = 0.0
    why: str = ""
    instead: str = ""


@dataclass(frozen=True)
class Compared:
    """An expected number, what was measured (None: not run), the verdict and the reason."""

    expected: Expected
    measured: float | None
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class Claim:
    """A qualitative claim of a paper, and whether the numbers confirm it."""

    text: str
    where: str
    holds: bool
    evidence: str

    @property
    def verdict(self) -> str:
        return "confirmed" if self.holds else "refuted"


def judge(expected: Expected, measured: float | None) -> Compared:
    """The verdict on one number: reached within its margin, better beyond it in the good direction, else differs.

    A number that was set is not judged, however near it came.
    """
    if measured is None or math.isnan(measured):
        return Compared(expected, None, Verdict.MISSING, "")
    if expected.sense is Sense.SET:
        return Compared(expected, measured, Verdict.SET, expected.why or "Chosen to match the paper, no outcome.")
    if math.isnan(expected.value):  # the paper's method failed there, as "EMT" says
        return Compared(expected, measured, Verdict.DIFFERS, expected.why or f"The paper has {expected.instead} here.")
    excess = measured - expected.value
    if abs(excess) <= expected.within * (1 + 1e-9):
        return Compared(expected, measured, Verdict.REACHED, "")
    if (expected.sense is Sense.HIGHER and excess > 0) or (expected.sense is Sense.LOWER and excess < 0):
        return Compared(expected, measured, Verdict.BETTER, "")
    return Compared(expected, measured, Verdict.DIFFERS, expected.why or "No reason is known.")


def compare(
    expected: Sequence[Expected], measured: Mapping[str, float], *, comparable: bool = True
) -> tuple[Compared, ...]:
    """The verdict on every expected number; `comparable` says whether size and data are the paper's.

    Raises InputError where a number is expected twice.
    """
    keys = [entry.key for entry in expected]
    doubled = {key for key in keys if keys.count(key) > 1}
    if doubled:
        raise InputError(should("expected numbers", "named once each", ", ".join(sorted(doubled))))
    judged = tuple(judge(entry, measured.get(entry.key)) for entry in expected)
    if comparable:
        return judged
    why = "Smaller than the paper's experiment, or on other data."
    return tuple(
        entry if entry.measured is None else replace(entry, verdict=Verdict.UNLIKE, reason=why) for entry in judged
    )


def in_short(compared: Sequence[Compared]) -> str:
    """How many numbers have which verdict, in a sentence; those that were set stand apart. Empty for no numbers."""
    counts = Counter(entry.verdict for entry in compared)
    given = counts.pop(Verdict.SET, 0)
    told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
    if not compared:
        return ""
    if not given:
        return f"Of {len(compared)} numbers of the paper: {told}."
    be = "is" if given == 1 else "are"
    apart = f"Of {len(compared)} numbers of the paper {given} {be} set: chosen to match, no outcome."
    return f"{apart} Of the other {len(compared) - given}: {told}." if told else apart
