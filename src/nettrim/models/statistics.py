"""BatchNorm statistics as what they are of: the weights before them, on given data.

A BatchNorm that is not folded away keeps the mean and variance of a network that is no longer there once a weight
before it has changed. Re-estimated one after another in order of execution, each over all samples at once, they do
not depend on how the samples are cut into batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nettrim.errors import ModelError, should
from nettrim.models.batches import Batch
from nettrim.models.capture import Finished, run_pass
from nettrim.models.running import evaluating
from nettrim.models.trace import Listener, Node, Trace


@dataclass(frozen=True)
class Norm:
    """A BatchNorm with running statistics: the names of its buffers and the nodes that apply it."""

    mean: str
    variance: str
    nodes: tuple[int, ...]


def norms_of(module: nn.Module, trace: Trace) -> tuple[Norm, ...]:
    """The BatchNorms of a module that normalise by their running statistics, in order of execution.

    trace: one with its calls, as `example_trace` makes it.
    """
    buffers = {id(buffer): name for name, buffer in module.named_buffers()}
    found: dict[tuple[str, str], list[int]] = {}
    for node in trace.nodes:
        if node.name != "batch_norm" or node.call is None or node.call.argument(5, "training", False):
            continue
        names = [buffers.get(id(node.call.argument(place, name))) for place, name in _STATISTICS]
        if names[0] is not None and names[1] is not None:
            found.setdefault((names[0], names[1]), []).append(node.index)
    return tuple(Norm(mean, variance, tuple(nodes)) for (mean, variance), nodes in found.items())


def downstream(trace: Trace, start: Iterable[int]) -> frozenset[int]:
    """Indices of the nodes whose inputs depend on what the nodes of `start` compute, `start` itself left out."""
    first = frozenset(start)
    values: set[Any] = set()
    reached: set[int] = set()
    unseen = False  # something was read through shared memory: from there on everything may depend on it
    for node in trace.nodes:
        if unseen or not values.isdisjoint(node.inputs):
            reached.add(node.index)
        if node.index in first or node.index in reached:
            values.update(node.outputs)
            unseen = unseen or not trace.hidden.isdisjoint(node.outputs)
    return frozenset(reached)


def stale_after(norms: Sequence[Norm], trace: Trace, uses: Mapping[str, Sequence[int]]) -> dict[str, frozenset[Norm]]:
    """By layer: the norms whose statistics a change of its weight makes stale. `uses`: the nodes of each layer."""
    reached = {name: downstream(trace, nodes) for name, nodes in uses.items()}
    return {name: frozenset(n for n in norms if not nodes.isdisjoint(n.nodes)) for name, nodes in reached.items()}


def reestimate(module: nn.Module, norms: Sequence[Norm], batches: Sequence[Batch], seed: int) -> None:
    """Set the running statistics of some norms to those of what they read on the batches, in place.

    norms: in order of execution. The mean, and the unbiased variance as PyTorch's training keeps it, of every channel
    over all samples and positions, computed in float64. Each norm sees the ones before it as they are by then.
    A channel seen once keeps its variance. Raises DataError for a batch that the model cannot take, ModelError where a
    batch takes another path through the model than the example did.
    """
    for norm in norms:
        moments = _Moments(norm.nodes)
        with evaluating(module, seed) as begin:
            for index, batch in enumerate(batches):
                begin(index)
                if not run_pass(module, batch, index, moments):
                    raise _strayed("an earlier end")
        with torch.no_grad():
            module.get_buffer(norm.mean).copy_(moments.mean)
            if moments.count > 1:
                module.get_buffer(norm.variance).copy_(moments.squares / (moments.count - 1))


def _strayed(got: str) -> ModelError:
    return ModelError(should("model", "a network that runs the same operations on every batch", got))


_STATISTICS = ((1, "running_mean"), (2, "running_var"))


@dataclass
class _Moments(Listener):
    """Mean and sum of squared deviations of each channel over many passes, merged batch by batch."""

    nodes: tuple[int, ...]
    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(()))
    squares: Tensor = field(default_factory=lambda: torch.zeros(()))

    def before(self, node: Node) -> None:
        if node.index not in self.nodes or node.call is None:
            return
        if node.name != "batch_norm":
            raise _strayed(f"`{node.name}` in place of `batch_norm`")
        inputs = node.call.argument(0, "input").detach().to(torch.float64)
        rows = inputs.transpose(0, 1).flatten(1)  # (channels, samples * positions)
        self._merge(rows.shape[1], rows.mean(1), rows.var(1, correction=0) * rows.shape[1])
        if node.index == self.nodes[-1]:
            raise Finished

    def _merge(self, count: int, mean: Tensor, squares: Tensor) -> None:
        """Chan's rule for the moments of two sets."""
        total = self.count + count
        shift = mean - self.mean.to(mean)
        self.squares = self.squares.to(mean) + squares + shift.square() * (self.count * count / total)
        self.mean = self.mean.to(mean) + shift * (count / total)
        self.count = total
