"""Budget groups: which rows of the weight share one tolerance.

`"layer"` is the papers' Frobenius ball over the whole layer, `"neuron"` one ball a row, and an
integer that many clusters (A section 4.1, PCN). One vector, the group index of every row, serves all three.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nettrim.errors import InputError, should

Budget = str | int


def budget_groups(budget: Budget | Tensor, rows: int) -> Tensor:
    """The group index of each of `rows` rows, (rows,) int64, for "layer", "neuron", a number of clusters, or itself."""
    if isinstance(budget, Tensor):
        groups = budget.to(torch.int64).cpu()
        used = torch.unique(groups)
        if groups.shape != (rows,) or not torch.equal(used, torch.arange(len(used))):
            raise InputError(should("budget", f"one group index 0, 1, ... for each of {rows} rows", repr(budget)))
        return groups
    if budget == "layer":
        return torch.zeros(rows, dtype=torch.int64)
    if budget == "neuron":
        return torch.arange(rows)
    if isinstance(budget, int) and not isinstance(budget, bool) and budget >= 1:
        clusters = min(budget, rows)
        return torch.arange(rows) * clusters // rows
    raise InputError(should("budget", "'layer', 'neuron' or a number of clusters >= 1", repr(budget)))


def group_sums(values: Tensor, groups: Tensor, count: int) -> Tensor:
    """Sums of per-row `values` over each of `count` groups."""
    return torch.zeros(count, dtype=values.dtype, device=values.device).index_add_(0, groups, values)


def split_epsilon(epsilon: float | Tensor, groups: Tensor) -> Tensor:
    """One epsilon per group, float64: a single number is a joint one, split as eps sqrt(|C_k| / M) (A section 4.1)."""
    sizes = torch.bincount(groups).to(torch.float64)
    given = torch.as_tensor(epsilon, dtype=torch.float64).detach().cpu()
    if not bool((given >= 0).all()) or not bool(torch.isfinite(given).all()):
        raise InputError(should("epsilon", "a finite number >= 0", _show(epsilon)))
    if given.ndim == 0:
        return given * torch.sqrt(sizes / sizes.sum())
    if given.shape != sizes.shape:
        raise InputError(
            should("epsilon", f"one number, or one for each of {len(sizes)} budget groups", _show(epsilon))
        )
    return given


def _show(epsilon: float | Tensor) -> str:
    return (
        f"shape {tuple(epsilon.shape)}, values {epsilon.flatten()[:4].tolist()}"
        if isinstance(epsilon, Tensor)
        else repr(epsilon)
    )
