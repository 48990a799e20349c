"""The benchmark's cases, by name, the most telling first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from problems import Case, cascade_case, exact_case, layer_case, net, regularised_case, trimmed_inputs

CONSTRAINTS = ("distance", "strict")
FAST = ("SCS", "Clarabel", "published ADMM")  # the last not on wide layers, where it takes many minutes


@dataclass(frozen=True)
class Entry:
    """A case that is built when its turn comes."""

    name: str
    build: Callable[[], Case]
    rivals: tuple[str, ...] = ()
    neurons: int = 0  # that slow rivals get
    counted: bool = False  # whether the work of a solve is counted too, in a run of its own


def catalogue(rows: int) -> Iterator[Entry]:
    """All cases, with `rows` neurons of each layer (fewer where it has fewer)."""

    def one(name: str, of: str, layer: int, eps: float, constraint: str, **more: object) -> Entry:
        settings = {key: more.pop(key) for key in ("budget", "samples", "rank", "free_bias") if key in more}
        settings["rows"] = more.pop("rows", rows)
        return Entry(f"{name}-{constraint}", lambda: layer_case(net(of), layer, eps, constraint, **settings), **more)  # type: ignore[arg-type]

    for constraint in CONSTRAINTS:
        yield one("small-2-eps.05", "small", 1, 0.05, constraint, rivals=FAST, neurons=3)
    for constraint in CONSTRAINTS:
        yield one("small-1-eps.05", "small", 0, 0.05, constraint, rivals=FAST[:2], neurons=2, counted=True)
    for constraint in CONSTRAINTS:
        for layer in (1, 0):
            yield one(f"small-{layer + 1}-joint", "small", layer, 0.05, constraint, budget="layer", counted=not layer)
    for constraint in CONSTRAINTS:
        yield one("small-1-P400", "small", 0, 0.05, constraint, samples=400, counted=True)
    for constraint in CONSTRAINTS:
        for layer in (1, 0):
            yield one(f"small-{layer + 1}-P150", "small", layer, 0.05, constraint, samples=150)
    for constraint in CONSTRAINTS:
        yield one("small-1-rank64", "small", 0, 0.05, constraint, samples=2000, rank=64)
    for constraint in CONSTRAINTS:
        for layer in (1, 0):
            yield one(f"small-{layer + 1}-bias", "small", layer, 0.05, constraint, free_bias=True, counted=not layer)
    for variant in ("distance", "positive", "published"):
        yield Entry(f"small-2-cascade-{variant}", lambda variant=variant: _cascade(variant, rows))
    for layer in (1, 0):
        for eps in (0.15, 0.02):
            for constraint in CONSTRAINTS:
                name = f"small-{layer + 1}-eps.{round(100 * eps):02d}"
                yield one(name, "small", layer, eps, constraint)
    yield one("small-3-linear", "small", 2, 0.05, "distance")
    yield Entry("small-2-regularised", lambda: _regularised(rows), ("OSQP",), 2)
    for dtype in (torch.float32, torch.float64):
        name = f"small-2-exact-{str(dtype).removeprefix('torch.')}"
        yield Entry(name, lambda dtype=dtype: exact_case(net("small"), 1, dtype), ("HiGHS",), 4)
    for layer in (1, 0):
        for constraint in CONSTRAINTS:
            rivals = FAST if layer == 1 else ()
            yield one(f"digits-{layer + 1}-eps.05", "digits", layer, 0.05, constraint, rivals=rivals, neurons=3)
    for layer in (2, 1):
        for constraint in CONSTRAINTS:
            rivals = FAST[:2] if (layer, constraint) == (2, "distance") else ()
            yield one(f"deep-{layer + 1}-eps.05", "deep", layer, 0.05, constraint, rivals=rivals, neurons=1)
    for constraint in CONSTRAINTS:
        yield one("small-2-whole", "small", 1, 0.05, constraint, rows=10**6)
    yield one("small-1-whole", "small", 0, 0.05, "distance", rows=10**6, counted=True)


def scaling(kind: str) -> list[tuple[int, Callable[[], Case]]]:
    """(size, case) over a 16-fold range: distance, .05, 300 inputs; layer 2 of the small net for samples P, of the
    deep one, which has 1,000 neurons, for neurons M."""
    if kind == "P":
        return [
            (p, lambda p=p: layer_case(net("small"), 1, 0.05, "distance", samples=p))
            for p in (500 << s for s in range(5))
        ]
    return [
        (m, lambda m=m: layer_case(net("deep"), 1, 0.05, "distance", rows=m, samples=2000))
        for m in (32 << s for s in range(5))
    ]


def _cascade(variant: str, rows: int) -> Case:
    small = net("small")
    return cascade_case(small, trimmed_inputs(small, 0), 1, variant, rows)


def _regularised(rows: int) -> Case:
    return regularised_case(layer_case(net("small"), 1, 0.05, "distance", rows=rows))
