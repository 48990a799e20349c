"""Parallel Net-Trim (N Algorithm 1): every layer on the original network's inputs, independently of all others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nettrim.blocks import Blocks
from nettrim.layerwise import LayerOutcome, LayerTask
from nettrim.models.base import Network
from nettrim.schemes.capturing import Captures


def trim_parallel(
    network: Network, batches: Sequence[object], names: Sequence[str], blocks: Blocks
) -> Iterator[LayerOutcome]:
    """Outcomes in order of completion. The network is only read: apply the outcomes when all have come.

    Each layer is captured when its turn comes, so that few layers' samples are in memory at once.
    """
    layers = {layer.name: layer for layer in network.layers}
    captures = Captures(batches, blocks.executor, blocks.store)

    def capture(name: str) -> LayerTask:
        samples = captures.of(network, name)
        return LayerTask(layers[name], samples.inputs, None, samples.offset, blocks.recipe, "parallel")

    def give(name: str) -> None:
        captures.give(network, name)

    for outcome in blocks.run([layers[name] for name in names], capture, give):
        captures.release(outcome.result.name)
        yield outcome
