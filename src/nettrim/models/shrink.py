"""Exact shrinking: a smaller dense network that computes the same function.

Sparse weights are faster only with kernels made for them. Units without weights are another matter: a unit with no
incoming weights is a constant, one with no outgoing weights is not needed, and both can be cut out of any dense
network. What cannot be proved removable is left as it is, and the result is compared with the original.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from nettrim.models.batches import Batch, normalise_batches
from nettrim.models.running import deep_copy, evaluating, example_trace, refusal
from nettrim.models.shrink_apply import FORMAT, IndexSelect, layer_entry, load_shrunk, restructure, settle
from nettrim.models.shrink_channels import Kept
from nettrim.models.shrink_trace import numbers_read, read_trace
from nettrim.models.trace import Trace

__all__ = ["IndexSelect", "Shrunk", "ShrunkLayer", "Summary", "load_shrunk", "shrink"]

_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}  # relative to the largest output
_SPREADS = (1.0, 9.0, 0.01, 100.0)  # of the random inputs on which a result is compared
_ATTEMPTS = ((True, True), (False, True), (False, False))  # reshapes to spelled-out sizes follow, inputs are picked


@dataclass(frozen=True)
class ShrunkLayer:
    """One layer before and after."""

    name: str
    kind: str
    before: tuple[int, ...]  # shape of the weight
    after: tuple[int, ...]
    dead: int = 0  # outputs that were 0 whatever the input
    constant: int = 0  # outputs that were another constant, now in the next layer's bias
    unused: int = 0  # outputs that nobody reads
    inputs_picked: tuple[int, int] | None = None  # of the network's inputs, how many are read now and were before


@dataclass(frozen=True)
class Summary:
    """By how much a network became smaller; `left` says why a layer was not looked at, `note` what went wrong."""

    parameters_before: int
    parameters_after: int
    layers: tuple[ShrunkLayer, ...]
    left: tuple[tuple[str, str], ...] = ()
    note: str = ""

    @property
    def changed(self) -> bool:
        """Whether anything was removed."""
        return any(layer.before != layer.after for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON's types."""
        data = asdict(self)
        data["left"] = [list(pair) for pair in self.left]
        data["layers"] = [{key: list(v) if isinstance(v, tuple) else v for key, v in e.items()} for e in data["layers"]]
        return data

    def __str__(self) -> str:
        lines = [f"{self.parameters_before:,} -> {self.parameters_after:,} parameters"]
        for layer in self.layers:
            why = [f"{n} {word}" for word in ("dead", "constant", "unused") if (n := getattr(layer, word))]
            why += ["picks {} of {} inputs".format(*layer.inputs_picked)] if layer.inputs_picked else []
            shape = f"{'x'.join(map(str, layer.before))} -> {'x'.join(map(str, layer.after))}"
            lines.append(f"  {layer.name or layer.kind}: {shape}" + (f" ({', '.join(why)})" if why else ""))
        lines += [f"  {name}: left as it is, {reason}" for name, reason in self.left]
        return "\n".join([*lines, f"note: {self.note}"] if self.note else lines)


@dataclass(frozen=True, eq=False)
class Shrunk:
    """A smaller module, what was done, and the plan (JSON's types) from which `load_shrunk` builds it again."""

    module: nn.Module
    summary: Summary
    plan: dict[str, Any]


def shrink(model: nn.Module, example_input: Any, *, pick_inputs: bool = True) -> Shrunk:
    """The same function as a smaller dense network, in evaluation mode, equal to rounding.

    Removed are units that are constant (all incoming weights 0, or never let through by their ReLU), with the constant
    folded into the next bias where that is exact, and units that nobody reads; through Linear, Conv1d-3d (groups,
    depthwise), BatchNorm, pools, reshapes, sums and concatenations. With `pick_inputs` a first layer that ignores some
    of the network's inputs gets them picked out by an `IndexSelect` before it. Shared weights and unknown
    operations are left as they are, and so is a network whose code reads numbers out of the data. The result is
    compared with the model in float64 on the example and on random inputs; where they differ less is removed, and at
    worst nothing, which `summary.note` says.

    example_input: one batch as the model takes it; two or more samples. Raises DataError when the model cannot take it.
    """
    example = normalise_batches([example_input], model=model)[0]
    original = deep_copy(model)
    first = next((p for p in original.parameters() if p.is_floating_point()), None)
    if first is not None:
        example = example.to(first.device, first.dtype)
    trace, few = example_trace(original, example, 0)
    _check_rows(original, few)
    read = numbers_read(trace)
    if read:
        words = " and ".join(f"`{word}`" for word in read)
        return _unchanged(
            original, f"its code reads numbers out of the data by {words}, and may do otherwise on others"
        )
    note = ""
    for free_sizes, picking in _ATTEMPTS:
        try:
            found = _attempt(original, trace, free_sizes=free_sizes, picking=picking and pick_inputs)
            if _proved(original, found, few):
                return found.shrunk
            note = "a smaller network would have differed from the original"
        except Exception as error:
            note = f"a smaller network could not be run: {str(error).splitlines()[0][:120] if str(error) else error!r}"
    return _unchanged(original, note)


def _check_rows(original: nn.Module, example: Batch) -> None:
    """Raise DataError for vectors that the model takes as one sample each: their entries are no samples."""
    if any(tensor.dim() != 1 for tensor in example.tensors()):
        return
    one = example.rows(0, 1)
    try:
        with evaluating(original, 0), torch.no_grad():
            original(*one.args, **one.kwargs)
    except Exception as error:
        raise refusal(original, one, error) from error


