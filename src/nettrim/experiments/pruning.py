"""Trimming as the papers do it and as this package does by default, and what is measured of the outcome."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nettrim.api import trim

# the papers' method, C_eps of N eq. (3) without a refit, and this package's default
PAPER: Mapping[str, Any] = {"constraint": "strict", "refit": False}
OURS: Mapping[str, Any] = {"constraint": "distance", "refit": True}
_LEAP = 2.3  # of log epsilon, the furthest that a search goes from one attempt to the next


@dataclass(frozen=True, eq=False)
class Pruned:
    """A trimmed network and what it came to, all measured on the weights themselves."""

    model: nn.Module
    epsilon: float | Mapping[str, float]
    weights: tuple[int, ...]  # nonzeros of each layer's matrix, biases apart
    discrepancy: float  # relative, of the network's output on the calibration data, in percent (A eq. 29)
    bound: float | None  # the theorem's, in percent
    gap: float  # the largest relative optimality gap of a layer
    certified: bool
    seconds: float  # of solving, all layers together
    objective: float  # sum of absolute weights (the penalty) of all layers
    before: int  # weights before
    layer_discrepancies: tuple[float, ...]  # of each layer alone, in percent
    notes: tuple[str, ...]

    @property
    def total(self) -> int:
        """Nonzero weights of all layers that were trimmed."""
        return sum(self.weights)

    def numbers(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "total": self.total,
            "before": self.before,
            "weights": list(self.weights),
            "discrepancy": self.discrepancy,
            "bound": self.bound,
            "gap": self.gap,
            "certified": self.certified,
            "seconds": round(self.seconds, 3),
            "epsilon": dict(self.epsilon) if isinstance(self.epsilon, Mapping) else self.epsilon,
            "notes": list(self.notes),
        }


def prune(model: nn.Module, data: Tensor, epsilon: float | Mapping[str, float], **options: Any) -> Pruned:
    """Trim `model` on all of `data` with the options of `nettrim.trim`, and measure.

    The trimmed network lies where `model` does, wherever the programs were solved.
    """
    trimmed = trim(model, data, epsilon=epsilon, holdout=0.0, progress=False, **options)
    result = trimmed.report.result
    layers = [layer for layer in result.layers if layer.skipped is None]
    bound = result.network.bound
    return Pruned(
        model=trimmed.model.to(next(model.parameters()).device),
        epsilon=epsilon,
        weights=tuple(layer.nonzeros_after for layer in layers),
        discrepancy=100 * result.network.discrepancy,
        bound=None if bound is None else 100 * bound,
        gap=max((layer.gap for layer in layers if layer.gap is not None), default=0.0),
        certified=all(layer.certified for layer in layers),
        seconds=math.fsum(layer.seconds for layer in layers),
        objective=math.fsum(layer.objective or 0.0 for layer in layers),
        before=sum(layer.nonzeros_before for layer in layers),
        layer_discrepancies=tuple(100 * (layer.discrepancy or 0.0) for layer in layers),
        notes=result.notes,
    )


def told(numbers: Mapping[str, Any]) -> list[str]:
    """What the trimming of a kept cell had to remark of its layers, such as a kappa that could not be kept."""
    return [note for note in numbers["notes"] if note.partition(":")[0].isdigit()]


def seek(
    attempt: Callable[[float], Pruned],
    measure: Callable[[Pruned], float],
    target: float,
    start: float,
    *,
    rising: bool = True,
    within: float = 0.03,
    most: int = 8,
) -> Pruned:
    """The attempt at the epsilon where `measure` comes nearest below (or at) the target, by a search on log epsilon.

    `rising`: whether the measure grows with epsilon. Stops within the relative margin `within` below the target, or
    after `most` attempts; the best attempt that does not exceed the target is returned, else the nearest one.
    """
    low = high = None  # the nearest (log epsilon, log measure) on either side of the epsilon that is looked for
    slope = 1.0 if rising else -1.0  # of the one in the other
    before: tuple[float, float] | None = None
    goal = math.log(max(target * (1 - within / 2), 1e-12))  # the margin's middle
    at = math.log(start)
    best: tuple[bool, float, Pruned] | None = None
    for _ in range(most):
        found = attempt(math.exp(at))
        value = measure(found)
        over = value > target
        rank = (over, abs(value - target), found)
        if best is None or rank[:2] < best[:2]:
            best = rank
        if not over and value >= target * (1 - within):
            break
        here = at, math.log(max(value, 1e-12))
        leap = _LEAP
        if before is not None:
            rise = (here[1] - before[1]) / (here[0] - before[0])
            slope = rise if rise * slope > 0 else slope
            if not rising:
                leap = min(leap, _exponential(before, here, goal))
        before = here
        if over == rising:
            high = here if high is None else min(high, here)
        else:
            low = here if low is None else max(low, here)
        if low is None or high is None:
            step = max(-leap, min(leap, (goal - here[1]) / slope))
            at += step if abs(step) > 0.02 else math.copysign(0.02, step)
        else:  # on the line between both, not too near to either
            share = (goal - low[1]) / (high[1] - low[1]) if high[1] != low[1] else 0.5
            at = low[0] + max(0.1, min(0.9, share)) * (high[0] - low[0])
    assert best is not None
    return best[2]


def _exponential(before: tuple[float, float], here: tuple[float, float], goal: float) -> float:
    """How far up log epsilon the goal lies from here if the measure falls exponentially with epsilon, as weights do.

    Their number hardly moves where epsilon is small, so that a power of epsilon fitted there falls too slowly. Infinite
    where the goal lies the other way.
    """
    old, new = math.exp(before[0]), math.exp(here[0])
    slope = (here[1] - before[1]) / (new - old)
    step = (goal - here[1]) / slope if slope < 0 else -1.0
    return math.log1p(step / new) if step > 0 else math.inf


@torch.no_grad()
def count_weights(model: nn.Module) -> tuple[int, ...]:
    """Nonzeros of every weight matrix or kernel, biases apart, in order."""
    return tuple(int(parameter.count_nonzero()) for parameter in model.parameters() if parameter.ndim > 1)


@torch.no_grad()
def weight_sizes(model: nn.Module) -> tuple[int, ...]:
    """Entries of every weight matrix or kernel, in order."""
    return tuple(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1)


@torch.no_grad()
def supports(model: nn.Module) -> dict[str, Tensor]:
    """Masks of the nonzero weights by parameter name, for fine-tuning on the support."""
    return {name: parameter != 0 for name, parameter in model.named_parameters() if parameter.ndim > 1}


@torch.no_grad()
def truncated(model: nn.Module, keep: Mapping[str, int]) -> nn.Module:
    """HPTD's truncation: a copy in which each named weight keeps only its `keep` entries of largest magnitude."""
    pruned = copy.deepcopy(model)
    for name, parameter in pruned.named_parameters():
        if name in keep:
            size = parameter.abs().flatten()
            mask = torch.zeros_like(size, dtype=torch.bool)
            mask[size.topk(keep[name]).indices] = True
            parameter.mul_(mask.reshape(parameter.shape))
    return pruned


@torch.no_grad()
def discrepancy(before: nn.Module, after: nn.Module, data: Tensor) -> float:
    """||Z - Zhat|| / ||Z|| of the outputs before the soft-max, in percent (A eq. 29)."""
    z, new = before(data).to(torch.float64), after(data).to(torch.float64)
    return 100 * float((z - new).norm() / z.norm())
