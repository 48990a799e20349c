"""What a forward pass does, as a digest: operations, their order, their plain arguments. Weights have digests apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nettrim.models.trace import Node, Trace

_PLAIN = (bool, int, float, complex, str, slice, torch.dtype, type(None), type(...))


def operations_digest(module: nn.Module, trace: Trace) -> str:
    """SHA-256 of what a module did in a pass whose `trace` has its calls, the same on every machine.

    In it: each operation's name, the values it reads, its numbers, texts and constant tensors, and buffers that no
    state dictionary has. Of constant tensors of floating numbers, which a machine may round its own way, the shapes.
    """
    sha = hashlib.sha256()
    for node in trace.nodes:
        sha.update(f"{node.name} {node.inputs} {node.outputs}\n".encode())
        for part in _arguments(node):
            sha.update(part)
    sha.update(f"{trace.inputs} {trace.outputs}\n".encode())
    saved = module.state_dict().keys()
    for name, buffer in module.named_buffers():
        if name not in saved:
            sha.update(f"{name} ".encode() + _tensor(buffer))
    return sha.hexdigest()


def _arguments(node: Node) -> Iterator[bytes]:
    """What a node was given besides values and parameters."""
    assert node.call is not None
    keys = iter(node.inputs)
    leaves: list[Any] = tree_leaves((node.call.args, node.call.kwargs))
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            if next(keys, "") is None and not leaf.dtype.is_floating_point:
                yield _tensor(leaf)
        elif isinstance(leaf, _PLAIN):
            yield f"{leaf!r}\n".encode()
        else:
            yield f"{type(leaf).__name__}\n".encode()


def _tensor(tensor: Tensor) -> bytes:
    tensor = tensor.detach().cpu().contiguous()
    head = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
    return head + tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
