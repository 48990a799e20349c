"""A value graph of one forward pass: which operations ran, on which values, and who read each value.

The graph is found by running the model, never by guessing from module names. Two PyTorch modes
watch the run: a function mode sees every call of the Python interface, and a dispatch mode below it
sees every kernel, so that a weight read in a way the first did not explain is noticed.
"""

from __future__ import annotations

import sys
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nettrim.models.operations import Geometry, is_metadata, linear_call, operation_name, reads_memory

_NO_NODE = -1  # for what is read between the operations
Key = int | str | None  # a value's number, a parameter's or buffer's name, or a constant


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments and the result of one operation, as the model passed them."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any = None

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument given by position or by name."""
        if len(self.args) > position:
            return self.args[position]
        return self.kwargs.get(name, default)


@dataclass(frozen=True)
class Applied:
    """A parameter applied as a layer's weight, whole or as its transpose."""

    weight: str
    bias: str | None  # a parameter's or buffer's name; "?" for a bias that is neither
    geometry: Geometry  # as the parameter stores the weight


@dataclass(frozen=True, eq=False)
class Node:
    """One operation of the forward pass; `call` is kept only in the trace of the example."""

    index: int
    name: str
    inputs: tuple[Key, ...]
    outputs: tuple[int, ...]
    call: Call | None = None
    applied: Applied | None = None

    def same(self, other: Node) -> bool:
        """Whether two passes did the same thing here."""
        return (self.name, self.inputs, self.outputs) == (other.name, other.inputs, other.outputs)


@dataclass(frozen=True, eq=False)
class Trace:
    """What one forward pass did."""

    nodes: tuple[Node, ...]
    inputs: tuple[int, ...]  # the values that came in with the batch
    outputs: tuple[Key, ...]  # the values that went out
    raw_uses: dict[str, tuple[str, ...]]  # parameter -> operations that read it other than as a layer's weight or bias
    raw_nodes: dict[str, frozenset[int]]  # parameter -> the nodes that did so
    hidden: frozenset[int]  # values read through memory they share, unseen as values
    result: Any = None

    def users(self, value: int) -> tuple[int, ...]:
        """Indices of the nodes that read a value, -1 for the model's output, -2 for an unseen reader, one a reading."""
        return self._users.get(value, ())

    @cached_property
    def _users(self) -> dict[Key, tuple[int, ...]]:
        found: dict[Key, list[int]] = {}
        for node in self.nodes:
            for key in node.inputs:
                found.setdefault(key, []).append(node.index)
        for key in self.outputs:
            found.setdefault(key, []).append(-1)
        for value in self.hidden:
            found.setdefault(value, []).append(-2)
        return {key: tuple(users) for key, users in found.items()}

    def output_of(self, tensor: Tensor) -> Key:
        """The value that a tensor of the result is (in a trace with its calls), None where it is none."""
        tensors = _tensors_inside(self.result)
        return next((key for found, key in zip(tensors, self.outputs, strict=True) if found is tensor), None)

    def light(self) -> Trace:
        """The same trace without the tensors."""
        return replace(self, nodes=tuple(replace(node, call=None) for node in self.nodes), result=None)


class Listener:
    """Called around each operation of a pass; the default hears nothing."""

    def before(self, node: Node) -> None:
        """Before the operation runs: its inputs are still what they were (operations may write in place)."""

    def after(self, node: Node) -> None:
        """After it ran: `node.call.out` and `node.outputs` are known."""


@dataclass
class _Known:
    reference: Callable[[], Tensor | None]
    value: int


@dataclass
class _Names:
    """Names of parameters and buffers, by tensor and by memory."""

    tensors: dict[int, str] = field(default_factory=dict)
    memory: dict[int, tuple[str, ...]] = field(default_factory=dict)
    parameters: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, module: nn.Module) -> _Names:
        names = cls()
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            names.tensors[id(tensor)] = name
        for name, parameter in module.named_parameters():
            names.parameters[name] = parameter
            pointer = memory(parameter)
            if pointer:
                names.memory[pointer] = (*names.memory.get(pointer, ()), name)
        return names


