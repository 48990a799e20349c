"""Cascade Net-Trim (N Algorithm 2): every layer on the trimmed network's inputs, towards the ORIGINAL responses.

The only place where results flow back: new weights enter the next capture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from nettrim.layerwise import LayerOutcome, LayerTask, original_responses
from nettrim.models.base import LayerSamples, Network
from nettrim.recipe import Recipe

_SAME = 1e-6  # inputs closer than this, relative, count as the original ones: float32 rounding leaves no less


def trim_cascade(
    network: Network,
    selected: Network | None,
    original: Network,
    batches: Sequence[object],
    names: Sequence[str],
    recipe: Recipe,
    work: Callable[[LayerTask], LayerOutcome],
) -> Iterator[LayerOutcome]:
    """Outcomes in order of execution; `network` and `selected` are updated after each, `original` is only read.

    A layer whose inputs nothing has changed yet, as the first one, gets the recipe's epsilon. Any other gets eps^2 =
    gamma times what its dense weights reach (N eq. 7, A eq. 19), so that they stay feasible. kappa falls on the
    network's last layer alone (A section 3.3).

    A refit makes a layer's error so small that eq. (7) would leave the next layer next to nothing to spend. Tolerances
    therefore follow the error before refits: `selected` carries the select stage's weights, and eq. (7) is taken
    at its inputs where that gives more. Without refits it is None, and this is N Algorithm 2.
    """
    layers = {layer.name: layer for layer in original.layers}
    last = original.layers[-1].name
    for name in names:
        now = network.capture(batches, [name])[name]
        before = original.capture(batches, [name])[name]
        unrefined = selected.capture(batches, [name])[name] if selected is not None else now
        if _moved(now, before) or _moved(unrefined, before):
            task = LayerTask(
                layer=layers[name],
                inputs=now.inputs,
                responses=original_responses(layers[name], before.preactivations),
                offset=now.offset,
                recipe=recipe,
                scheme="cascade",
                moved=True,
                kappa=recipe.kappa if name == last else 1.0,
                before_refit=None if selected is None else unrefined.inputs,
                before_refit_offset=None if selected is None else unrefined.offset,
            )
        else:
            task = LayerTask(layers[name], before.inputs, None, before.offset, recipe, "cascade")
        outcome = work(task)
        network.update(name, outcome.weight, outcome.bias)
        if selected is not None:
            selected.update(name, *outcome.selected(layers[name]))
        yield outcome


def _moved(now: LayerSamples, before: LayerSamples) -> bool:
    return _differ(now.inputs, before.inputs) or (
        now.offset is not None and before.offset is not None and _differ(now.offset, before.offset)
    )


def _differ(now: Tensor, before: Tensor) -> bool:
    if torch.equal(now, before):
        return False
    scale = float(before.to(torch.float64).norm())
    return float((now - before).to(torch.float64).norm()) > _SAME * scale
