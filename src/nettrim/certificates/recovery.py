"""Exact recovery: when is a sparse weight the only solution of the program with epsilon 0? (N Prop. 2, A Prop. 3.)

One neuron w* with responses y = max(X w*, 0), X = `inputs`. The program N eq. 8 is, with a variable s <= 0 for the
pre-activations of samples where y = 0,

    min |w|_1  subject to  X~ [w; s] = y,     X~ = [[X_on, 0], [X_off, -I]]                      (N eq. 9)

and w* is its unique solution if some Lambda = X~' nu has Lambda = sign(w*) on the support, |Lambda| < 1 off it, zero
where s* < 0 and > 0 where s* = 0 (N eq. 10), and the columns of X~ on the support of [w*; s*] are independent. In terms
of nu: X' nu = Lambda, nu = 0 on samples with pre-activation < 0, nu < 0 on kinks (pre-activation 0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nettrim.errors import DataError, InputError, should

_ROUNDING = 1e-9  # relative: what counts as zero in float64 products of the data


@dataclass(frozen=True, eq=False)
class RecoveryCertificate:
    """Whether multipliers prove that a weight is the only solution of N eq. 8.

    `margin_weights` is 1 - max |Lambda| off the support, `margin_slack` the smallest -nu on kinks relative to the
    largest |nu|; both should be positive (infinite where nothing is asked). `mismatch` is how far Lambda is from the
    signs on the support, and nu from zero where the unit is off, relative.
    """

    multipliers: Tensor  # (samples,) nu
    margin_weights: float
    margin_slack: float
    mismatch: float
    full_rank: bool
    feasible: bool  # always true for responses made from the weight itself

    @property
    def holds(self) -> bool:
        """Whether uniqueness is proved."""
        right = self.mismatch <= _ROUNDING and self.margin_weights > _ROUNDING and self.margin_slack > 0
        return self.feasible and right and self.full_rank


def dual_certificate(inputs: Tensor, weight: Tensor) -> RecoveryCertificate:
    """The least-norm construction of N's proof of Theorem 3 (A eq. 49), judged by `check_dual_certificate`.

    `inputs` (samples, in), `weight` (in,) float64. Where it fails a certificate may still exist:
    `nettrim.solvers.lp.find_dual_certificate` finds the best one. Raises DataError for shapes that do not fit.
    """
    inputs, weight = _data(inputs, weight)
    active, _ = split_samples(inputs, weight)
    support = weight != 0
    nu = weight.new_zeros(len(inputs))
    if bool(active.any()) and bool(support.any()):
        part = inputs[active][:, support]
        nu[active] = torch.linalg.lstsq(part.T, weight[support].sign()[:, None], driver="gelsd").solution[:, 0]
    return check_dual_certificate(inputs, weight, nu)


def check_dual_certificate(
    inputs: Tensor, weight: Tensor, multipliers: Tensor, responses: Tensor | None = None
) -> RecoveryCertificate:
    """Check `multipliers` nu (samples,) as a certificate for `weight` (in,), whoever made them.

    `responses` (samples,), if given, must be those of the weight, else the certificate says it is not feasible.
    Raises DataError for shapes that do not fit.
    """
    inputs, weight = _data(inputs, weight)
    nu = multipliers.detach().to(torch.float64)
    if nu.shape != (len(inputs),):
        raise DataError(should("multipliers", f"of shape ({len(inputs)},)", f"shape {tuple(nu.shape)}"))
    active, kinks = split_samples(inputs, weight)
    support = weight != 0
    product = inputs @ weight
    feasible = True
    if responses is not None:
        scale = float(product.abs().max()) or 1.0
        feasible = bool(((product.clamp(min=0) - responses.to(product)).abs() <= _ROUNDING * scale).all())
    lam = inputs.T @ nu
    size = float(nu.abs().max()) if len(nu) else 0.0
    mismatch = float((lam - weight.sign())[support].abs().max()) if bool(support.any()) else 0.0
    quiet = ~active & ~kinks
    if bool(quiet.any()) and size > 0:
        mismatch = max(mismatch, float(nu[quiet].abs().max()) / size)
    margin = 1 - float(lam[~support].abs().max()) if bool((~support).any()) else math.inf
    slack = math.inf
    if bool(kinks.any()):
        slack = float((-nu[kinks]).min()) / size if size > 0 else 0.0
    return RecoveryCertificate(nu, margin, slack, mismatch, _full_rank(inputs[active | kinks][:, support]), feasible)


def split_samples(inputs: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Masks of the samples with positive pre-activation and of those with pre-activation zero, up to rounding."""
    product = inputs @ weight
    zero = product.abs() <= 1e-13 * (inputs.abs() @ weight.abs())
    return (product > 0) & ~zero, zero


def samples_for_recovery(support: int, features: int, mu: float = 2.0, paper: str = "N") -> int:
    """How many Gaussian samples make recovery of a neuron with `support` weights likely.

    N Theorem 3: P = (11 s + 7) mu log N; A Theorem 3: P = (6 s + 1) mu log N; probability at least 1 - N^(1 - mu)
    (A prints N^(mu - 1), which for mu > 1 is no probability).
    Raises InputError for mu <= 1 or a support larger than the features.
    """
    if not 0 <= support <= features:
        raise InputError(should("support", f"between 0 and the {features} features", repr(support)))
    if not mu > 1:
        raise InputError(should("mu", "a number > 1", repr(mu)))
    return math.ceil(_factor(support, paper) * mu * math.log(features))


def recovery_probability(supports: list[int] | int, features: int, samples: int, paper: str = "N") -> float:
    """What the theorem promises for `samples` Gaussian samples: at least this probability, 0 if nothing.

    The smaller factor of A, 6 s + 1 in place of 11 s + 7, is of the earlier paper, whose proof bounds an eigenvalue
    (eq. 58) by more than experiments show; it stands here as published, not as proved.
    One support: N and A Theorem 3 with the largest mu that `samples` allow. Several (one a neuron): the union over
    neurons, as in N Corollary 1, each with its own mu.
    """
    failure = 0.0
    for support in [supports] if isinstance(supports, int) else supports:
        mu = samples / (_factor(support, paper) * math.log(features)) if features > 1 else 0.0
        failure += features ** (1 - mu) if mu > 1 else 1.0
    return max(0.0, 1.0 - failure)


def _factor(support: int, paper: str) -> int:
    if paper not in ("N", "A"):
        raise InputError(should("paper", "'N' or 'A'", repr(paper)))
    return 11 * support + 7 if paper == "N" else 6 * support + 1


def _full_rank(part: Tensor) -> bool:
    """Independent columns. With the identity block of X~ only the active samples and kinks count."""
    if not part.shape[1]:
        return True
    if part.shape[0] < part.shape[1]:
        return False
    values = torch.linalg.svdvals(part)
    return bool(values[-1] > _ROUNDING * values[0])


def _data(inputs: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    if inputs.ndim != 2 or weight.ndim != 1 or inputs.shape[1] != weight.shape[0]:
        got = f"shapes {tuple(inputs.shape)} and {tuple(weight.shape)}"
        raise DataError(should("weight", "of shape (in,) for inputs (samples, in)", got))
    return inputs.detach().to(torch.float64), weight.detach().to(torch.float64)