class Recorder:
    """Numbers the values and operations of one forward pass.

    With `keep` every tensor stays alive, so that identities are never reused; without it only weak
    references are held and memory is freed as in an unobserved run.
    """

    def __init__(self, module: nn.Module, listener: Listener, *, keep: bool) -> None:
        self.names = _Names.of(module)
        self.listener = listener
        self.keep = keep
        self.nodes: list[Node] = []
        self.raw: dict[str, list[str]] = {}
        self.raw_nodes: dict[str, set[int]] = {}
        self.hidden: set[int] = set()
        self._values: dict[int, _Known] = {}
        self._storages: dict[int, list[int]] = {}
        self._count = 0
        self.depth = 0
        self.running = ""
        self.current = _NO_NODE
        self.explained: frozenset[str] = frozenset()

    def assign(self, tensor: Tensor) -> int:
        """Give a tensor the next value number."""
        value, self._count = self._count, self._count + 1
        reference = (lambda: tensor) if self.keep else weakref.ref(tensor)
        self._values[id(tensor)] = _Known(reference, value)
        if self.keep:
            self._storages.setdefault(memory(tensor), []).append(value)
        return value

    def key(self, tensor: Tensor) -> Key:
        """The number of a known value, the name of a parameter, None for anything else."""
        known = self._values.get(id(tensor))
        if known is not None and known.reference() is tensor:
            return known.value
        name = self.names.tensors.get(id(tensor))
        if name is None and self.keep:
            self.hidden.update(self._storages.get(memory(tensor), ()))
        return name

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operation and record it."""
        name = operation_name(func)
        tensors = _tensors((args, kwargs))
        if reads_memory(name):
            self.note_raw(tensors, name)
        if not tensors or is_metadata(name):
            return self._inside(func, args, kwargs, name, frozenset(), _NO_NODE)
        applied = self._applied(name, args, kwargs)
        node = Node(len(self.nodes), name, tuple(map(self.key, tensors)), (), Call(args, kwargs), applied)
        self._tell(self.listener.before, node)
        versions = [_version(tensor) for tensor in tensors]
        out = self._inside(func, args, kwargs, name, _explained(applied), node.index)
        results = {id(t): t for t in _tensors(out)}
        for tensor, version in zip(tensors, versions, strict=True):
            if _version(tensor) != version:  # written in place: a new value from here on
                results[id(tensor)] = tensor
        outputs = tuple(self.assign(tensor) for tensor in results.values())
        node = replace(node, outputs=outputs, call=Call(args, kwargs, out))
        self.nodes.append(node if self.keep else replace(node, call=None))
        self._tell(self.listener.after, node)
        return out

    def _tell(self, hear: Callable[[Node], None], node: Node) -> None:
        self.depth += 1  # what the listener does is not the model's doing
        try:
            hear(node)
        finally:
            self.depth -= 1

    def _inside(
        self, func: Callable[..., Any], args: Any, kwargs: Any, name: str, explained: frozenset[str], node: int
    ) -> Any:
        before = self.running, self.explained, self.current
        self.running, self.explained, self.current = name, explained, node
        self.depth += 1
        try:
            return func(*args, **kwargs)
        finally:
            self.depth -= 1
            self.running, self.explained, self.current = before

    def _applied(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Applied | None:
        """The parameter that this operation applies as a layer's weight, None where it applies none."""
        call = linear_call(name, args, kwargs)
        if call is None or memory(call.inputs) == memory(call.weight):
            return None
        weight, geometry = self.key(call.weight), call.geometry
        if not isinstance(weight, str) and geometry.dims == 0:
            weight = next((name for name in self._transposes(call.weight)), None)
            geometry = replace(geometry, flipped=not geometry.flipped)
        if not isinstance(weight, str):
            return None
        bias = None if call.bias is None else self.key(call.bias)
        return Applied(weight, bias if bias is None or isinstance(bias, str) else "?", geometry)

    def _transposes(self, tensor: Tensor) -> Iterator[str]:
        """Names of the parameters that a tensor is the whole transpose of, in the same memory."""
        for name in self.names.memory.get(memory(tensor), ()):
            turned = self.names.parameters[name].mT if self.names.parameters[name].dim() == 2 else None
            if turned is not None and _place(turned) == _place(tensor):
                yield name

    def note_raw(self, tensors: Iterable[Tensor], name: str) -> None:
        """Note the parameters whose memory an operation reads without being a layer's own use."""
        for tensor in tensors:
            for parameter in self.names.memory.get(memory(tensor), ()):
                if parameter not in self.explained:
                    self.raw_nodes.setdefault(parameter, set()).add(self.current)
                    uses = self.raw.setdefault(parameter, [])
                    if name not in uses:
                        uses.append(name)


