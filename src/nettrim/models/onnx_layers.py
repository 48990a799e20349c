"""Matching layers in an ONNX graph: which activation a site feeds, what is added on the way, plain chains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nettrim.models.base import Network, Skipped
from nettrim.models.onnx_activations import activation_name, data_input
from nettrim.models.onnx_graph import Graph, attributes, is_standard
from nettrim.models.onnx_sites import Site

_RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"})
_MAX_POOLS = frozenset({"MaxPool", "GlobalMaxPool", "ReduceMax"})


def match(graph: Graph, sites: Sequence[Site]) -> list[Site]:
    """Every site with its activation and offsets.

    A sum before an activation is claimed by one of its branches only, the one with more weights and of
    equal ones the later; the others take the linear form, so that no slack is given away twice.
    """
    followed = [_follow(graph, site) for site in sites]
    order = sorted(range(len(sites)), key=lambda i: (math.prod(sites[i].shape), i), reverse=True)
    claimed: set[str] = set()
    for index in order:
        site = followed[index]
        if site.preactivation != site.result:
            if site.preactivation in claimed:
                followed[index] = _linear(sites[index])
            claimed.add(site.preactivation)
    return followed


def plain_chain(graph: Graph, sites: Sequence[Site]) -> tuple[str, ...] | None:
    """Names in order when each site reads exactly the responses of the one before and the last gives the output."""
    if len(graph.inputs) != 1 or len(graph.outputs) != 1 or not sites:
        return None
    before = graph.inputs[0].name
    for site in sites:
        plain = site.convolution is None and not site.offsets and site.response is not None
        if not plain or _origin(graph, site.source) != before:
            return None
        before = site.response or ""
    return tuple(site.name for site in sites) if _origin(graph, graph.outputs[0]) == before else None


def chain_with(kept: Sequence[Skipped], whole: Network) -> tuple[tuple[str, ...] | None, tuple[Skipped, ...]]:
    """The chain through layers that are kept as they are, and those layers with the weights that it takes.

    `whole` is the same model with every layer prepared for trimming; its outputs agree with the model's.
    """
    if whole.chain is None:
        return None, tuple(kept)
    weights = {layer.name: layer.weight for layer in whole.layers}
    return whole.chain, tuple(replace(record, weight=weights[record.name]) for record in kept)


def _follow(graph: Graph, site: Site) -> Site:
    """Walk from a site's result to the one activation that reads it.

    Reshapes and max pools commute with a monotone activation, so it may stand behind them. A second
    reader, the graph's own output, or anything else on the way gives the linear form.
    """
    value = preactivation = site.result
    offsets = list(site.offsets)
    moved = pooled = False
    while (use := graph.only_use(value)) is not None:
        node = graph.nodes[use.node]
        name = activation_name(graph, node)
        if name is not None and data_input(graph, node) == value:
            response = None if pooled else node.output[0]
            return replace(
                site,
                activation=name,
                preactivation=preactivation,
                offsets=tuple(offsets),
                response=response,
                end=node.output[0],
            )
        if not is_standard(node):
            break
        if node.op_type in _MAX_POOLS and use.slot == 0 and not any(node.output[1:]):
            moved = pooled = True
        elif keeps_values(graph, node) and use.slot == 0:
            moved = moved or node.op_type in _RESHAPES
        elif node.op_type in ("Add", "Sum") and len(node.input) == 2 and not moved:
            other = node.input[1 - use.slot]
            ranks = graph.ranks
            if ranks.get(other, 0) > ranks.get(value, ranks.get(other, 0)):
                break
            offsets.append((other, 1.0))
            preactivation = node.output[0]
        else:
            break
        value = node.output[0]
    return _linear(site)


def keeps_values(graph: Graph, node: Any) -> bool:
    """Whether a node only passes its first input on, perhaps in another shape."""
    if not is_standard(node):
        return False
    if node.op_type == "Dropout":
        if attributes(node).get("is_test", 1) == 0:
            return False
        training = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        given = len(node.input) > 2 and bool(node.input[2])
        return not given or (training is not None and not bool(training.array.any()))
    return node.op_type == "Identity" or node.op_type in _RESHAPES


def _linear(site: Site) -> Site:
    return replace(site, activation="linear", preactivation=site.result, response=site.result, end=site.result)


def _origin(graph: Graph, value: str) -> str:
    """The value behind reshapes and evaluation-mode dropout."""
    node = graph.made_by(value)
    while node is not None and keeps_values(graph, node) and value == node.output[0]:
        value = node.input[0]
        node = graph.made_by(value)
    return value
