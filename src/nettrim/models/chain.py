"""Whether a network is a plain chain of Linear layers, for which the network bounds hold."""

from __future__ import annotations

from nettrim.models.match import Use, branches, keeps_values
from nettrim.models.trace import Node, Trace


def plain_chain(trace: Trace, uses: dict[str, Use]) -> tuple[str, ...] | None:
    """Layer names in order, or None.

    `uses` maps every weighted layer to its only use. Each layer has to read exactly the responses of the
    one before, through reshapes and evaluation-mode dropout only, and the last one's have to be the output.
    """
    biases = {addition.node for use in uses.values() for addition in use.additions if addition.bias}
    by_node = {use.node: (name, use) for name, use in uses.items()}
    if len(trace.inputs) != 1 or len(trace.outputs) != 1 or any(use.geometry.dims for use in uses.values()):
        return None
    order: list[str] = []
    value = trace.inputs[0]
    pending: int | None = None
    while True:
        readers = trace.users(value)
        if len(readers) != 1:
            return None
        if readers[0] == -1:
            whole = len(order) == len(uses) and pending is None
            return tuple(order) if whole and order else None
        node = trace.nodes[readers[0]] if readers[0] >= 0 else None
        if node is None or not node.outputs or not (node.index in biases or _works_on(node, value)):
            return None
        if node.index in by_node:
            name, use = by_node[node.index]
            if pending is not None or branches(use):
                return None
            order.append(name)
            pending = use.end
        elif node.index == pending:
            pending = None
        elif node.index not in biases and not keeps_values(node):
            return None
        value = node.outputs[0]


def _works_on(node: Node, value: int) -> bool:
    """Whether a value is the operation's input (and not, say, its weight)."""
    if node.applied is not None and node.applied.bias != "?":
        return value in node.inputs  # weight and bias are parameters: it is neither
    return bool(node.inputs) and node.inputs[0] == value
