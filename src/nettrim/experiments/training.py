"""Training, deterministic by seed: fully connected and convolutional networks, dropout, l1, masks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Training:
    """How to train. The papers name neither optimiser nor epochs; each experiment's settings say what was used here."""

    epochs: int
    batch: int | None = None  # None: all samples at once
    rate: float = 1e-3  # of Adam
    l1: float = 0.0  # weight of the sum of |weights| in the loss; weights then end at exact zeros (proximal steps)
    decay: float = 0.0  # weight decay of Adam
    cosine: bool = False  # let the rate fall to zero along a cosine


def mlp(sizes: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """Linear layers with ReLU between them, and dropout after each ReLU where there is any."""
    layers: list[nn.Module] = []
    for width, (before, after) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(before, after))
        if width < len(sizes) - 2:
            layers += [nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
    return nn.Sequential(*layers)


def cnn(side: int, classes: int = 10, hidden: int = 512, *, padded: bool = False) -> nn.Sequential:
    """N section 6: two 5 x 5 convolutions of 32 filters, each with max pooling, and a fully connected layer of 512.

    N does not say whether the convolutions are padded. Of 28 x 28 pixels the layer has 512 inputs without padding and
    1,568 with it, and with it alone it is larger than any of NN3-60K's, as "our largest problem" would have it.
    """
    margin = 2 if padded else 0
    left = side // 4 if padded else ((side - 4) // 2 - 4) // 2
    return nn.Sequential(
        nn.Unflatten(1, (1, side, side)),
        nn.Conv2d(1, 32, 5, padding=margin),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 5, padding=margin),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * left * left, hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )


class Standardised(nn.Module):
    """Inputs less their mean over the given samples (P, N), divided by their deviation; constant ones become zero."""

    mean: Tensor
    scale: Tensor

    def __init__(self, samples: Tensor) -> None:
        super().__init__()
        spread = samples.std(0)
        self.register_buffer("mean", samples.mean(0))
        self.register_buffer("scale", torch.where(spread > 0, 1 / spread, 0.0))

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs of (samples, N), standardised."""
        return (inputs - self.mean) * self.scale


def seeded(build: type | object, *arguments: object, seed: int) -> nn.Sequential:
    """A network built with torch's generator at `seed`, whose state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(*arguments)  # type: ignore[operator]


@torch.no_grad()
def start_as_h2o(model: nn.Sequential, inputs: Tensor, seed: int) -> None:
    """Draw a perceptron's first weights as H2O does, which A trained with, in place.

    Uniform within sqrt(6 / (fan in + fan out)), four times that in the last layer; biases .5 in the first layer, 1 in
    the other hidden ones, 0 in the last; inputs scaled to a standard deviation of 1. Hidden units are then on for most
    samples, so that responses are far nearer to a space of few dimensions than from PyTorch's own start.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = [module for module in model if isinstance(module, nn.Linear)]
    for place, layer in enumerate(layers):
        last = place == len(layers) - 1
        reach = (4 if last else 1) * math.sqrt(6 / (layer.in_features + layer.out_features))
        layer.weight.uniform_(-reach, reach, generator=generator)
        layer.bias.fill_(0.0 if last else 0.5 if place == 0 else 1.0)
    spread = inputs.std(0)
    layers[0].weight.div_(torch.where(spread > 0, spread, 1.0))


def train(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    how: Training,
    seed: int,
    masks: Mapping[str, Tensor] | None = None,
) -> float:
    """Train in place by cross-entropy and return the last epoch's mean loss.

    `masks`: False where a weight, by parameter name, stays zero (fine-tuning on a support). The same seed gives the
    same weights on the same machine.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _train(model, inputs, labels, how, masks or {})


def _train(model: nn.Module, inputs: Tensor, labels: Tensor, how: Training, masks: Mapping[str, Tensor]) -> float:
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    masked = [(parameter, masks[name]) for name, parameter in model.named_parameters() if name in masks]
    optimizer = torch.optim.Adam(model.parameters(), lr=how.rate, weight_decay=how.decay)
    size = how.batch or len(inputs)
    steps = how.epochs * -(-len(inputs) // size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if how.cosine else None
    model.train()
    loss = 0.0
    for _ in range(how.epochs):
        order = torch.randperm(len(inputs)) if size < len(inputs) else None
        total = 0.0
        for start in range(0, len(inputs), size):
            part = slice(start, start + size)
            chosen = part if order is None else order[part].to(inputs.device)
            optimizer.zero_grad(set_to_none=True)
            value = functional.cross_entropy(model(inputs[chosen]), labels[chosen])
            value.backward()
            optimizer.step()
            with torch.no_grad():
                if how.l1:
                    step = optimizer.param_groups[0]["lr"] * how.l1
                    for parameter in weights:  # soft thresholding: the proximal step of l1
                        parameter.copy_(parameter.sign() * (parameter.abs() - step).clamp(min=0))
                for parameter, mask in masked:
                    parameter.mul_(mask)
            if schedule is not None:
                schedule.step()
            total += float(value.detach()) * len(labels[chosen])
        loss = total / len(inputs)
    model.eval()
    return loss


@torch.no_grad()
def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor, chunk: int = 5000) -> float:
    """Share of samples whose largest output is their label, in percent."""
    model.eval()
    right = sum(
        int((model(inputs[start : start + chunk]).argmax(dim=1) == labels[start : start + chunk]).sum())
        for start in range(0, len(inputs), chunk)
    )
    return 100.0 * right / len(inputs)
