"""The search for the multiplier of a joint budget, from sums that its blocks report.

The distance grows with tau = 1 / (2 lambda), nearly in proportion. So one guess is corrected in proportion, and after
that a secant is followed, both in logarithms, and kept inside the bracket.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from nettrim.layerwise import Answer

_NEAR = 0.05  # the largest relative miss of eps, on those rows that make up for it, that is left to the last step
_SHARE = 1 / 16  # of the tolerance that a miss may cost
_ROUNDS = 20  # after which the nearest that was found must do
_FLAT = 0.05  # a slope under which a secant leads nowhere
_LEAP = 8.0  # the largest factor by which lambda moves at once


def next_multiplier(answers: Sequence[Answer], epsilon: float, tolerance: float) -> float | None:
    """lambda for the next round, None when the last round's will do.

    `answers` are the sums over all blocks, one a round, oldest first, and at least one; `epsilon` > 0 is the joint
    budget, `tolerance` the relative gap that is asked for.
    """
    last = answers[-1]
    if len(answers) >= _ROUNDS or last.gap(epsilon) <= tolerance / 2:
        return None
    moving = last.square - last.settled
    miss = abs(math.sqrt(last.square) / epsilon - 1) * (last.square / moving if moving > 0 else math.inf)
    if miss <= _NEAR and last.multiplier * moving * miss**2 <= _SHARE * tolerance * last.objective:
        return None  # what the miss costs the bound, and the weights, to second order
    points = sorted((0.5 / answer.multiplier, math.sqrt(answer.square)) for answer in answers)
    below = [point for point in points if point[1] <= epsilon]
    above = [point for point in points if point[1] > epsilon]
    if below and above and below[-1][0] >= above[0][0]:
        return None  # out of order: the distances are as exact as the solver makes them
    low = below[-1][0] if below else above[0][0] / _LEAP
    high = above[0][0] if above else below[-1][0] * _LEAP
    tau = _secant([point for point in points if point[1] > 0], epsilon)
    if tau is not None and low < tau < high:
        return 0.5 / tau
    return 0.5 / (math.sqrt(low * high) if below and above else high if below else low)


def _secant(points: Sequence[tuple[float, float]], epsilon: float) -> float | None:
    """Where the line through the two points nearest to eps meets it, in logarithms; one point: in proportion."""
    nearest = sorted((abs(math.log(distance / epsilon)), tau, distance) for tau, distance in points)[:2]
    if not nearest:
        return None
    _, tau, distance = nearest[0]
    slope = 1.0
    if len(nearest) > 1:
        _, other, value = nearest[1]
        slope = math.log(distance / value) / math.log(tau / other)
    return tau * (epsilon / distance) ** (1 / slope) if slope > _FLAT else None
