"""What the rest of the package asks of a network, whatever framework it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from nettrim.certificates.graph import Flow
from nettrim.models.store import SampleStore


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer that can be trimmed, seen as a matrix.

    Convolutions are the linear maps they are: `weight` is the kernel flattened to
    (out_features, in_features), where in_features counts one group's patch entries.
    """

    name: str
    kind: str  # "Linear", "Conv2d", "Gemm", ...
    shape: tuple[int, ...]  # of the weight tensor as the user knows it
    activation: str  # a name in nettrim.programs.activations: "relu", "linear", ...
    weight: Tensor  # (out, in), a detached copy
    bias: Tensor | None  # (out,)
    groups: int = 1  # rows [g*out/groups, (g+1)*out/groups) read input group g
    dtype: torch.dtype | None = None  # in which the network keeps the weight, where that is not weight.dtype


@dataclass(frozen=True)
class Skipped:
    """A layer with weights that is left as it is, and why."""

    name: str
    kind: str
    shape: tuple[int, ...]
    reason: str
    nonzeros: int
    weight: Tensor | None = field(default=None, compare=False, repr=False)  # (out, in), where it is part of the chain


@dataclass(frozen=True, eq=False)
class LayerSamples:
    """What one layer saw and answered on the calibration data."""

    inputs: Tensor  # (groups, samples, in), without the column of ones
    preactivations: Tensor  # (samples, out): weight @ input + bias + offset, what the activation receives
    offset: Tensor | None = None  # (samples, out): added besides weight and bias (a residual branch)


class Network(Protocol):
    """A model front end: all that layers, blocks and schemes ask for. The API asks for more (docs/extending.md)."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Trimmable layers in order of execution, with their present weights."""
        ...

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Layers with weights that cannot be trimmed, each with its reason."""
        ...

    @property
    def chain(self) -> tuple[str, ...] | None:
        """Layer names in order when the network is a plain chain of all its weighted layers, else None.

        Layers that the user left out of the targets may be part of it; their `Skipped` then has the weight.

        Plain: each layer reads exactly the previous layer's responses (through reshapes and
        evaluation-mode dropout only), the last one's responses are the network's output. The
        network bounds hold for these.
        """
        ...

    @property
    def flow(self) -> Flow | str:
        """How an error travels from the layers to the output where there is no chain, or why no bound can follow it.

        Layers that are not trimmed may be part of it; their `Skipped` then has the weight.
        """
        ...

    def capture(self, batches: Sequence[object], names: Sequence[str], first: int = 0) -> dict[str, LayerSamples]:
        """Run the network with its present weights and return the samples of the named layers.

        `first` is the number of the first batch, where these are some of several: what is drawn depends on it.
        """
        ...

    @property
    def operations(self) -> str:
        """A digest of what the network does besides its stored tensors, as it came."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Every stored tensor by its name, with the present weights."""
        ...

    def new_store(self) -> SampleStore:
        """An empty store for samples, within the network's memory budget."""
        ...

    def outputs(self, batches: Sequence[object]) -> Tensor:
        """The network's outputs on all batches, (samples, ...)."""
        ...

    def update(self, name: str, weight: Tensor, bias: Tensor | None) -> None:
        """Replace a layer's weight (out, in) and bias in place."""
        ...

    def copy(self) -> Network:
        """An independent copy: updates of one do not touch the other."""
        ...
