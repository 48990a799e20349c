"""A PyTorch module as a network of layers that can be trimmed."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from nettrim.certificates.graph import Flow
from nettrim.errors import InputError, ModelError, near, should
from nettrim.models.base import Layer, LayerSamples, Skipped
from nettrim.models.batches import Batch, normalise_batches
from nettrim.models.capture import Collector, Positions, collect
from nettrim.models.fingerprint import operations_digest
from nettrim.models.folding import fold_all, give_bias
from nettrim.models.running import deep_copy, evaluating, example_trace, first_output, is_random, plain, refusal
from nettrim.models.selection import select
from nettrim.models.state import load_into, state_of
from nettrim.models.statistics import Norm, norms_of, reestimate, stale_after
from nettrim.models.store import Memory, Rows, SampleStore
from nettrim.models.structure import discover
from nettrim.models.unfold import matrix_of, weight_of
from nettrim.models.weights import Trimmable, check_finite, weights_of, with_bias

__all__ = ["TorchNetwork", "load_into"]


class TorchNetwork:
    """Any `nn.Module`, its structure found by running it on one batch.

    Works on a deep copy, `module`, in which BatchNorm is folded into the layers before it, or, with data as
    `statistics`, stays and has its running statistics re-estimated on that data whenever a weight before it
    was changed; the caller's module and random state stay as they are. `targets` and `ignore` take names of
    layers or of modules that hold them, glob patterns, "re:" regular expressions and class names. `positions`
    is the greatest number of positions (of a convolution, or of tokens) taken from one sample, `memory_budget`
    the bytes of samples kept in memory before they go to files. Raises InputError for an unknown target, ModelError
    for a model with nothing to trim or with weights that are not finite, DataError for an example that
    the model cannot take.
    """

    def __init__(
        self,
        model: nn.Module,
        example_batch: Any,
        *,
        targets: str | Iterable[str] | None = None,
        ignore: str | Iterable[str] = (),
        positions: int | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
        memory_budget: int | None = None,
        statistics: Sequence[object] | None = None,
    ) -> None:
        if positions is not None and positions < 1:
            raise InputError(should("positions", "at least 1", positions))
        self.positions, self.seed, self.memory_budget = positions, seed, memory_budget
        self.module = deep_copy(model)
        check_finite(self.module)
        if device is not None:
            self.module.to(device)
        self._stores, self._memory = list[SampleStore](), Memory(memory_budget)
        trace, example = example_trace(self.module, self._normalised([example_batch])[0], seed)
        weights = weights_of(self.module)
        chosen = select([weight.candidate for weight in weights], targets, ignore)
        wanted = [weight for weight, yes in zip(weights, chosen, strict=True) if yes]
        self._statistics = None if statistics is None else self._normalised(statistics)
        self.module, trace, self._plan = fold_all(
            self.module, trace, example, wanted if statistics is None else (), seed
        )
        self.operations = operations_digest(self.module, trace)
        pairs = list(zip(weights, chosen, strict=True))
        self._structure = discover(self.module, trace, example, pairs, positions=positions, seed=seed)
        if not self._structure.layers:
            reasons = "; ".join(f"{left.name}: {left.reason}" for left in self._structure.left) or "it has no weights"
            be = "a network with a Linear or convolution layer to trim"
            raise ModelError(should("model", be, f"none ({reasons})"))
        self._random = is_random(self.module, example, seed)
        norms = () if statistics is None else norms_of(self.module, trace)
        uses = {name: [use.node for use in layer.uses] for name, layer in self._structure.layers.items()}
        self._stale_after = stale_after(norms, trace, uses)
        self._stale: frozenset[Norm] = frozenset()
        self._reestimated: frozenset[Norm] = frozenset()

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Trimmable layers in order of execution, weights in float32 (float64 of a float64 model) on the CPU."""
        return tuple(self._layer(layer) for layer in self._structure.layers.values())

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Layers with weights that are left as they are."""
        flow = self.flow
        needed = {*(self.chain or ()), *(() if isinstance(flow, str) else flow.repeats)}  # for their norms
        return tuple(
            Skipped(
                name=left.name,
                kind=left.kind,
                shape=tuple(weight.shape),
                reason=left.reason,
                nonzeros=int(torch.count_nonzero(weight)),
                weight=matrix_of(plain(weight), left.geometry) if left.name in needed else None,
            )
            for left in self._structure.left
            for weight in (self.module.get_parameter(left.parameter),)
        )

    @property
    def chain(self) -> tuple[str, ...] | None:
        """Layer names when the network is a plain chain of Linear layers, else None."""
        return self._structure.chain

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on what else was changed, and on a model that draws random numbers."""
        notes = []
        if self._reestimated:
            count = sum(batch.size for batch in self._statistics or ())
            notes.append(f"{len(self._reestimated)} BatchNorms had their statistics re-estimated on {count} samples.")
        if self._random:
            told = f"it was trimmed for what it draws with seed {self.seed}, and measured on that"
            notes.append(f"The model draws random numbers in evaluation mode, too: {told}.")
        return tuple(notes)

    def written(self) -> nn.Module:
        """The module with its present weights, and statistics that belong to them."""
        self._refresh()
        return self.module

    @property
    def flow(self) -> Flow | str:
        """How an error travels from the layers to the first output, or why no bound can follow it."""
        if self._statistics is not None:
            return "statistics of BatchNorm that are re-estimated change what stands between the layers"
        return self._structure.flow

    def plan(self) -> dict[str, Any]:
        """What was changed in the module's structure, to be replayed by `load_into`; plain JSON values."""
        return copy.deepcopy(self._plan)

    def state(self) -> dict[str, Tensor]:
        """Parameters and buffers of the copy on the CPU, tied ones once: what a safetensors file takes."""
        self._refresh()
        return state_of(self.module)

    def new_store(self) -> SampleStore:
        """An empty store for samples, within the memory budget; its files go with `close`."""
        self._stores.append(SampleStore(self._memory))
        return self._stores[-1]

    def capture(self, batches: Sequence[object], names: Sequence[str], first: int = 0) -> dict[str, LayerSamples]:
        """Samples of the named layers with the network's present weights, in the order of the batches.

        `first` is the number of the first batch, where these are some of several: it chooses positions.

        `inputs` (groups, samples, in), `preactivations` and `offset` (samples, out), float32 or float64.
        Raises ModelError when a batch takes another path through the model than the example did.
        """
        layers = [self._find(name) for name in dict.fromkeys(names)]
        self._refresh(max((use.node for layer in layers for use in layer.uses), default=-1))
        store = self.new_store()
        collector = Collector(self._structure.trace, layers, Positions(self.positions, self.seed), store)
        collect(self.module, self._normalised(batches), collector, self.seed, first)
        return collector.samples()

    def outputs(self, batches: Sequence[object]) -> Tensor:
        """The first output tensor ("logits" where there is one), (samples, ...), on the CPU."""
        self._refresh()
        found = Rows()
        with evaluating(self.module, self.seed) as begin, torch.no_grad():
            for index, batch in enumerate(self._normalised(batches)):
                begin(index)
                try:
                    result = self.module(*batch.args, **batch.kwargs)
                except Exception as error:
                    raise refusal(self.module, batch, error, index) from error
                output = first_output(result)
                if output.ndim == 0:
                    cure = 'Let it return its answers first, or a dictionary with them under "logits".'
                    raise ModelError(should("model", "one that answers each sample", "a single number", cure))
                found.append(output.cpu())
        return torch.cat(found.parts())

    def update(self, name: str, weight: Tensor, bias: Tensor | None) -> None:
        """Replace a layer's weight (out, in), and its bias unless None, in place."""
        layer = self._find(name)
        parameter = self.module.get_parameter(layer.parameter)
        shape = tuple(matrix_of(parameter, layer.geometry).shape)
        if tuple(weight.shape) != shape:
            raise InputError(should("weight", f"of shape {shape} for layer {name!r}", tuple(weight.shape)))
        rows = shape[0]
        if bias is not None and tuple(bias.shape) != (rows,):
            raise InputError(should("bias", f"of shape ({rows},) for layer {name!r}", tuple(bias.shape)))
        with torch.no_grad():
            parameter.copy_(weight_of(weight.detach().to(parameter.device), parameter.shape, layer.geometry))
        self._stale |= self._stale_after[name]
        if bias is None:
            return
        if layer.bias is None:
            if not layer.may_gain_bias:
                raise InputError(should("bias", f"None for layer {name!r}, which has none of its own", "a tensor"))
            self._gain_bias(layer, bias)
            return
        with torch.no_grad():
            own = self.module.get_parameter(layer.bias)
            own.copy_(bias.detach().to(own.device))

    def copy(self) -> TorchNetwork:
        """An independent copy."""
        twin = copy.copy(self)
        twin.module = deep_copy(self.module)
        twin._plan, twin._stores = self.plan(), []
        return twin

    def close(self) -> None:
        """Remove the files that captures under a memory budget have written."""
        for store in self._stores:
            store.close()
        self._stores = []

    def _refresh(self, until: int | None = None) -> None:
        """Re-estimate the stale statistics that are applied before a node, None for all of them."""
        stale = [norm for norm in self._stale if until is None or norm.nodes[0] < until]
        if stale and self._statistics is not None:
            stale.sort(key=lambda norm: norm.nodes[0])
            reestimate(self.module, stale, self._statistics, self.seed)
            self._stale -= frozenset(stale)
            self._reestimated |= frozenset(stale)

    def _find(self, name: str) -> Trimmable:
        layers = self._structure.layers
        if name not in layers:
            raise InputError(should("name", "the name of a trimmable layer", repr(name), near(name, layers)))
        return layers[name]

    def _layer(self, layer: Trimmable) -> Layer:
        weight = self.module.get_parameter(layer.parameter)
        bias = None if layer.bias is None else plain(self.module.get_parameter(layer.bias))
        matrix = matrix_of(plain(weight), layer.geometry).contiguous()
        geometry = layer.geometry
        shape = tuple(weight.shape)
        return Layer(layer.name, geometry.kind, shape, layer.activation, matrix, bias, geometry.groups, weight.dtype)

    def _gain_bias(self, layer: Trimmable, bias: Tensor) -> None:
        give_bias(self.module.get_submodule(layer.owner), bias)
        changed = with_bias(layer)
        self._plan["biases"].append(layer.owner)
        trace = self._structure.trace
        nodes = list(trace.nodes)
        for use in layer.uses:
            nodes[use.node] = replace(nodes[use.node], inputs=(*nodes[use.node].inputs, changed.bias))
        layers = {**self._structure.layers, layer.name: changed}
        self._structure = replace(self._structure, trace=replace(trace, nodes=tuple(nodes)), layers=layers)

    def _normalised(self, batches: Iterable[Any]) -> list[Batch]:
        """Batches on the module's device and in its precision."""
        batches = list(batches)
        if not all(isinstance(batch, Batch) for batch in batches):
            batches = normalise_batches(batches, model=self.module)
        first = next((p for p in self.module.parameters() if p.is_floating_point()), None)
        if first is None:
            return batches
        return [batch.to(first.device, first.dtype) for batch in batches]
