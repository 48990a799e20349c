"""Which weights are layers, which activation each one feeds, and what is added on the way."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

from torch import Tensor

from nettrim.models.operations import (
    ADDITIONS,
    DROPOUTS,
    MAX_POOLS,
    RESHAPES,
    SAME_LAYOUT,
    Geometry,
    activation_name,
    linear_call,
)
from nettrim.models.trace import Call, Node, Trace


@dataclass(frozen=True)
class Addition:
    """A sum between a layer and its activation: which node, and which operand is the other branch."""

    node: int
    other: int  # 0 or 1
    bias: bool = False  # the other operand is the layer's own bias, added by hand


@dataclass(frozen=True)
class Use:
    """One place where a weight is applied."""

    node: int
    geometry: Geometry
    bias: str | None  # a parameter's name; "?" for a bias that is no parameter
    activation: str
    additions: tuple[Addition, ...] = ()
    end: int | None = None  # the activation's node


def find_uses(trace: Trace) -> dict[str, tuple[Use, ...]]:
    """The uses of every weight that the model applies as a layer, by the weight's parameter name."""
    uses: dict[str, list[Use]] = defaultdict(list)
    sizes: dict[int, int] = {}
    for node in trace.nodes:
        applied = node.applied
        if applied is None:
            continue
        use = _follow(trace, Use(node.index, applied.geometry, applied.bias, "linear"))
        uses[applied.weight].append(use)
        call = _call(node)
        linear = linear_call(node.name, call.args, call.kwargs)
        sizes[node.index] = linear.weight.numel() if linear is not None else 0
    return _one_claim_a_sum({name: tuple(found) for name, found in uses.items()}, sizes)


def agreed(uses: tuple[Use, ...]) -> tuple[Use, ...]:
    """The uses with one common activation; where they differ all take the linear form, valid for any of them."""
    if len({use.activation for use in uses}) == 1:
        return uses
    return tuple(_linear(use) for use in uses)


def _follow(trace: Trace, use: Use) -> Use:
    """Walk from a layer's output to the one activation that reads it, through sums, reshapes and pools.

    Max pools and reshapes commute with a monotone activation, so it may stand on either side of them.
    Anything else, or a second reader, gives the linear form.
    """
    value = trace.nodes[use.node].outputs[0]
    additions: list[Addition] = []
    moved = False
    while True:
        readers = trace.users(value)
        if len(readers) != 1 or readers[0] < 0:
            return use  # with a bias that was found on the way
        node = trace.nodes[readers[0]]
        call = _call(node)
        activation = activation_name(node.name, call.args, call.kwargs)
        computed = any(isinstance(key, int) for key in node.inputs[1:])  # such as a slope of the data
        if activation is not None and node.inputs[0] == value and not computed:
            return replace(use, activation=activation, additions=tuple(additions), end=node.index)
        if len(node.outputs) != 1:
            return use
        if keeps_values(node):
            moved = moved or node.name in RESHAPES
        elif node.name in MAX_POOLS and node.inputs[0] == value:
            moved = True
        elif node.name in ADDITIONS and not moved and (addition := _addition(node, value)) is not None:
            if use.bias is None and not additions and (bias := _bias(node, use, addition)) is not None:
                addition = replace(addition, bias=True)
                use = replace(use, bias=bias, additions=(addition,))
            additions.append(addition)
        else:
            return use
        value = node.outputs[0]


def keeps_values(node: Node) -> bool:
    """Whether a node only passes its input on, perhaps in another shape or precision."""
    call = _call(node)
    before, after = call.args[0] if call.args else call.kwargs.get("input"), call.out
    if not (isinstance(before, Tensor) and isinstance(after, Tensor)) or before.numel() != after.numel():
        return False
    if not (before.is_floating_point() and after.is_floating_point()):
        return False
    if node.name in DROPOUTS:
        return not call.argument(2, "training" if "training" in call.kwargs else "train", True)
    if node.name == "view" and before.dtype != after.dtype:
        return False  # the same bits read as other numbers
    return node.name in SAME_LAYOUT or node.name in RESHAPES


def _addition(node: Node, value: int) -> Addition | None:
    call = _call(node)
    if call.argument(2, "alpha", 1) != 1 or len(call.args) < 2 or not isinstance(call.out, Tensor):
        return None
    operands = call.args[:2]
    mine = [
        place
        for place, operand in enumerate(operands)
        if isinstance(operand, Tensor) and operand.shape == call.out.shape
    ]
    keys = iter(node.inputs)
    names = [next(keys) if isinstance(operand, Tensor) else None for operand in operands]
    places = [place for place in mine if names[place] == value]
    return Addition(node.index, 1 - places[0]) if len(places) == 1 else None


def _bias(node: Node, use: Use, addition: Addition) -> str | None:
    """The name of what is added to a product when it has one number for each output, as a bias has."""
    call = _call(node)
    other = call.args[addition.other]
    if use.geometry.dims or not isinstance(other, Tensor) or tuple(other.shape) != tuple(call.out.shape[-1:]):
        return None
    tensors = [leaf for leaf in call.args[:2] if isinstance(leaf, Tensor)]
    key = next(key for leaf, key in zip(tensors, node.inputs, strict=False) if leaf is other)
    return key if isinstance(key, str) else None


def branches(use: Use) -> tuple[Addition, ...]:
    """The sums of a use that add another branch, and not the layer's own bias."""
    return tuple(addition for addition in use.additions if not addition.bias)


def without_own_bias(use: Use) -> Use:
    """The use with a bias that was added by hand as a branch like any other."""
    if not any(addition.bias for addition in use.additions):
        return use
    return replace(use, bias=None, additions=tuple(replace(addition, bias=False) for addition in use.additions))


def _one_claim_a_sum(uses: dict[str, tuple[Use, ...]], sizes: dict[int, int]) -> dict[str, tuple[Use, ...]]:
    """Let one branch of every sum see the other as its offset; the other branches take the linear form.

    The branch with more weights gains more from the activation; of equal ones the later.
    """
    claimed: set[int] = set()
    kept: set[int] = set()
    everything = [use for found in uses.values() for use in found if branches(use)]
    for use in sorted(everything, key=lambda use: (sizes[use.node], use.node), reverse=True):
        nodes = {addition.node for addition in branches(use)}
        if not nodes & claimed:
            claimed |= nodes
            kept.add(use.node)
    return {
        name: tuple(use if not branches(use) or use.node in kept else _linear(use) for use in found)
        for name, found in uses.items()
    }


def _linear(use: Use) -> Use:
    additions = tuple(addition for addition in use.additions if addition.bias)
    return replace(use, activation="linear", additions=additions, end=None)


def _call(node: Node) -> Call:
    return node.call if node.call is not None else Call((), {})
