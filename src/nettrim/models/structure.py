"""The structure of a network: its layers, what is skipped and why, and whether they form a chain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from nettrim.certificates.graph import Flow
from nettrim.models.base import LayerSamples
from nettrim.models.batches import Batch
from nettrim.models.capture import Collector, Positions, collect
from nettrim.models.chain import plain_chain
from nettrim.models.flow import flow_of
from nettrim.models.match import agreed, find_uses
from nettrim.models.operations import Geometry
from nettrim.models.running import first_output, plain
from nettrim.models.store import SampleStore
from nettrim.models.trace import Call, Trace
from nettrim.models.unfold import matrix_of
from nettrim.models.weights import Trimmable, Weight, trimmable, why_not

_UNWANTED = "not in targets"
_PROOF_POSITIONS = 8  # of each sample, on which a layer's samples are compared with what it answered


@dataclass(frozen=True)
class Left:
    """A weight that is left as it is."""

    name: str
    kind: str
    parameter: str
    reason: str
    node: int  # where it is applied first
    geometry: Geometry  # of its first use


@dataclass(frozen=True, eq=False)
class Structure:
    """What was found in a module."""

    trace: Trace  # without tensors
    layers: dict[str, Trimmable]  # in order of execution
    left: tuple[Left, ...]
    chain: tuple[str, ...] | None
    flow: Flow | str  # or why there is none


def discover(
    module: nn.Module,
    trace: Trace,
    example: Batch,
    weights: Sequence[tuple[Weight, bool]],
    *,
    positions: int | None,
    seed: int,
) -> Structure:
    """Settle every weight (and whether the user chose it): a layer to trim, or left with a reason.

    A layer is kept only when weight @ inputs + bias + offset, from captured samples, is what its
    activation received on the example.
    """
    everything = find_uses(trace)
    found: dict[str, Trimmable] = {}
    kept: dict[str, Trimmable] = {}  # could be trimmed, but the user does not want it
    reasons: list[str] = []
    for weight, chosen in weights:
        uses = agreed(everything.get(weight.parameter, ()))
        reason = why_not(module, weight, uses, trace) or ("" if chosen else _UNWANTED)
        if reason in ("", _UNWANTED):
            (kept if reason else found)[weight.name] = trimmable(module, weight, uses, everything, trace)
        reasons.append(reason)
    proved = _reproduced(module, [*found.values(), *kept.values()], trace, example, seed)
    left = []
    for (weight, _), reason in zip(weights, reasons, strict=True):
        uses = everything.get(weight.parameter, ())
        geometry = uses[0].geometry if uses else Geometry(type(module.get_submodule(weight.owner)).__name__)
        first = uses[0].node if uses else len(trace.nodes)
        if not reason and weight.name not in proved:
            reason = "its responses could not be reproduced from its weight"
        if reason:
            left.append(Left(weight.name, geometry.kind, weight.parameter, reason, first, geometry))
    order = sorted(proved & found.keys(), key=lambda name: found[name].uses[0].node)
    layers = {name: found[name] for name in order}
    left.sort(key=lambda record: record.node)
    whole = all(record.name in kept and record.name in proved for record in left)
    chain = _chain(trace, {**layers, **kept}, positions) if whole else None
    names = {record.parameter: record.name for record in left}
    flow = flow_of(trace, trace.output_of(first_output(trace.result)), layers.values(), names)
    if positions is not None:
        flow = "only some positions of each sample were used, so the layers' distances cover a part"
    return Structure(trace.light(), layers, tuple(left), chain, flow)


def _reproduced(module: nn.Module, layers: Sequence[Trimmable], trace: Trace, example: Batch, seed: int) -> set[str]:
    """Names of the layers whose captured samples give what they answered."""
    collector = Collector(trace, layers, Positions(_PROOF_POSITIONS, seed), SampleStore())
    collect(module, [example], collector, seed)
    samples = collector.samples()
    return {layer.name for layer in layers if _explained(module, layer, samples[layer.name], trace)}


def _explained(module: nn.Module, layer: Trimmable, samples: LayerSamples, trace: Trace) -> bool:
    parameter = module.get_parameter(layer.parameter)
    matrix = matrix_of(plain(parameter), layer.geometry).double()
    rows = matrix.reshape(layer.geometry.groups, -1, matrix.shape[1])
    inputs = samples.inputs.double()
    made = torch.einsum("gsi,goi->sgo", inputs, rows).flatten(1)
    scale = torch.einsum("gsi,goi->sgo", inputs.abs(), rows.abs()).flatten(1).max()
    for extra in (samples.offset, None if layer.bias is None else plain(module.get_parameter(layer.bias))):
        if extra is not None:
            made = made + extra.double()
            scale = scale + extra.abs().max()
    out = _call(trace, layer.uses[0].node).out
    rounding = max(torch.finfo(dtype).eps for dtype in (parameter.dtype, out.dtype))  # autocast lowers the second
    error = (made - samples.preactivations.double()).abs().max()
    return bool(error <= 64 * rounding * scale)


def _chain(trace: Trace, layers: dict[str, Trimmable], positions: int | None) -> tuple[str, ...] | None:
    if any(len(layer.uses) != 1 for layer in layers.values()):
        return None
    uses = {layer.name: layer.uses[0] for layer in layers.values()}
    if positions is not None and any(_call(trace, use.node).out.dim() > 2 for use in uses.values()):
        return None  # sampled positions are not all that the next layer reads
    return plain_chain(trace, uses)


def _call(trace: Trace, node: int) -> Call:
    call = trace.nodes[node].call
    assert call is not None
    return call
