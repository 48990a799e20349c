"""Parallel Net-Trim (N Algorithm 1): every layer on the original network's inputs, independently of all others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from nettrim.executors.base import Executor
from nettrim.layerwise import LayerOutcome, LayerTask
from nettrim.models.base import Network
from nettrim.recipe import Recipe


def parallel_tasks(
    network: Network, batches: Sequence[object], names: Sequence[str], recipe: Recipe
) -> Iterator[LayerTask]:
    """One task a layer, each captured when it is asked for, so that few layers' samples are in memory at once."""
    layers = {layer.name: layer for layer in network.layers}
    for name in names:
        samples = network.capture(batches, [name])[name]
        yield LayerTask(layers[name], samples.inputs, None, samples.offset, recipe, "parallel")


def trim_parallel(
    network: Network,
    batches: Sequence[object],
    names: Sequence[str],
    recipe: Recipe,
    work: Callable[[LayerTask], LayerOutcome],
    executor: Executor,
) -> Iterator[LayerOutcome]:
    """Outcomes in order of completion. The network is only read: apply the outcomes when all have come."""
    for _, outcome in executor.map(work, parallel_tasks(network, batches, names, recipe)):
        yield outcome