def _unchanged(original: nn.Module, note: str) -> Shrunk:
    size = _size(original)
    plan: dict[str, Any] = {"format": FORMAT, "layers": {}, "norms": {}}
    return Shrunk(original, Summary(size, size, (), (), f"left as it is: {note}"), plan)


def same_function(one: nn.Module, other: nn.Module, example: Batch) -> bool:
    """Whether two modules agree to the rounding of their weights on an example, one sample of it, and random inputs.

    They are run in float64 where they let themselves.
    """
    variants = [example, example.rows(0, 1), *(_random(example, spread) for spread in _SPREADS)]
    precision = next((p.dtype for p in one.parameters() if p.is_floating_point()), torch.float32)
    tolerance = _TOLERANCE.get(precision, 5e-2)
    try:
        doubles = [variant.to(dtype=torch.float64) for variant in variants]
        return _agree(deep_copy(one).double(), deep_copy(other).double(), doubles, tolerance)
    except RuntimeError:  # it may insist on its own precision
        return _agree(one, other, variants, tolerance)


@dataclass(frozen=True, eq=False)
class _Attempt:
    shrunk: Shrunk
    changes: dict[str, Kept]


def _proved(original: nn.Module, found: _Attempt, example: Batch) -> bool:
    """Compare twice: carried out in float64, where only a mistake could show, and as it is returned."""
    if not same_function(original, found.shrunk.module, example):
        return False
    try:
        double = deep_copy(original).double()
        return same_function(double, _carried_out(double, found.shrunk.plan, found.changes), example)
    except RuntimeError:  # it insists on its own precision
        return True


def _carried_out(original: nn.Module, plan: dict[str, Any], changes: Mapping[str, Kept]) -> nn.Module:
    """A copy of a module cut by a plan, with its constants folded."""
    module = deep_copy(original)
    targets = {name: module.get_submodule(name) for name in changes}
    module = restructure(module, plan)
    for name, target in targets.items():
        settle(target, changes[name])
    return module


def _attempt(original: nn.Module, trace: Trace, *, free_sizes: bool, picking: bool) -> _Attempt:
    reading = read_trace(original, trace, free_sizes=free_sizes)
    solution = reading.channels.solve()
    plan: dict[str, Any] = {"format": FORMAT, "layers": {}, "norms": {}}
    layers: list[ShrunkLayer] = []
    changes: dict[str, Kept] = {}
    for name, kept in solution.layers(picking=picking).items():
        layer = original.get_submodule(name)
        rows, columns = _sizes(layer)
        before = tuple(layer.weight.shape)  # type: ignore[union-attr,arg-type]
        after = (len(kept.rows), len(kept.columns) // (kept.groups if len(before) > 2 else 1), *before[2:])
        picked = (len(kept.columns), columns) if kept.gather else None
        layers.append(ShrunkLayer(name, reading.layers[name], before, after, **kept.lost, inputs_picked=picked))
        if len(kept.rows) < rows or len(kept.columns) < columns or kept.shift.any():
            changes[name] = kept
            level = kept.shift[kept.rows].any() or kept.level[kept.held].any()
            plan["layers"][name] = layer_entry(kept, bias=bool(layer.bias is not None or level))
    for name, value in reading.norms.items():
        kept_channels = solution.kept(value)
        if len(kept_channels) < len(value.labels):
            plan["norms"][name] = kept_channels.tolist()
    module = _carried_out(original, plan, changes)
    summary = Summary(_size(original), _size(module), tuple(layers), tuple(reading.left.items()))
    return _Attempt(Shrunk(module, summary, plan), changes)


def _agree(one: nn.Module, other: nn.Module, batches: list[Batch], tolerance: float) -> bool:
    with evaluating(one, 0), evaluating(other, 0), torch.no_grad():
        for batch in batches:
            with torch.random.fork_rng(devices=[]):
                wanted = one(*batch.args, **batch.kwargs)
            got = other(*batch.args, **batch.kwargs)
            pairs = zip(_leaves(got), _leaves(wanted), strict=True)
            if not all(_close(a, b, tolerance) for a, b in pairs):
                return False
    return True


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    if a.shape != b.shape or not torch.equal(a.isnan(), b.isnan()):
        return False
    if not b.is_floating_point():
        return torch.equal(a, b)
    a, b = a.double().nan_to_num(), b.double().nan_to_num()
    return not b.numel() or bool((a - b).abs().max() <= tolerance * (b.abs().max() + 1e-12))


def _leaves(result: Any) -> list[Tensor]:
    if hasattr(result, "__dict__") and not isinstance(result, Tensor | Mapping):
        result = vars(result)
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def _random(example: Batch, spread: float) -> Batch:
    """Random numbers in place of an example's floating inputs."""
    generator = torch.Generator().manual_seed(0)

    def draw(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        noise = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
        return (noise * spread).to(leaf.device, leaf.dtype)

    args, kwargs = tree_map(draw, (example.args, example.kwargs))
    return Batch(args, kwargs, example.labels, example.size)


def _sizes(layer: nn.Module) -> tuple[int, int]:
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return int(layer.out_channels), int(layer.in_channels)  # type: ignore[arg-type]


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
