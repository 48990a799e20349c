"""How an error can travel through an ONNX graph: its nodes as steps with known Lipschitz constants.

As `nettrim.models.flow` has it for a module's trace, with the same table (docs/bounds.md, section 7). A node that reads
a value which trimming can change, and is not known, leaves the network without a bound, and the reason says which.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from nettrim.certificates.graph import Flow, Step
from nettrim.errors import DataError, ModelError
from nettrim.models.batches import Batch
from nettrim.models.onnx_constants import (
    POOLS,
    SHAPED,
    NoConstant,
    Shapes,
    constant_of,
    pooled,
    repeats_of,
    spread,
    turned,
)
from nettrim.models.onnx_graph import Graph, names_inside
from nettrim.models.onnx_run import Part, chunks
from nettrim.models.onnx_sites import Site

_SAME = -1  # stands for a value that trimming does not change


def flow_of(graph: Graph, sites: Sequence[Site], output: str, shapes: Shapes) -> Flow | str:
    """The steps from the layers of a prepared graph to one of its values, or the reason why there are none.

    sites: in order of execution, matched in this graph.
    """
    walk = _Walk(graph, shapes)
    try:
        for place, site in enumerate(sites):
            walk.expect(place, site)
    except NoConstant as reason:
        return str(reason)
    for index, node in enumerate(graph.nodes):
        walk.visit(index, node)
    if output not in walk.touched:
        return "the output was not seen to depend on a trimmed layer"
    if output in walk.lost:
        return walk.lost[output]
    return Flow(tuple(walk.steps), walk.touched[output], walk.repeats)


def measured_shapes(
    model: Any, graph: Graph, sites: Sequence[Site], batch: Batch
) -> tuple[dict[str, tuple[int, ...]], int]:
    """The shapes that constants depend on, and the number of samples of a batch with which they were seen.

    Raises NoConstant where the model leaves other sizes open, or cannot take the batch.
    """
    kinds = [value.type.tensor_type for value in graph.inputs]
    if not all(kind.HasField("shape") and all(d.dim_value > 0 for d in kind.shape.dim[1:]) for kind in kinds):
        raise NoConstant("the model leaves sizes open besides the number of samples")
    names = {name for node in graph.nodes if node.op_type in SHAPED for name in (*node.input, *node.output[:1])}
    names.update(name for site in sites for name in (site.result, *(offset for offset, _ in site.offsets)))
    try:
        chunk = next(chunks(graph.inputs, batch))
        found = Part(model, sorted(names - {""})).run(chunk)
    except (DataError, ModelError) as error:
        raise NoConstant("the sizes of its values are not known") from error
    return {name: tuple(np.shape(array)) for name, array in found.items()}, chunk.size


class _Walk:
    def __init__(self, graph: Graph, shapes: Shapes) -> None:
        self.graph, self.shapes = graph, shapes
        self.steps: list[Step] = []
        self.touched: dict[str, int] = {}  # values that trimming can change, with the numbers they have in steps
        self.lost: dict[str, str] = {}  # those of them without a bound, and why
        self.repeats: dict[str, int] = {}
        self._ends: dict[int, tuple[int, Site, list[Any]]] = {}  # by the node that gives a layer's responses
        self._inside: set[int] = set()  # nodes between a product and its responses
        self._count = 0

    def expect(self, place: int, site: Site) -> None:
        """Note where a layer's responses are given, and what stands between them and its product."""
        path, value = [self.graph.producer[site.output]], site.output
        while value != site.end:
            use = self.graph.only_use(value)
            if use is None:
                raise NoConstant(f"the way from layer {site.name!r} to its responses was not found")
            path.append(use.node)
            value = self.graph.nodes[use.node].output[0]
        self._ends[path[-1]] = (place, site, [self.graph.nodes[index] for index in path])
        self._inside.update(path[:-1])

    def visit(self, index: int, node: Any) -> None:
        """The step of one node, if it reads what trimming can change or ends a layer."""
        if index in self._inside:
            return
        end = self._ends.get(index)
        read = [name for name in (*node.input, *names_inside(node)) if name in self.touched]
        if end is None and not read:
            return
        try:
            if end is not None:
                self._layer(*end)
                return
            for name in read:
                self._number(name)
            if len(read) != sum(name in self.touched for name in node.input):
                raise NoConstant(f"{_called(node)} reads what trimming can change from inside a sub-graph")
            factor, joined = constant_of(self.graph, node, frozenset(read), self.shapes)
            inputs = tuple(self._number(name) for name in read)
            outputs = node.output if node.op_type == "Split" else node.output[:1]
            for name in outputs:
                self._add(name, inputs, factor, joined)
            self._lose(node.output[len(outputs) :], f"{_called(node)} gives more than one value")
        except NoConstant as reason:
            self._lose(node.output, str(reason))

    def _layer(self, place: int, site: Site, path: Sequence[Any]) -> None:
        if any(map(turned, path)):
            raise NoConstant(f"the responses of layer {site.name!r} have the samples on another axis")
        inputs = [self._number(site.source)]
        for name, factor in site.offsets:
            number = self._number(name)
            if number != _SAME:
                factor = abs(factor) * spread(path[0], name, site.result, self.shapes)
                number = self._step((number,), factor)
            inputs.append(number)
        # pools on the way commute with the activation; their constant applies to the responses
        factor = math.prod(pooled(self.graph, node, self.shapes) for node in path if node.op_type in POOLS)
        self.repeats[site.name] = repeats_of(site.convolution)
        self._add(site.end, tuple(inputs), factor, layer=site.name, place=place)

    def _number(self, name: str) -> int:
        """A value's number in the steps. Raises NoConstant for one that is lost."""
        if name in self.lost:
            raise NoConstant(self.lost[name])
        return self.touched.get(name, _SAME)

    def _step(self, inputs: tuple[int, ...], factor: float, joined: bool = False, **layer: Any) -> int:
        self._count += 1
        self.steps.append(Step(self._count, inputs, factor, joined, **layer))
        return self._count

    def _add(
        self, output: str, inputs: tuple[int, ...], factor: float = 1.0, joined: bool = False, **layer: Any
    ) -> None:
        self.touched[output] = self._step(inputs, factor, joined, **layer)

    def _lose(self, names: Sequence[str], reason: str) -> None:
        for name in names:
            if name:
                self.touched[name] = _SAME
                self.lost[name] = reason


def _called(node: Any) -> str:
    return f"{node.op_type} node {node.name!r}" if node.name else node.op_type
