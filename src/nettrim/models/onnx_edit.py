"""Changing an ONNX model in place: own initializers for each layer, bypassed nodes, no leftovers."""

from __future__ import annotations

from typing import Any

import numpy as np

from nettrim.models.onnx_graph import Graph
from nettrim.models.onnx_import import onnx


class Editor:
    """Edits one ModelProto that nobody else holds."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.graph = Graph(model)
        self._used = _used_names(model)  # before any edit: what becomes unused later is ours to drop
        self._names = self._used | {name for node in model.graph.node for name in node.output}
        self._names |= {tensor.name for tensor in model.graph.initializer} | {v.name for v in model.graph.input}
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def refresh(self) -> None:
        """Index the graph again after its nodes changed; what was inferred about values stays true."""
        self.graph = Graph(self.model, ranks=self.graph.ranks)

    def fresh(self, base: str) -> str:
        """A value name nothing in the model uses yet."""
        name, count = base, 1
        while name in self._names:
            count += 1
            name = f"{base}_{count}"
        self._names.add(name)
        return name

    def store(self, name: str, array: np.ndarray) -> None:
        """Write an initializer, replacing the one of that name."""
        write_tensor(self.model, name, array, self._tensors)
        self._names.add(name)

    def own(self, node: Any, slot: int, array: np.ndarray, base: str, *, keep: bool) -> str:
        """Make `array` the node's input in that slot, in an initializer nothing else reads; returns its name."""
        name = node.input[slot] if keep else self.fresh(base)
        self.store(name, array)
        node.input[slot] = name
        return name

    def is_own(self, value: str) -> bool:
        """Whether a value is an initializer with a single reader."""
        return value in self.graph.initializers and self.graph.only_use(value) is not None

    def bypass(self, node: Any) -> str:
        """Remove a node that reads one live value nothing else reads, which takes over the output name returned."""
        source = next(name for name in node.input if name in self.graph.live)
        maker, result = self.graph.made_by(source), node.output[0]
        assert maker is not None
        maker.output[list(maker.output).index(source)] = result
        nodes = self.model.graph.node
        del nodes[next(i for i, other in enumerate(nodes) if other.output[:1] == [result] and source in other.input)]
        self.refresh()
        return result

    def insert(self, after: str, node: Any) -> None:
        """Put a node behind the one that makes a value."""
        nodes = self.model.graph.node
        nodes.insert(next(i for i, other in enumerate(nodes) if after in other.output) + 1, node)
        self._names.update(node.output)
        self.refresh()

    def finish(self) -> None:
        """Drop the nodes and tensors that the edits left unused."""
        graph = self.model.graph
        while True:
            used = _used_names(self.model)
            mine = self._used - used  # read before the edits, and by nobody now
            dead = [i for i, n in enumerate(graph.node) if mine.issuperset(filter(None, n.output))]
            for index in reversed(dead):
                del graph.node[index]
            if not dead:
                break
        for field in (graph.initializer, graph.sparse_initializer, graph.input):
            for index in reversed(range(len(field))):
                item = field[index]
                name = item.values.name if field is graph.sparse_initializer else item.name
                dropped = name in self._used and name not in used
                if dropped and (field is not graph.input or name in self._tensors):
                    del field[index]
        made = {name for node in graph.node for name in node.output}
        for index in reversed(range(len(graph.value_info))):
            if graph.value_info[index].name not in made:
                del graph.value_info[index]
        self.refresh()


def write_tensor(model: Any, name: str, array: np.ndarray, tensors: dict[str, Any] | None = None) -> None:
    """Write an initializer, replacing the one of that name, and keep it out of the caller's reach as an input."""
    graph = model.graph
    found = tensors.get(name) if tensors is not None else next((t for t in graph.initializer if t.name == name), None)
    tensor = onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)
    if found is None:
        graph.initializer.append(tensor)
        if tensors is not None:
            tensors[name] = graph.initializer[-1]
    else:
        found.CopyFrom(tensor)
    listed = next((i for i, value in enumerate(graph.input) if value.name == name), None)
    if model.ir_version >= 4 and listed is not None:
        del graph.input[listed]  # an initializer listed as an input could be overridden by whoever runs the model
    elif model.ir_version < 4 and listed is None:  # before version 4 every initializer had to be listed
        graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))


def _used_names(model: Any) -> set[str]:
    graph = Graph(model)
    return set(graph.consumers) | set(graph.outputs)
