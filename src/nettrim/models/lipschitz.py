"""How far activations carry an error: their largest slopes, on which networks' bounds rest (docs/bounds.md, section 7).

One table for both front ends, by PyTorch's names. `slope_of` rounds up, never down.
"""

from __future__ import annotations

import math

_SLOPES = {  # of softmax the norm of its Jacobian
    "relu": 1.0, "relu6": 1.0, "hardtanh": 1.0, "tanh": 1.0, "logsigmoid": 1.0, "softsign": 1.0, "clamp": 1.0,
    "clip": 1.0, "clamp_min": 1.0, "clamp_max": 1.0, "abs": 1.0, "neg": 1.0, "sigmoid": 0.25, "softmax": 0.5,
    "erf": 1.13, "gelu": 1.13, "silu": 1.1, "mish": 1.09, "hardswish": 1.5,
}  # fmt: skip
_THRESHOLD = 20.0  # of softplus: it jumps there, by 2e-9 at most with this one


def slope_of(name: str, **parameters: float) -> float | None:
    """The largest slope of an activation; None where none is known, or it has none.

    parameters: those of leaky_relu (negative_slope), prelu (its slope that is largest in size), elu and celu (alpha),
    selu (scale, alpha), hardsigmoid (slope) and softplus (threshold); what is left out has PyTorch's value.
    """
    if not all(map(math.isfinite, parameters.values())):
        return None
    given = parameters.get
    match name:
        case "leaky_relu" | "prelu":
            found = max(1.0, abs(given("negative_slope", 0.01 if name == "leaky_relu" else math.inf)))
        case "elu":
            found = max(1.0, abs(given("alpha", 1.0)))
        case "selu":
            found = abs(given("scale", 1.0508)) * max(1.0, abs(given("alpha", 1.6733)))
        case "celu":
            found = 1.0 if given("alpha", 1.0) > 0 else math.inf
        case "hardsigmoid":
            found = abs(given("slope", 1 / 6))
        case "softplus":
            found = 1.0 if given("threshold", _THRESHOLD) >= _THRESHOLD else math.inf
        case _:
            found = _SLOPES.get(name, math.inf)
    return found if math.isfinite(found) else None
