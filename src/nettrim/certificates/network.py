"""Bounds on what trimming does to a whole network: Theorems 1 and 2, Proposition 2, and the recursions in their proofs.

Pure functions of numbers and matrices, in float64; nothing here knows a model or a solver. The
proofs, also for the distance constraint, are in docs/bounds.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nettrim.errors import InputError, should

SCHEMES = ("parallel", "cascade", "kept")


@dataclass(frozen=True)
class Link:
    """One layer of a plain chain, as the bounds see it. Absolute numbers, in Frobenius norm.

    `distance` belongs to the weights returned: the distance of their pre-activations to the preimages
    of the ORIGINAL responses, at the inputs the scheme used (the original network's for "parallel", the
    trimmed network's for "cascade", 0 for "kept").
    """

    name: str
    scheme: str  # "parallel", "cascade", or "kept" (weights unchanged)
    distance: float
    norm: float  # of the returned weights, without the bias: how much the layer can enlarge an error of its inputs
    norm_before: float  # the same of the original weights
    gamma: float | None = None  # cascade: inflation rate, where eq. (7) gave this layer its epsilon

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise InputError(should("scheme", "one of " + ", ".join(SCHEMES), repr(self.scheme)))
        for field in ("distance", "norm", "norm_before"):
            value = getattr(self, field)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(should(field, "a finite number >= 0", repr(value)))


def network_bounds(links: Iterable[Link]) -> tuple[float, ...]:
    """Bounds e_l >= ||Y^_l - Y_l||_F for every layer of a chain, whatever its norms and mixture of schemes.

    parallel, kept:  e_l = norm_l e_{l-1} + distance_l                       (docs/bounds.md, eq. 5)
    cascade:         e_l = min(distance_l, sqrt(gamma_l) norm_before_l e_{l-1})          (eq. 7, 8)
    with e_0 = 0. Holds for every monotone 1-Lipschitz activation and the linear last layer.
    """
    error = 0.0
    bounds = []
    for link in links:
        if link.scheme == "cascade":
            prior = math.inf if link.gamma is None else math.sqrt(link.gamma) * link.norm_before * error
            error = min(link.distance, prior)
        else:
            error = link.norm * error + link.distance
        bounds.append(error)
    return tuple(bounds)


def theorem_1(epsilons: Sequence[float]) -> float:
    """Theorem 1 and Proposition 2 (a): sum of the epsilons. Link-normalised, parallel, without refit."""
    return math.fsum(_positive("epsilons", epsilons))


def theorem_2(epsilon: float, gammas: Sequence[float], kappa: float = 1.0) -> float:
    """Theorem 2 and Proposition 2 (b): kappa eps_1 sqrt(prod gamma_l), l = 2..L. Link-normalised, cascade.

    kappa is the risk coefficient of the last layer (A, section 3.3); 1 where no risk was taken.
    """
    (epsilon,) = _positive("epsilon", (epsilon,))
    return kappa * epsilon * math.sqrt(math.prod(_positive("gammas", gammas)))


def operator_norm(weight: Tensor, repeats: int = 1) -> float:
    """Spectral norm of a weight (out, in), the bias left out, in float64.

    `repeats` is how many rows of the unfolded inputs one entry can appear in (1 for a dense layer; for a convolution,
    the number of kernel positions): unfolding enlarges a Frobenius norm by sqrt(repeats) at most.
    """
    matrix = weight.detach().to(torch.float64)
    if matrix.numel() == 0:
        return 0.0
    scale = float(matrix.abs().max())
    if scale == 0.0:
        return 0.0
    matrix = matrix / scale  # keeps the Gram matrix clear of underflow
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    largest = max(float(torch.linalg.eigvalsh(gram)[-1]), 0.0)
    return scale * math.sqrt(largest * repeats) * (1 + 1e-12)  # stays an upper bound under rounding


@dataclass(frozen=True, eq=False)
class LinkNormalized:
    """A link-normalised chain: same function up to a factor, ||W_l||_1 = 1 for every layer (A, Definition 1)."""

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]
    scales: tuple[float, ...]  # c_l: what each weight was divided by

    @property
    def factor(self) -> float:
        """The original network's outputs divided by this one's: the product of the scales."""
        return math.prod(self.scales)


def link_normalize(
    weights: Sequence[Tensor], biases: Sequence[Tensor | None] | None = None, *, count_bias: bool = False
) -> LinkNormalized:
    """Rescale a ReLU chain so that the absolute weights of each layer sum to one (N, section 2).

    Layer l's weight is divided by c_l = ||W_l||_1 and its bias by s_l = c_1 ... c_l, because the layer now reads
    inputs that are s_{l-1} times smaller; responses become Y_l / s_l. The bias, a column of ones that no error
    reaches, does not count in the norm; with `count_bias` (for penalised biases) c_l = ||W_l||_1 + ||b_l||_1 / s_{l-1},
    so that weight and bias together sum to one. A layer of zeros keeps c_l = 1. float64 throughout.
    Valid for positively homogeneous activations: ReLU, leaky ReLU, and a linear last layer.
    """
    offsets = _biases(weights, biases)
    normal_weights, normal_biases, scales = [], [], []
    total = 1.0
    for weight, bias in zip(weights, offsets, strict=True):
        matrix = weight.detach().to(torch.float64)
        scale = float(matrix.abs().sum())
        if count_bias and bias is not None:
            scale += float(bias.detach().to(torch.float64).abs().sum()) / total
        scale = scale if scale > 0 else 1.0
        total *= scale
        normal_weights.append(matrix / scale)
        normal_biases.append(None if bias is None else bias.detach().to(torch.float64) / total)
        scales.append(scale)
    return LinkNormalized(tuple(normal_weights), tuple(normal_biases), tuple(scales))


def link_denormalize(
    weights: Sequence[Tensor], biases: Sequence[Tensor | None] | None, scales: Sequence[float]
) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
    """Undo `link_normalize` on (trimmed) weights and biases: W_l = c_l W~_l, b_l = c_1 ... c_l b~_l."""
    offsets = _biases(weights, biases)
    if len(scales) != len(weights):
        raise InputError(should("scales", f"one number a layer ({len(weights)})", f"{len(scales)} numbers"))
    matrices, vectors = [], []
    total = 1.0
    for weight, bias, scale in zip(weights, offsets, scales, strict=True):
        total *= scale
        matrices.append(weight.detach().to(torch.float64) * scale)
        vectors.append(None if bias is None else bias.detach().to(torch.float64) * total)
    return tuple(matrices), tuple(vectors)


def _biases(weights: Sequence[Tensor], biases: Sequence[Tensor | None] | None) -> Sequence[Tensor | None]:
    if biases is None:
        return [None] * len(weights)
    if len(biases) != len(weights):
        raise InputError(
            should("biases", f"one entry a weight ({len(weights)})", f"{len(biases)} entries", "Use None for no bias.")
        )
    return biases


def _positive(name: str, values: Sequence[float]) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if not all(math.isfinite(value) and value >= 0 for value in numbers):
        raise InputError(should(name, "finite numbers >= 0", repr(numbers)))
    return numbers
