"""What came out of a trim: plain values, one record a layer and one for the whole network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, eq=False)
class LayerResult:
    """One layer: what was asked, what was reached, and what backs it.

    Every epsilon, discrepancy and distance is relative to the Frobenius norm of the layer's original responses
    on the calibration data (absolute where that norm is zero) and None for a skipped layer. The discrepancy is
    ||sigma(z) - Y||, what a user sees; it is at most the distance of z to the preimages, which is what the constraint
    limits and what the network bounds are made of (docs/bounds.md).
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    activation: str
    nonzeros_before: int
    nonzeros_after: int
    epsilon: float | None = None  # allowed, over the whole layer (strict cascade: the slack's positive part included)
    discrepancy: float | None = None  # reached by the weights returned, measured in float64
    discrepancy_select: float | None = None  # reached by the select stage, before any refit
    distance: float | None = None  # to the preimages, of the weights returned
    objective: float | None = None  # penalty of the select stage's weights
    bound: float | None = None  # no feasible weights have a smaller penalty
    gap: float | None = None  # (objective - bound) / objective
    certified: bool = False  # feasible, and gap within the tolerance asked
    scheme: str = ""  # "parallel" or "cascade"
    skipped: str | None = None  # the reason, for a layer left as it was
    neurons: dict[str, int] = field(default_factory=dict)  # how many ended in each status
    iterations: int = 0
    seconds: float = 0.0
    weight_before: Tensor | None = field(default=None, repr=False)  # (out, in), for plots
    weight_after: Tensor | None = field(default=None, repr=False)


@dataclass(frozen=True)
class NetworkResult:
    """The whole network: the theorem's bound beside what was measured. All relative."""

    bound: float | None  # None where no theorem covers the structure; `bound_reason` says why
    bound_reason: str
    discrepancy: float
    discrepancy_holdout: float | None
    theorem: str = ""  # which recursion gave the bound
    samples: int = 0
    samples_holdout: int = 0


@dataclass(frozen=True)
class TrimResult:
    """All of a trim's outcome but the model itself."""

    layers: tuple[LayerResult, ...]
    network: NetworkResult
    seconds: float = 0.0
    scheme: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Event:
    """What a trim tells whoever shows its progress."""

    kind: str  # "start", "layer" (one is finished), "done"
    finished: int  # layers finished so far
    total: int  # layers to trim
    layer: LayerResult | None = None  # the one just finished


Listener = Callable[[Event], None]
