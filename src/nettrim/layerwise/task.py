"""What trimming one layer needs, and what it gives back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from nettrim.errors import DataError, should
from nettrim.layerwise.matrices import join_parts, row_chunks
from nettrim.models.base import Layer
from nettrim.programs import Program
from nettrim.recipe import Recipe
from nettrim.results import LayerResult


@dataclass(frozen=True, eq=False)
class LayerTask:
    """All that is needed to trim one layer, and nothing of the network it came from."""

    layer: Layer  # with its original weights
    inputs: Tensor  # (groups, samples, in): what the trimmed layer is to read
    responses: Tensor | None  # (samples, out), the original network's; None: those of `layer` at `inputs`
    offset: Tensor | None  # (samples, out), added to the pre-activations besides weight and bias
    recipe: Recipe
    scheme: str = "parallel"  # "parallel" or "cascade"
    moved: bool = False  # the inputs differ from the original network's, so eq. (7) of N gives epsilon
    kappa: float = 1.0  # risk coefficient, A section 3.3
    before_refit: Tensor | None = None  # moved: the inputs had the layer before not been refitted
    before_refit_offset: Tensor | None = None

    @property
    def name(self) -> str:
        """The layer's name, for messages."""
        return self.layer.name


@dataclass(frozen=True, eq=False)
class Piece:
    """One program of a layer: the rows `rows`, all reading the same inputs."""

    rows: slice
    program: Program
    dense: Tensor  # (rows, in [+ 1]): the original weights in the program's terms
    slack: Tensor | None = None  # (rows,) squares of the slack's positive part: what it allows beyond the ball

    @property
    def allowed(self) -> float:
        """The square of the distance that the constraint allows."""
        assert self.program.epsilon is not None
        beyond = 0.0 if self.slack is None else float(self.slack.sum())
        return float(self.program.epsilon.square().sum()) + beyond


@dataclass(frozen=True, eq=False)
class Backing:
    """What proves one piece's optimality: the select stage's weights and multipliers."""

    weight: Tensor  # (rows, in [+ 1])
    dual: Tensor | None  # (samples, rows); None where it was too large to keep


@dataclass(frozen=True)
class Totals:
    """What was measured of a layer or of some of its rows: absolute numbers, norms in the Frobenius sense."""

    objective: float  # of the select stage's weights, as is the bound
    bound: float
    violation: float  # the worst relative excess over a constraint, of these and of the weights returned
    norm: float  # of the responses
    epsilon: float
    discrepancy: float  # of the weights returned
    distance: float
    discrepancy_select: float
    distance_select: float

    @classmethod
    def over(cls, parts: Sequence[Totals]) -> Totals:
        """The totals of several parts that have no row in common."""
        values: dict[str, float] = {}
        for entry in fields(cls):
            numbers = [getattr(part, entry.name) for part in parts]
            if entry.name in ("objective", "bound"):
                values[entry.name] = math.fsum(numbers)
            else:
                values[entry.name] = max(numbers) if entry.name == "violation" else math.hypot(*numbers)
        return cls(**values)

    def relative(self, value: float) -> float:
        """`value` over the responses' norm; as it is where that is zero."""
        return value / self.norm if self.norm > 0 else value


@dataclass(frozen=True, eq=False)
class LayerOutcome:
    """A trimmed layer: the record, the weights it speaks of, and what backs it. Absolute numbers."""

    result: LayerResult
    weight: Tensor  # (out, in), in the layer's dtype
    bias: Tensor | None  # (out,)
    backing: tuple[Backing, ...]
    totals: Totals
    samples: int  # rows of the inputs: samples, or samples times positions
    moved: bool
    kappa: float
    notes: tuple[str, ...] = ()

    @property
    def proved(self) -> bool:
        """Whether the multipliers that prove its gap are there."""
        return all(part.dual is not None for part in self.backing)

    @property
    def distance(self) -> float:
        """Of the returned weights' pre-activations to the preimages."""
        return self.totals.distance

    def selected(self, layer: Layer) -> tuple[Tensor, Tensor | None]:
        """The select stage's weight (out, in) and bias."""
        return join_parts(layer, [part.weight for part in self.backing])


def is_finite(array: Tensor) -> bool:
    """Whether all entries of (..., rows, columns) are finite; read in chunks of rows."""
    parts = array.reshape(-1, *array.shape[-2:]) if array.ndim > 2 else array[None]
    return all(
        bool(torch.isfinite(part[chunk]).all())
        for part in parts
        for chunk in row_chunks(part.shape[0], part[:1].numel())
    )


def check_finite(task: LayerTask) -> None:
    """Refuse samples that are not finite. Raises DataError naming the layer."""
    named = {"inputs": task.inputs, "responses": task.responses, "offset": task.offset}
    for what, array in named.items():
        if array is not None and not is_finite(array):
            cure = "Check the model's weights and the scale of the data."
            raise DataError(
                should(
                    "data",
                    "such that every layer computes finite numbers",
                    f"NaN or infinity in the {what} of layer {task.name!r}",
                    cure,
                )
            )
