"""What layers see and answer: a listener that collects samples during a forward pass and proves its path."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from nettrim.errors import ModelError, NettrimError, should
from nettrim.models.base import LayerSamples
from nettrim.models.batches import Batch
from nettrim.models.match import Addition, Use, branches
from nettrim.models.operations import linear_call
from nettrim.models.running import evaluating, refusal
from nettrim.models.store import SampleStore, Writer
from nettrim.models.trace import Call, Listener, Node, Trace, record
from nettrim.models.unfold import patches, responses_at, rows_per_sample
from nettrim.models.weights import Trimmable


class Finished(BaseException):
    """Raised through a forward pass when everything asked for has been collected."""


@dataclass
class Positions:
    """Seeded positions of each sample, the same in every capture for a layer's name and use, and a batch's number."""

    limit: int | None
    seed: int
    batch: int = 0
    _draws: Counter[tuple[str, int]] = field(default_factory=Counter)

    def start(self, batch: int) -> None:
        """Begin the batch with this number."""
        self.batch = batch
        self._draws.clear()

    def draw(self, name: str, use: int, samples: int, count: int) -> Tensor | None:
        """Flat positions (samples, limit), None for all of them."""
        if self.limit is None or count <= self.limit:
            return None
        key = (name, use)
        generator = np.random.default_rng([self.seed, zlib.crc32(name.encode()), use, self.batch, self._draws[key]])
        self._draws[key] += 1
        ranks = generator.random((samples, count))
        chosen = np.argpartition(ranks, self.limit - 1, axis=1)[:, : self.limit]
        return torch.from_numpy(np.sort(chosen, axis=1))


@dataclass
class _Part:
    """One use's share of one batch."""

    positions: Tensor | None = None
    inputs: Tensor | None = None
    preactivations: Tensor | None = None
    offset: Tensor | None = None


class Collector(Listener):
    """Collects the samples of some layers over many passes, checking that each takes the known path."""

    def __init__(self, trace: Trace, layers: Sequence[Trimmable], positions: Positions, store: SampleStore) -> None:
        self.trace = trace
        self.positions = positions
        self.layers = tuple(layers)
        self.writers = {layer.name: _Writers(layer.name, store, layer.bias is not None) for layer in layers}
        self._applied: dict[int, list[tuple[Trimmable, int]]] = {}
        self._added: dict[int, list[tuple[Trimmable, int, Addition]]] = {}
        for layer in layers:
            for place, use in enumerate(layer.uses):
                self._applied.setdefault(use.node, []).append((layer, place))
                for addition in use.additions:
                    self._added.setdefault(addition.node, []).append((layer, place, addition))
        self._last = max([*self._applied, *self._added], default=-1)
        self._parts: dict[tuple[str, int], _Part] = {}
        self.batch = -1

    def start(self, batch: int) -> None:
        """Begin a pass, on the batch with this number."""
        self.batch = batch
        self.positions.start(batch)
        self._parts = {(layer.name, place): _Part() for layer in self.layers for place in range(len(layer.uses))}

    def finish(self) -> None:
        """End a pass: its samples go to the store, use by use."""
        for layer in self.layers:
            for place in range(len(layer.uses)):
                part = self._parts[layer.name, place]
                if part.inputs is None or part.preactivations is None:
                    raise self._strayed("an earlier end")
                offset = part.offset
                if offset is None and (layer.fixed_bias or any(branches(use) for use in layer.uses)):
                    offset = torch.zeros_like(part.preactivations)
                self.writers[layer.name].append(part.inputs, part.preactivations, offset)
        self._parts = {}

    def samples(self) -> dict[str, LayerSamples]:
        """All samples collected."""
        return {name: writers.samples() for name, writers in self.writers.items()}

    def before(self, node: Node) -> None:
        expected = self.trace.nodes[node.index] if node.index < len(self.trace.nodes) else None
        if expected is None or (node.name, node.inputs) != (expected.name, expected.inputs):
            raise self._strayed(f"`{node.name}` as operation {node.index}", expected)
        for layer, place, addition in self._added.get(node.index, ()):
            assert node.call is not None
            if not addition.bias:
                self._add(layer.uses[place], self._parts[layer.name, place], node.call, addition.other)

    def after(self, node: Node) -> None:
        if not node.same(self.trace.nodes[node.index]):
            raise self._strayed(f"`{node.name}` writing elsewhere as operation {node.index}")
        assert node.call is not None
        for layer, place in self._applied.get(node.index, ()):
            self._apply(layer, place, node)
        for layer, place, _ in self._added.get(node.index, ()):
            use, part = layer.uses[place], self._parts[layer.name, place]
            if node.index == use.additions[-1].node:
                part.preactivations = _kept(responses_at(node.call.out, use.geometry, part.positions))
        if node.index == self._last:
            raise Finished

    def _apply(self, layer: Trimmable, place: int, node: Node) -> None:
        use, part = layer.uses[place], self._parts[layer.name, place]
        assert node.call is not None
        call = linear_call(node.name, node.call.args, node.call.kwargs)
        if call is None:
            raise self._strayed(f"`{node.name}`")
        out = node.call.out
        samples, count = rows_per_sample(call.inputs, out, use.geometry)
        part.positions = self.positions.draw(layer.name, place, samples, count)
        part.inputs = _kept(patches(call.inputs, tuple(call.weight.shape[2:]), use.geometry, part.positions))
        if not use.additions:
            part.preactivations = _kept(responses_at(out, use.geometry, part.positions))
        if layer.fixed_bias and call.bias is not None:
            part.offset = _kept(call.bias.detach()).expand(part.inputs.shape[1], -1)

    def _add(self, use: Use, part: _Part, call: Call, other: int) -> None:
        this, that = call.args[1 - other], call.args[other]
        branch = torch.as_tensor(that, device=this.device).to(this.dtype).expand_as(this)
        offset = _kept(responses_at(branch, use.geometry, part.positions))
        part.offset = offset if part.offset is None else part.offset + offset

    def _strayed(self, got: str, expected: Node | None = None) -> ModelError:
        wanted = f" where the example batch ran `{expected.name}`" if expected is not None else ""
        return ModelError(
            should(
                "model",
                "a network that runs the same operations on every batch",
                f"{got}{wanted}, in batch {self.batch}",
                "Control flow that depends on the data cannot be followed.",
            )
        )