class _Functions(TorchFunctionMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        recorder = self.recorder
        if func is F.multi_head_attention_forward:  # look inside: its projections are linear layers
            with self:
                return _open_attention(*args, **(kwargs or {}))
        if recorder.depth:
            return func(*args, **(kwargs or {}))
        return recorder.call(func, args, kwargs or {})


class _Kernels(TorchDispatchMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        recorder = self.recorder
        with torch._C.DisableTorchFunction():
            if not _only_views(func):
                recorder.note_raw(_tensors((args, kwargs)), recorder.running or operation_name(func))
            if recorder.depth == 0:  # compiled code: unseen by the function mode
                return recorder.call(func, args, kwargs or {})
            return func(*args, **(kwargs or {}))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # of torch: whether to keep its compiler, seconds to import, out of the above
        return False


class _KernelsBesideCompiler(_Kernels):
    def __torch_dispatch__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__torch_dispatch__(*args, **kwargs)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return True


def record(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], listener: Listener | None = None, *, keep: bool
) -> Trace:
    """Run a module once and return what it did."""
    recorder = Recorder(module, listener or Listener(), keep=keep)
    inputs = tuple(recorder.assign(tensor) for tensor in {id(t): t for t in _tensors((args, kwargs))}.values())
    kernels = _KernelsBesideCompiler if "torch._dynamo" in sys.modules else _Kernels
    with torch.no_grad(), _Functions(recorder), kernels(recorder):
        result = module(*args, **kwargs)
    outputs = tuple(recorder.key(tensor) for tensor in _tensors_inside(result))
    raw = {name: tuple(uses) for name, uses in recorder.raw.items()}
    nodes = {name: frozenset(indices) for name, indices in recorder.raw_nodes.items()}
    hidden = frozenset(recorder.hidden)
    return Trace(tuple(recorder.nodes), inputs, outputs, raw, nodes, hidden, result if keep else None)


def memory(tensor: Tensor) -> int:
    """Address of a tensor's storage, 0 where it has none."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Which entries of a storage a tensor shows, in which order."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _explained(applied: Applied | None) -> frozenset[str]:
    """Parameters that an operation reads as a layer's weight or bias."""
    return frozenset(() if applied is None else (name for name in (applied.weight, applied.bias) if name))


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _tensors_inside(result: Any) -> list[Tensor]:
    """The tensors of a result, also where it is an object of the model's own class."""
    found = []
    for leaf in tree_leaves(result):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, type | nn.Module):
            found += _tensors(list(vars(leaf).values()))
    return found


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _only_views(func: Any) -> bool:
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _without_overrides(func: types.FunctionType) -> Callable[..., Any]:
    """The same Python function that does not hand itself over to a function mode."""
    scope = {**func.__globals__, "has_torch_function": lambda tensors: False}
    copy = types.FunctionType(func.__code__, scope, func.__name__, func.__defaults__, func.__closure__)
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy


_open_attention = _without_overrides(F.multi_head_attention_forward)
