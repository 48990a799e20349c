"""What came out of a trim: plain values, one record a layer and one for the whole network."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, eq=False)
class LayerResult:
    """One layer: what was asked, what was reached, and what backs it.

    All discrepancies and epsilons are relative to the Frobenius norm of the layer's original
    responses on the calibration data; `epsilon` is None for a skipped layer.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    activation: str
    nonzeros_before: int
    nonzeros_after: int
    epsilon: float | None = None  # asked
    discrepancy: float | None = None  # reached by the weights returned, measured in float64
    discrepancy_select: float | None = None  # reached by the select stage, before any refit
    objective: float | None = None  # penalty of the select stage's weights
    bound: float | None = None  # no feasible weights have a smaller penalty
    gap: float | None = None  # (objective - bound) / objective
    certified: bool = False  # feasible, and gap within the tolerance asked
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