def collect(module: nn.Module, batches: Sequence[Batch], collector: Collector, seed: int, first: int = 0) -> None:
    """Run a module over batches, the first of which has this number; each pass ends when the last layer asked for has
    answered. What a pass draws depends on `seed` and its batch's number alone."""
    with evaluating(module, seed) as begin:
        for index, batch in enumerate(batches, first):
            begin(index)
            collector.start(index)
            run_pass(module, batch, index, collector)
            collector.finish()


def run_pass(module: nn.Module, batch: Batch, index: int, listener: Listener) -> bool:
    """Run a module over one batch, the `index`-th, for a listener; whether the listener ended the pass early.

    Raises DataError for a batch that the model cannot take.
    """
    try:
        record(module, batch.args, batch.kwargs, listener, keep=False)
    except Finished:
        return True
    except NettrimError:
        raise
    except Exception as error:
        raise refusal(module, batch, error, index) from error
    return False


class _Writers:
    """The three growing tensors of one layer."""

    def __init__(self, name: str, store: SampleStore, biased: bool) -> None:
        self.name, self.store, self.biased = name, store, biased
        self.inputs: Writer = store.writer(f"{name}.inputs")
        self.preactivations: Writer = store.writer(f"{name}.preactivations")
        self.offset: Writer | None = None

    def append(self, inputs: Tensor, preactivations: Tensor, offset: Tensor | None) -> None:
        inputs = with_room(inputs) if self.biased else inputs
        self.inputs.append(inputs.transpose(0, 1))  # the store grows along its first axis
        self.preactivations.append(preactivations)
        if offset is not None:
            self.offset = self.offset or self.store.writer(f"{self.name}.offset")
            self.offset.append(offset)

    def samples(self) -> LayerSamples:
        offset = None if self.offset is None else self.offset.finish()
        inputs = self.inputs.finish().transpose(0, 1)
        return LayerSamples(inputs[..., :-1] if self.biased else inputs, self.preactivations.finish(), offset)


def join_samples(name: str, parts: Iterable[LayerSamples], store: SampleStore) -> LayerSamples:
    """A layer's samples from those of consecutive batches, taken one after the other into `store`."""
    writers = _Writers(name, store, biased=True)
    for part in parts:
        writers.append(part.inputs, part.preactivations, part.offset)
    return writers.samples()


def with_room(inputs: Tensor) -> Tensor:
    """Inputs (..., in) with a column of ones behind them: cut off again, it stays in memory where the bias needs it."""
    return torch.cat([inputs, torch.ones_like(inputs[..., :1])], dim=-1)


def _kept(tensor: Tensor) -> Tensor:
    """A copy in memory, float64 as it is and everything else as float32: the model may write over the original."""
    dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    tensor = tensor.detach()
    dense = tensor.contiguous()
    return dense.to("cpu", dtype, copy=dense is tensor)
