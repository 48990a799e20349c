"""The benchmark's problems: layers of networks trained here, on MNIST (NETTRIM_DATA) or scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

import nettrim
from nettrim.experiments.mnist import Images, has_mnist, load_digits_instead, load_mnist
from nettrim.programs import Program
from nettrim.solvers import solve

GAMMA = 1.1  # how much a cascade's tolerance is inflated over the dense weights' own discrepancy


@dataclass(frozen=True, eq=False)
class Case:
    """A layer's program with a feasible start."""

    name: str
    layer: str
    constraint: str
    epsilon: str  # as printed
    budget: str
    program: Program
    initial: Tensor
    compete: bool = False  # whether general solvers and the published ADMM run on it too

    @property
    def live(self) -> Tensor:
        """Mask of the neurons that respond to some sample."""
        responses = torch.nan_to_num(self.program.lower, neginf=0.0, posinf=0.0).abs().amax(dim=0)
        return responses > 0


@dataclass(frozen=True, eq=False)
class Net:
    """A trained network: per layer, its inputs with a column of ones, its weight with the bias, its responses."""

    name: str
    weights: list[Tensor]
    inputs: list[Tensor]
    responses: list[Tensor]


def images() -> Images:
    """MNIST where it is in place, scikit-learn's digits otherwise; nothing is downloaded."""
    return load_mnist(download=False) if has_mnist() else load_digits_instead()


def train(data: Images, hidden: tuple[int, ...], samples: int, fit: int, epochs: int, seed: int = 0) -> Net:
    """Adam, 128 a batch, on the first `fit` images; the layers' samples are the first `samples`."""
    torch.manual_seed(seed)
    sizes = (data.train.shape[1], *hidden, 10)
    linears = [nn.Linear(before, after) for before, after in pairwise(sizes)]
    parameters = [parameter for linear in linears for parameter in linear.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=1e-3)

    def forward(x: Tensor) -> Tensor:
        for linear in linears[:-1]:
            x = torch.relu(linear(x))
        return linears[-1](x)

    fit = min(fit, len(data.train))
    for _ in range(epochs):
        for batch in torch.randperm(fit).split(128):
            loss = functional.cross_entropy(forward(data.train[batch]), data.train_labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    weights, inputs, responses = [], [], []
    x = data.train[:samples]
    for index, linear in enumerate(linears):
        inputs.append(with_ones(x))
        weights.append(torch.cat([linear.weight, linear.bias[:, None]], dim=1).detach())
        product = inputs[-1] @ weights[-1].T
        x = product if index == len(linears) - 1 else torch.relu(product)
        responses.append(x)
    return Net("-".join(map(str, sizes)), weights, inputs, responses)


def with_ones(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones(len(x), 1)], dim=1)


def layer_case(
    net: Net,
    layer: int,
    relative: float,
    constraint: str,
    budget: str,
    rows: int,
    samples: int | None = None,
    compete: bool = False,
) -> Case:
    """`rows` neurons of a layer, tolerance `relative` times the responses' norm (of each neuron, or jointly)."""
    inputs, responses = net.inputs[layer][:samples], net.responses[layer][:samples, :rows]
    norms = responses.double().norm(dim=0)
    epsilon = relative * (norms if budget == "neuron" else norms.norm())
    linear = layer == len(net.weights) - 1
    build: Callable[..., Program] = Program.linear if linear else Program.relu
    program = build(inputs, responses, epsilon, constraint=constraint, budget=budget)
    layer_name = f"{net.name}, layer {layer + 1}" + (" (linear)" if linear else "")
    name = f"{layer_name}, {constraint}, {relative:g}, {budget}, P = {len(inputs)}"
    return Case(name, layer_name, constraint, f"{relative:g}", budget, program, net.weights[layer][:rows], compete)


def cascade_case(net: Net, inputs: Tensor, layer: int, variant: str, rows: int) -> Case:
    """A layer on the inputs that a trimmed layer before it hands on.

    `variant`: "distance", or the strict constraint with slack V = W xhat ("published") or max(W xhat, 0) ("positive").
    The tolerance is `GAMMA` times the dense weights' own discrepancy, neuron by neuron.
    """
    weight, responses = net.weights[layer][:rows], net.responses[layer][:, :rows]
    product = inputs @ weight.T
    if variant == "distance":
        distance = product - torch.where(responses > 0, responses, product.clamp(max=0))
        slack = None
    else:
        distance = torch.where(responses > 0, product - responses, 0.0)
        slack = product if variant == "published" else product.clamp(min=0)
    program = Program.relu(
        inputs,
        responses,
        GAMMA * distance.double().norm(dim=0),
        constraint="distance" if variant == "distance" else "strict",
        slack=slack,
        budget="neuron",
    )
    what = "distance" if variant == "distance" else f"strict, {variant} slack"
    name = f"{net.name}, layer {layer + 1}, cascade, {what}, P = {len(inputs)}"
    return Case(name, f"{net.name}, layer {layer + 1}", f"cascade, {what}", f"gamma {GAMMA}", "neuron", program, weight)


def trimmed_inputs(net: Net, layer: int, samples: int = 1000) -> Tensor:
    """What a trimmed `layer` hands on: solved roughly on the first `samples`, since only its output matters here."""
    inputs, responses = net.inputs[layer], net.responses[layer]
    norms = responses[:samples].double().norm(dim=0)
    program = nettrim.Program.relu(inputs[:samples], responses[:samples], 0.1 * norms, budget="neuron")
    weight = solve(program, 1e-2, initial=net.weights[layer]).weight
    return with_ones(torch.relu(inputs @ weight.T))
