"""Bounds for networks that are no chain: errors carried along a graph of layers, sums, and maps with a known constant.

Pure functions of numbers; nothing here knows a model. The proof is in docs/bounds.md, section 7.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nettrim.certificates.network import Link


@dataclass(frozen=True)
class Step:
    """How the error of one value follows from those of others.

    A step without a layer maps `inputs` with the Lipschitz constant `factor` each: their errors add up, or, when the
    map puts them side by side (`joined`), their squares do. A step with a layer gives that layer's responses:
    `inputs[0]` is what its weight is applied to, the others are branches added before the activation; `factor` is the
    constant of what stands between the responses and `output` (a pool).
    """

    output: int
    inputs: tuple[int, ...]
    factor: float = 1.0
    joined: bool = False
    layer: str | None = None
    place: int = 0  # of the layer's product in the order of execution, in which a cascade trims


@dataclass(frozen=True)
class Flow:
    """A network as steps in order of execution; a value that no step gives is the same in both networks."""

    steps: tuple[Step, ...]
    output: int | None  # None: the same in both networks
    repeats: Mapping[str, int]  # by layer: how many patches one entry of its input can be part of

    @property
    def shared(self) -> frozenset[str]:
        """Layers that are applied at several places."""
        names = [step.layer for step in self.steps if step.layer is not None]
        return frozenset(name for name in names if names.count(name) > 1)


def graph_bound(flow: Flow, links: Mapping[str, Link]) -> float:
    """A bound on ||Y^ - Y||_F at the flow's output (docs/bounds.md, eq. 13-15).

    links: of every layer in the flow; norms are of the whole linear map, for a convolution with its `repeats`. A layer
    of scheme "cascade" must not be among `flow.shared`: its distance was measured before all its inputs were final.
    """
    return _errors(flow.steps, links, frozenset()).get(flow.output, 0.0) if flow.output is not None else 0.0


def _errors(steps: Sequence[Step], links: Mapping[str, Link], untrimmed: frozenset[str]) -> dict[int, float]:
    """A bound for every value, while the layers in `untrimmed` still have their original weights."""
    errors: dict[int, float] = {}
    above: dict[int, frozenset[str]] = {}  # the layers that a value depends on
    places = {step.layer: step.place for step in steps if step.layer is not None}
    for index, step in enumerate(steps):
        given = [errors.get(value, 0.0) for value in step.inputs]
        found = frozenset().union(*(above.get(value, frozenset()) for value in step.inputs))
        if step.layer is None:
            error = math.hypot(*given) if step.joined else math.fsum(given)
        else:
            link, found = links[step.layer], found | {step.layer}
            source, branches = given[0], given[1:]
            if step.layer in untrimmed:
                error = link.norm_before * source + math.fsum(branches)
            elif link.scheme != "cascade":
                error = link.norm * source + math.fsum(branches) + link.distance
            else:
                later = frozenset(name for name, place in places.items() if place > step.place)
                now = (above, errors)
                error = link.distance + _moved_since(steps[:index], links, untrimmed, later, step.inputs[1:], *now)
        errors[step.output] = step.factor * error
        above[step.output] = found
    return errors


def _moved_since(
    before: Sequence[Step],
    links: Mapping[str, Link],
    untrimmed: frozenset[str],
    later: frozenset[str],
    branches: Sequence[int],
    above: Mapping[int, frozenset[str]],
    errors: Mapping[int, float],
) -> float:
    """How far branches can be from what they were when a cascade layer's distance was measured (eq. 15).

    A branch with layers that are trimmed later was then as far from the original as with their original weights, and is
    as far from it now as its present bound says.
    """
    stale = [value for value in branches if not later.isdisjoint(above.get(value, frozenset()))]
    if not stale:
        return 0.0
    then = _errors(before, links, untrimmed | later)
    return math.fsum(then.get(value, 0.0) + errors.get(value, 0.0) for value in stale)
