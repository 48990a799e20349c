"""Cascade Net-Trim (N Algorithm 2): every layer on the trimmed network's inputs, towards the ORIGINAL responses.

The only place where results flow back: new weights enter the next capture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from nettrim.blocks import Blocks
from nettrim.layerwise import LayerOutcome, LayerTask, original_responses
from nettrim.models.base import Layer, LayerSamples, Network
from nettrim.schemes.capturing import Captures

_ROWS = 4096  # compared at a time
_SAME = 1e-6  # inputs closer than this, relative, count as the original ones: float32 rounding leaves no less


def trim_cascade(
    network: Network,
    original: Network,
    batches: Sequence[object],
    names: Sequence[str],
    blocks: Blocks,
    done: Mapping[str, LayerOutcome],
) -> Iterator[LayerOutcome]:
    """Outcomes in order of execution; `network` is updated after each, `original` is only read.

    A layer whose inputs nothing has changed yet, as the first one, gets the recipe's epsilon. Any other gets eps^2 =
    gamma times what its dense weights reach (N eq. 7, A eq. 19), so that they stay feasible; so does a layer in each of
    its budgets, but for those whose inputs nothing has changed. kappa falls on the network's last layer alone (A
    section 3.3).

    A refit makes a layer's error so small that eq. (7) would leave the next layer next to nothing to spend. With refits
    eq. (7) is therefore also taken at the inputs that the previous layer's select stage would have made, and the
    larger counts: Theorem 2 holds as published where a layer has one budget (docs/bounds.md, section 4). `done` has the
    layers already trimmed.
    """
    layers = {layer.name: layer for layer in original.layers}
    order = list(layers)
    recipe = blocks.recipe
    outcomes = dict(done)
    captures = Captures(batches, blocks.executor, blocks.store)

    def refitted_before(name: str) -> LayerOutcome | None:
        place = order.index(name)
        return outcomes.get(order[place - 1]) if place and recipe.refit else None

    def capture(name: str) -> LayerTask:
        now, before = captures.of(network, name), captures.of(original, name)
        previous = refitted_before(name)
        unrefined = None
        if previous is not None:
            with _before_refit(network, previous, layers):
                unrefined = captures.of(network, name)
        if _moved(now, before) or (unrefined is not None and _moved(unrefined, before)):
            return LayerTask(
                layer=layers[name],
                inputs=now.inputs,
                responses=original_responses(layers[name], before.preactivations),
                offset=now.offset,
                recipe=recipe,
                scheme="cascade",
                moved=True,
                kappa=recipe.kappa if name == order[-1] else 1.0,
                before_refit=None if unrefined is None else unrefined.inputs,
                before_refit_offset=None if unrefined is None else unrefined.offset,
            )
        return LayerTask(layers[name], before.inputs, None, before.offset, recipe, "cascade")

    def give(name: str) -> None:
        captures.give(network, name)
        captures.give(original, name)
        previous = refitted_before(name)
        if previous is not None:
            with _before_refit(network, previous, layers):
                captures.give(network, name)

    for name in names:
        (outcome,) = blocks.run([layers[name]], capture, give)
        outcomes[name] = outcome
        network.update(name, outcome.weight, outcome.bias)
        captures.release(name)
        yield outcome


@contextmanager
def _before_refit(network: Network, previous: LayerOutcome, layers: Mapping[str, Layer]) -> Iterator[None]:
    """The network as if the layer before had not been refitted."""
    above = previous.result.name
    network.update(above, *previous.selected(layers[above]))
    try:
        yield
    finally:
        network.update(above, previous.weight, previous.bias)


def _moved(now: LayerSamples, before: LayerSamples) -> bool:
    return _differ(now.inputs, before.inputs) or (
        now.offset is not None and before.offset is not None and _differ(now.offset, before.offset)
    )


def _differ(now: Tensor, before: Tensor) -> bool:
    if torch.equal(now, before):
        return False
    moved, scale = 0.0, 0.0
    for here, there in zip(_rows(now), _rows(before), strict=True):
        moved += float((here - there).to(torch.float64).square().sum())
        scale += float(there.to(torch.float64).square().sum())
    return moved > _SAME**2 * scale


def _rows(samples: Tensor) -> Iterator[Tensor]:
    """(samples, features), or groups of them, in pieces that need little memory; the samples may be on disk."""
    for part in samples if samples.ndim == 3 else [samples]:
        yield from part.split(_ROWS)
