"""Plain chains of Linear layers, and the sparse kernel for them: CSR times feature-major activations."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nettrim.models.batches import Batch
from nettrim.models.match import keeps_values
from nettrim.models.operations import linear_call
from nettrim.models.running import example_trace

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "sigmoid": torch.sigmoid_,
    "tanh": torch.tanh_,
}


@dataclass(frozen=True, eq=False)
class Step:
    """One layer of a chain: picked inputs, weight (out, in), bias (out,), activation ("" for none)."""

    weight: Tensor
    bias: Tensor
    activation: str = ""
    columns: Tensor | None = None


Chain = tuple[Step, ...]


def chain_of(module: nn.Module, example: Batch) -> Chain | None:
    """The layers of a module that is a plain chain of float32 Linear layers on (samples, features), else None."""
    if len(example.args) != 1 or example.kwargs:
        return None
    trace, _ = example_trace(module, example, 0)
    if len(trace.inputs) != 1 or trace.hidden:
        return None
    value, steps = trace.inputs[0], []
    columns: Tensor | None = None
    for node in trace.nodes:
        call = node.call
        if call is None or len(node.outputs) != 1 or not node.inputs or node.inputs[0] != value:
            return None
        name = node.name.removesuffix("_")
        linear = linear_call(node.name, call.args, call.kwargs)
        if linear is not None and linear.geometry.dims == 0 and linear.inputs.dim() == 2:
            weight = linear.weight.detach().cpu()
            if weight.dtype != torch.float32:
                return None
            weight = weight.T.contiguous() if linear.geometry.flipped else weight
            bias = torch.zeros(len(weight)) if linear.bias is None else linear.bias.detach().cpu()
            steps.append(Step(weight, bias, "", columns))
            columns = None
        elif name in _ACTIVATIONS and steps and not steps[-1].activation and columns is None:
            last = steps[-1]
            steps[-1] = Step(last.weight, last.bias, name, last.columns)
        elif name == "index_select" and columns is None and call.out.dim() == 2:
            columns = call.args[2].detach().cpu()
        elif not keeps_values(node) or call.out.shape[0] != call.args[0].shape[0] or (steps and call.out.dim() != 2):
            return None
        value = node.outputs[0]
    return tuple(steps) if steps and columns is None and trace.outputs == (value,) else None


def csr(matrix: Tensor) -> Tensor:
    """A sparse matrix with int32 indices, which beat int64."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch calls its CSR support a beta
        found = matrix.to_sparse_csr()
        rows, columns = found.crow_indices().int(), found.col_indices().int()
        return torch.sparse_csr_tensor(rows, columns, found.values(), size=matrix.shape)


class SparseChain:
    """Runs a chain with CSR products on feature-major activations; layers with many weights stay dense."""

    def __init__(self, chain: Chain, *, sparse_from: float = 0.5) -> None:
        self.steps = []
        for step in chain:
            zeros = 1 - int(torch.count_nonzero(step.weight)) / max(step.weight.numel(), 1)
            weight = csr(step.weight) if zeros >= sparse_from else step.weight
            self.steps.append((weight, step.bias[:, None], _ACTIVATIONS.get(step.activation), step.columns))

    def __call__(self, inputs: Tensor) -> Tensor:
        """(samples, ...) in, (samples, out) out."""
        values = inputs.reshape(len(inputs), -1).T.contiguous()
        with torch.no_grad():
            for weight, bias, activation, columns in self.steps:
                values = values if columns is None else values[columns]
                values = (weight @ values).add_(bias)
                values = values if activation is None else activation(values)
        return values.T
