"""Exported programs (.pt2) as modules whose operations are known by the names that PyTorch's functions have."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Operators with the arguments of the function, or method, of the same name.
_FUNCTIONS = (
    "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d relu relu6 hardtanh hardtanh_ "
    "hardsigmoid leaky_relu leaky_relu_ prelu threshold softplus dropout max_pool1d max_pool2d max_pool3d"
).split()
_TORCH = (
    "addmm mm matmul add clamp clamp_min clamp_max sigmoid tanh relu_ flatten reshape permute transpose unsqueeze "
    "squeeze clone detach t"
).split()
_METHODS = "add_ clamp_ sigmoid_ tanh_ view contiguous".split()


def read_exported(path: Path) -> nn.Module:
    """Read a .pt2 file, which can run any code that is in it: of trusted files only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's own making
        return Exported(_plain_calls(torch.export.load(path).module()))


def _plain_calls(program: Any) -> nn.Module:
    """A program that calls PyTorch's functions, whose meaning is known, where it called operators."""
    for node in program.graph.nodes:
        name = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
        if node.op != "call_function":
            continue
        if name == "batch_norm":
            node.target = _batch_norm
        for names, place in ((_FUNCTIONS, F), (_TORCH, torch), (_METHODS, Tensor)):
            if name in names:
                node.target = getattr(place, name)
    program.recompile()
    return program


def _batch_norm(inputs: Tensor, weight: Any, bias: Any, mean: Any, variance: Any, *settings: Any) -> Tensor:
    """The operator's order of arguments, which is not the function's."""
    return F.batch_norm(inputs, mean, variance, weight, bias, *settings[:3])  # training, momentum, eps


class Exported(nn.Module):
    """An exported program, which has one mode only: the one it was exported in."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, *inputs: Tensor, **named: Tensor) -> object:
        """What the program computes."""
        return self.program(*inputs, **named)

    def __deepcopy__(self, memo: dict[int, Any]) -> Exported:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch's own making
            twin = Exported(copy.deepcopy(self.program, memo))
        twin.training = self.training
        return twin

    def train(self, mode: bool = True) -> Exported:
        """Set the flag and nothing else: the program refuses to change its mode."""
        self.training = mode
        return self
