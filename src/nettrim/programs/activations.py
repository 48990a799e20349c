"""Activations, each known by the preimage of its responses.

For a response y the pre-activations that give it form an interval [lower, upper]. For every
monotone activation that is 1-Lipschitz, |sigma(z) - y| <= dist(z, [lower, upper]), which is all
that Proposition 1 and the network theorems need (docs/bounds.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nettrim.errors import InputError, near, should

Interval = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Activation:
    """A monotone, 1-Lipschitz activation.

    `apply` maps pre-activations to responses; `preimage` maps responses to the arrays (lower, upper)
    of the same shape, with infinities for half-lines. `saturates` says whether neighbouring responses
    may have preimages far apart, so that a program must not round them to the precision of its inputs.
    """

    name: str
    apply: Callable[[Tensor], Tensor]
    preimage: Callable[[Tensor], Interval]
    saturates: bool = False


def _linear() -> Activation:
    return Activation("linear", lambda z: z, lambda y: (y, y))


def _relu() -> Activation:
    def preimage(y: Tensor) -> Interval:
        return torch.where(y > 0, y, -math.inf), y.clamp(min=0)

    return Activation("relu", torch.relu, preimage)


def _clipped(low: float, high: float, name: str) -> Activation:
    if not low < high:
        raise InputError(should("activation", "a clip with low < high", repr(name)))

    def preimage(y: Tensor) -> Interval:
        return torch.where(y > low, y.clamp(max=high), -math.inf), torch.where(y < high, y.clamp(min=low), math.inf)

    return Activation(name, lambda z: z.clamp(low, high), preimage)


def _hardsigmoid() -> Activation:
    def preimage(y: Tensor) -> Interval:
        z = 6.0 * y - 3.0
        return torch.where(y > 0, z.clamp(max=3.0), -math.inf), torch.where(y < 1, z.clamp(min=-3.0), math.inf)

    return Activation("hardsigmoid", torch.nn.functional.hardsigmoid, preimage)


def _leaky(slope: float, name: str) -> Activation:
    if not 0 < slope <= 1:
        cure = "Use 'linear', which matches the pre-activations." if slope else "Use 'relu'."
        raise InputError(should("activation", "a slope in (0, 1]", repr(name), cure))

    def preimage(y: Tensor) -> Interval:
        z = torch.where(y >= 0, y, y / slope)
        return z, z

    return Activation(name, lambda z: torch.where(z >= 0, z, z * slope), preimage)


def _saturating(
    name: str, apply: Callable[[Tensor], Tensor], inverse: Callable[[Tensor], Tensor], low: float, high: float
) -> Activation:
    """A strictly increasing activation. Near a limit other than zero one rounding of the response is a wide stretch of
    pre-activations: there the preimage is all that round to the response, at the limit a half-line."""

    def preimage(y: Tensor) -> Interval:
        eps = torch.finfo(y.dtype).eps
        bottom = low + eps
        top = high - eps if math.isfinite(high) else high
        near = torch.zeros_like(y, dtype=torch.bool)
        for limit in (low, high):
            if limit != 0 and math.isfinite(limit):
                near |= (y - limit).abs() < eps ** (2 / 3)
        z = inverse(y.clamp(bottom, top))
        lower = torch.where(near, inverse((y - eps).clamp(bottom, top)), z)
        upper = torch.where(near, inverse((y + eps).clamp(bottom, top)), z)
        lower = torch.where(torch.where(near, y - eps, y) > bottom, lower, -math.inf)
        return lower, torch.where(torch.where(near, y + eps, y) < top, upper, math.inf)

    return Activation(name, apply, preimage, saturates=True)


def _softplus_inverse(y: Tensor) -> Tensor:
    return y + torch.log(-torch.expm1(-y))


_PLAIN: dict[str, Callable[[], Activation]] = {
    "linear": _linear,
    "relu": _relu,
    "relu6": lambda: _clipped(0.0, 6.0, "relu6"),
    "hardtanh": lambda: _clipped(-1.0, 1.0, "hardtanh"),
    "hardsigmoid": _hardsigmoid,
    "leaky_relu": lambda: _leaky(0.01, "leaky_relu"),
    "prelu": lambda: _leaky(0.25, "prelu"),
    "sigmoid": lambda: _saturating("sigmoid", torch.sigmoid, torch.logit, 0.0, 1.0),
    "tanh": lambda: _saturating("tanh", torch.tanh, torch.atanh, -1.0, 1.0),
    "softplus": lambda: _saturating("softplus", torch.nn.functional.softplus, _softplus_inverse, 0.0, math.inf),
}
_PARAMETRIC: dict[str, tuple[int, Callable[..., Activation]]] = {
    "hardtanh": (2, _clipped),
    "leaky_relu": (1, _leaky),
    "prelu": (1, _leaky),
}

ACTIVATIONS = tuple(_PLAIN)


def get_activation(name: str | Activation) -> Activation:
    """The activation called `name`; parameters follow colons, as in "leaky_relu:0.1" or "hardtanh:-2:2".

    Raises InputError for an unknown name, or for parameters under which it is not monotone and 1-Lipschitz.
    """
    if isinstance(name, Activation):
        return name
    family, *parameters = str(name).split(":")
    if family not in _PLAIN:
        raise InputError(should("activation", "a known activation", repr(name), near(family, _PLAIN)))
    if not parameters:
        return _PLAIN[family]()
    count, build = _PARAMETRIC.get(family, (0, None))
    if build is None or len(parameters) != count:
        raise InputError(should("activation", f"'{family}' with {count} parameters", repr(name)))
    try:
        values = [float(value) for value in parameters]
    except ValueError:
        raise InputError(should("activation", "a name with numeric parameters", repr(name))) from None
    return build(*values, name)
