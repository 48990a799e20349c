"""A PyTorch module as a network of layers that can be trimmed."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nettrim.errors import DataError, InputError, ModelError, near, should
from nettrim.models.base import Layer, LayerSamples, Skipped
from nettrim.models.batches import Batch, normalise_batches
from nettrim.models.capture import Collector, Finished, Positions
from nettrim.models.chain import plain_chain
from nettrim.models.folding import fold, foldable, give_bias
from nettrim.models.match import agreed, find_uses
from nettrim.models.selection import select
from nettrim.models.state import restore, state_of
from nettrim.models.store import SampleStore
from nettrim.models.trace import Listener, Trace, record
from nettrim.models.unfold import matrix_of, weight_of
from nettrim.models.weights import Trimmable, Weight, check_finite, trimmable, weights_of, why_not, with_bias

_EXAMPLE_ROWS = 2  # of the batch on which the structure is found: enough to tell rows from features
_PROOF_POSITIONS = 64


class TorchNetwork:
    """Any `nn.Module`, its structure found by running it on one batch.

    Works on a deep copy, `module`, in which BatchNorm is folded into the layers before it; the caller's
    module and random state stay as they are. `targets` and `ignore` take names of layers or of modules
    that hold them, glob patterns, "re:" regular expressions and class names. `positions` is the greatest
    number of positions (of a convolution, or of tokens) taken from one sample, `memory_budget` the bytes
    of samples kept in memory before they go to files. Raises InputError for an unknown target, ModelError
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
    ) -> None:
        if positions is not None and positions < 1:
            raise InputError(should("positions", "at least 1", positions))
        self.positions, self.seed, self.memory_budget = positions, seed, memory_budget
        self.module = deep_copy(model)
        check_finite(self.module)
        if device is not None:
            self.module.to(device)
        self._stores: list[SampleStore] = []
        self._plan: dict[str, list[Any]] = {"folded": [], "biases": []}
        self._layers: dict[str, Trimmable] = {}
        example = self._normalised([example_batch])[0]
        trace, example = self._first_trace(example)
        weights = weights_of(self.module)
        chosen = select([weight.candidate for weight in weights], targets, ignore)
        trace = self._fold(trace, example, [w for w, yes in zip(weights, chosen, strict=True) if yes])
        self._skipped = self._match(trace, example, list(zip(weights, chosen, strict=True)))
        self._chain = self._find_chain(trace)
        self._trace = trace.light()
        if not self._layers:
            reasons = "; ".join(f"{name}: {reason}" for name, _, _, reason, _ in self._skipped) or "it has no weights"
            raise ModelError(
                should("model", "a network with a Linear or convolution layer to trim", f"none ({reasons})")
            )

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Trimmable layers in order of execution, weights in float32 (float64 of a float64 model) on the CPU."""
        return tuple(self._layer(layer) for layer in self._layers.values())

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Layers with weights that are left as they are."""
        return tuple(
            Skipped(name, kind, tuple(w.shape), reason, int(torch.count_nonzero(w)))
            for name, kind, path, reason, _ in self._skipped
            for w in (self.module.get_parameter(path),)
        )

    @property
    def chain(self) -> tuple[str, ...] | None:
        """Layer names when the network is a plain chain of trimmable Linear layers, else None."""
        return self._chain

    def plan(self) -> dict[str, Any]:
        """What was changed in the module's structure, to be replayed by `load_into`; plain JSON values."""
        return {key: [list(v) if isinstance(v, tuple) else v for v in values] for key, values in self._plan.items()}

    def state(self) -> dict[str, Tensor]:
        """Parameters and buffers of the copy on the CPU, tied ones once: what a safetensors file takes."""
        return state_of(self.module)

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back a state taken from a network of the same structure; ModelError when it does not fit."""
        restore(self.module, tensors)

    def capture(self, batches: Sequence[object], names: Sequence[str]) -> dict[str, LayerSamples]:
        """Samples of the named layers with the network's present weights, in the order of the batches.

        `inputs` (groups, samples, in), `preactivations` and `offset` (samples, out), float32 or float64.
        Raises ModelError when a batch takes another path through the model than the example did.
        """
        layers = [self._find(name) for name in dict.fromkeys(names)]
        store = SampleStore(self.memory_budget)
        self._stores.append(store)
        collector = Collector(self._trace, layers, Positions(self.positions, self.seed), store)
        with self._evaluating():
            for index, batch in enumerate(self._normalised(batches)):
                collector.start(index)
                self._run(batch, collector)
                collector.finish()
        return collector.samples()

    def outputs(self, batches: Sequence[object]) -> Tensor:
        """The first output tensor ("logits" where there is one), (samples, ...), on the CPU."""
        found = []
        with self._evaluating(), torch.no_grad():
            for batch in self._normalised(batches):
                result = self.module(*batch.args, **batch.kwargs)
                found.append(_first_tensor(result).cpu())
        return torch.cat(found)

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
        twin._layers, twin._stores = dict(self._layers), []
        twin._plan = {key: list(values) for key, values in self._plan.items()}
        return twin

    def close(self) -> None:
        """Remove the files that captures under a memory budget have written."""
        for store in self._stores:
            store.close()
        self._stores = []

    def _find(self, name: str) -> Trimmable:
        if name not in self._layers:
            raise InputError(should("name", "the name of a trimmable layer", repr(name), near(name, self._layers)))
        return self._layers[name]

    def _layer(self, layer: Trimmable) -> Layer:
        weight = self.module.get_parameter(layer.parameter)
        bias = None if layer.bias is None else _plain(self.module.get_parameter(layer.bias))
        matrix = matrix_of(_plain(weight), layer.geometry).contiguous()
        geometry = layer.geometry
        shape = tuple(weight.shape)
        return Layer(layer.name, geometry.kind, shape, layer.activation, matrix, bias, geometry.groups, weight.dtype)

    def _gain_bias(self, layer: Trimmable, bias: Tensor) -> None:
        give_bias(self.module.get_submodule(layer.owner), bias)
        changed = with_bias(layer)
        self._layers[layer.name] = changed
        self._plan["biases"].append(layer.owner)
        nodes = list(self._trace.nodes)
        for use in layer.uses:
            nodes[use.node] = replace(nodes[use.node], inputs=(*nodes[use.node].inputs, changed.bias))
        self._trace = replace(self._trace, nodes=tuple(nodes))

    def _normalised(self, batches: Iterable[Any]) -> list[Batch]:
        """Batches on the module's device and in its precision."""
        batches = list(batches)
        if not all(isinstance(batch, Batch) for batch in batches):
            batches = normalise_batches(batches, model=self.module)
        first = next((p for p in self.module.parameters() if p.is_floating_point()), None)
        if first is None:
            return batches
        return [batch.to(first.device, first.dtype) for batch in batches]

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluation mode and a seeded random state; flags, buffers and the random state are put back."""
        flags = {part: part.training for part in self.module.modules()}
        buffers = [(buffer, buffer.clone()) for buffer in self.module.buffers()]
        devices = list({p.device for p in self.module.parameters() if p.device.type == "cuda"})
        self.module.eval()
        try:
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(self.seed)
                yield
        finally:
            for part, flag in flags.items():
                part.training = flag
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)

    def _run(self, batch: Batch, listener: Listener) -> None:
        try:
            record(self.module, batch.args, batch.kwargs, listener, keep=False)
        except Finished:
            return

    def _first_trace(self, example: Batch) -> tuple[Trace, Batch]:
        """The trace on a few rows of the example, or on all of it where the model wants its size."""
        few = example.rows(0, _EXAMPLE_ROWS)
        with self._evaluating():
            try:
                return record(self.module, few.args, few.kwargs, keep=True), few
            except Exception:
                pass
            try:
                return record(self.module, example.args, example.kwargs, keep=True), example
            except Exception as error:
                raise DataError(
                    should("data", f"batches that the model takes{_expected(self.module)}", example.shapes())
                    + f" The model answered: {_sentence(error)}"
                ) from error

    def _fold(self, trace: Trace, example: Batch, weights: Sequence[Weight]) -> Trace:
        """Fold what can be folded; where the outputs would change, fold nothing."""
        pairs = foldable(self.module, trace, weights, find_uses(trace))
        if not pairs:
            return trace
        before = self.module
        self.module = deep_copy(before)
        for layer, norm in pairs:
            had_bias = self.module.get_submodule(layer).bias is not None
            fold(self.module, layer, norm)
            self._plan["folded"].append((layer, norm))
            if not had_bias:
                self._plan["biases"].append(layer)
        try:
            with self._evaluating():
                folded = record(self.module, example.args, example.kwargs, keep=True)
            if _close(folded.result, trace.result):
                return folded
        except Exception:  # the model's own code needs the norm that was removed
            pass
        self.module, self._plan = before, {"folded": [], "biases": []}
        return trace

    def _match(
        self, trace: Trace, example: Batch, weights: Sequence[tuple[Weight, bool]]
    ) -> list[tuple[str, str, str, str, int]]:
        """Settle every weight: a layer to trim, or skipped as (name, kind, parameter, reason, first node)."""
        everything = find_uses(trace)
        found: list[tuple[int, Trimmable]] = []
        skipped: list[tuple[str, str, str, str, int]] = []
        for weight, chosen in weights:
            uses = agreed(everything.get(weight.parameter, ()))
            reason = why_not(self.module, weight, uses, trace)
            kind = uses[0].geometry.kind if uses else type(self.module.get_submodule(weight.owner)).__name__
            first = uses[0].node if uses else len(trace.nodes)
            if reason is None and not chosen:
                reason = "not in targets"
            if reason is None:
                found.append((first, trimmable(self.module, weight, uses, everything, trace)))
            else:
                skipped.append((weight.name, kind, weight.parameter, reason, first))
        found.sort(key=lambda pair: pair[0])
        self._trace = trace
        self._layers = {layer.name: layer for _, layer in found}
        for first, layer in found:
            if not self._reproduced(layer, trace, example):
                del self._layers[layer.name]
                reason = "its responses could not be reproduced from its weight"
                skipped.append((layer.name, layer.geometry.kind, layer.parameter, reason, first))
        return sorted(skipped, key=lambda record: record[4])

    def _reproduced(self, layer: Trimmable, trace: Trace, example: Batch) -> bool:
        """Whether weight @ inputs + bias + offset is what the activation received, on the example."""
        collector = Collector(trace, [layer], Positions(_PROOF_POSITIONS, self.seed), SampleStore())
        with self._evaluating():
            collector.start(0)
            self._run(example, collector)
            collector.finish()
        samples = collector.samples()[layer.name]
        matrix = self._layer(layer)
        rows = matrix.weight.double().reshape(matrix.groups, -1, matrix.weight.shape[1])
        made = torch.einsum("gsi,goi->sgo", samples.inputs.double(), rows).flatten(1)
        for extra in (matrix.bias, samples.offset):
            made = made if extra is None else made + extra.double()
        parameter = self.module.get_parameter(layer.parameter)
        scale = torch.einsum("gsi,goi->sgo", samples.inputs.double().abs(), rows.abs()).max() + made.abs().max()
        rounding = max(torch.finfo(parameter.dtype).eps, torch.finfo(trace_dtype(trace, layer)).eps)
        error = (made - samples.preactivations.double()).abs().max()
        return bool(error <= 64 * rounding * scale + 1e-30)

    def _find_chain(self, trace: Trace) -> tuple[str, ...] | None:
        if self._skipped or any(len(layer.uses) != 1 for layer in self._layers.values()):
            return None
        uses = {layer.name: layer.uses[0] for layer in self._layers.values()}
        if self.positions is not None and any(_rank(trace, use.node) > 2 for use in uses.values()):
            return None  # sampled positions are not all that the next layer reads
        return plain_chain(trace, uses)


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], plan: Mapping[str, Any]) -> nn.Module:
    """A copy of the user's model with a trimmed network's structure and state.

    `plan` is what `TorchNetwork.plan` gave, `tensors` what `state` gave. Raises ModelError when the model is
    not the one that was trimmed.
    """
    module = deep_copy(model)
    try:
        for layer, norm in plan.get("folded", ()):
            fold(module, layer, norm)
        for layer in plan.get("biases", ()):
            owner = module.get_submodule(layer)
            if owner.bias is None:
                weight = tensors.get(f"{layer}.bias" if layer else "bias")
                give_bias(owner, weight if weight is not None else torch.zeros(0))
    except (AttributeError, ValueError) as error:
        raise ModelError(should("model", "the one that was trimmed", f"one without its layers: {error}")) from None
    restore(module, tensors)
    return module


def deep_copy(model: nn.Module) -> nn.Module:
    """A deep copy, also of modules that hold computed tensors (old weight norm, pruning masks)."""
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    memo: dict[int, Any] = {}
    for part in model.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(model, memo)


def trace_dtype(trace: Trace, layer: Trimmable) -> torch.dtype:
    """The precision in which a layer answered (autocast may lower it)."""
    call = trace.nodes[layer.uses[0].node].call
    return call.out.dtype if call is not None else torch.float32


def _rank(trace: Trace, node: int) -> int:
    call = trace.nodes[node].call
    return call.out.dim() if call is not None else 0


def _plain(tensor: Tensor) -> Tensor:
    dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    return tensor.detach().to("cpu", dtype, copy=True)


def _first_tensor(result: Any) -> Tensor:
    if isinstance(result, Mapping) and isinstance(result.get("logits"), Tensor):
        return result["logits"]
    logits = getattr(result, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    found = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not found:
        raise ModelError(should("model", "a network that returns a floating tensor", f"a {type(result).__name__}"))
    return found[0]


def _close(one: Any, other: Any) -> bool:
    pairs = list(zip(tree_leaves(one), tree_leaves(other), strict=True))
    for a, b in pairs:
        if isinstance(a, Tensor) and a.is_floating_point():
            tolerance = {torch.float64: 1e-9, torch.float32: 1e-4}.get(a.dtype, 5e-2)
            a, b = a.double(), b.double()
            if a.shape != b.shape or not bool((a - b).abs().max() <= tolerance * (b.abs().max() + 1e-6)):
                return False
    return True


def _expected(module: nn.Module) -> str:
    """What the first layer of a module reads, for a message."""
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear):
            return f" ({name or 'the first layer'!r} reads {part.in_features} features in the last dimension)"
        if isinstance(part, nn.modules.conv._ConvNd):
            dims = len(part.kernel_size)
            return f" ({name or 'the first layer'!r} reads {part.in_channels} channels and {dims} dimensions of space)"
    return ""


def _sentence(error: Exception) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if len(text) <= 200 else text[:200] + "…"
