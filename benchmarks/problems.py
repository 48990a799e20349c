"""The benchmark's problems: layers of networks trained here, on MNIST (NETTRIM_DATA) or scikit-learn's digits.

The first neurons of a layer stand for all: hidden neurons are exchangeable, their weights are drawn alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from nettrim.experiments.mnist import Images, cache_folder, has_mnist, load_digits_instead, load_mnist
from nettrim.layerwise.matrices import augmented
from nettrim.programs import Program
from nettrim.programs.penalties import L1
from nettrim.solvers import solve

GAMMA = 1.1  # how much a cascade's tolerance is inflated over the dense weights' own discrepancy


@dataclass(frozen=True, eq=False)
class Case:
    """A layer's program with a feasible start."""

    layer: str
    constraint: str
    epsilon: str  # as printed
    budget: str | int
    program: Program
    initial: Tensor
    spare: tuple[Program, Tensor] | None = None  # a live neuron that is not in the program, to tune others on

    @property
    def live(self) -> Tensor:
        """Mask of the neurons with something to solve: they respond to some sample, or their slack excludes zero."""
        lower, upper = self.program.lower, self.program.upper
        return (lower.clamp(min=0) + upper.clamp(max=0) != 0).any(dim=0)

    def of(self, neurons: Tensor) -> Case:
        """The case of some of its neurons, whose budgets should be their own."""
        return replace(self, program=self.program.rows(neurons), initial=self.initial[neurons])


@dataclass(frozen=True, eq=False)
class Net:
    """A trained network: per layer, its inputs with a column of ones, its weight with the bias, its responses."""

    name: str
    weights: list[Tensor]
    inputs: list[Tensor]
    responses: list[Tensor]
    accuracy: float  # on the test images


def images() -> Images:
    """MNIST where it is in place, scikit-learn's digits otherwise; nothing is downloaded."""
    return load_mnist(download=False) if has_mnist() else load_digits_instead()


def train(data: Images, hidden: tuple[int, ...], samples: int, fit: int, epochs: int, seed: int = 0) -> Net:
    """Adam, 128 a batch, on the first `fit` images; the layers' samples are the first `samples`.

    The weights are kept in the user's cache, for runs that are resumed.
    """
    sizes = (data.train.shape[1], *hidden, 10)
    fit = min(fit, len(data.train))
    path = cache_folder() / "benchmarks" / f"{'-'.join(map(str, sizes))}-{fit}x{epochs}-seed{seed}.safetensors"
    torch.manual_seed(seed)
    linears = [nn.Linear(before, after) for before, after in pairwise(sizes)]
    model = nn.Sequential(*[module for linear in linears for module in (linear, nn.ReLU())][:-1])
    if path.exists():
        model.load_state_dict(load_file(path))
    else:
        _fit(model, data, fit, epochs)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), path)
    weights, inputs, responses = [], [], []
    x = data.train[:samples]
    for index, linear in enumerate(linears):
        inputs.append(with_ones(x))
        weights.append(augmented(linear.weight, linear.bias).detach())
        product = inputs[-1] @ weights[-1].T
        x = product if index == len(linears) - 1 else torch.relu(product)
        responses.append(x)
    with torch.no_grad():
        accuracy = float((model(data.test).argmax(dim=1) == data.test_labels).double().mean())
    return Net("-".join(map(str, sizes)), weights, inputs, responses, accuracy)


def _fit(model: nn.Module, data: Images, fit: int, epochs: int) -> None:
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for batch in torch.randperm(fit).split(128):
            loss = functional.cross_entropy(model(data.train[batch]), data.train_labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


@lru_cache
def net(name: str) -> Net:
    """ "small": 784-300-300-10; "deep": 784-300-1000-300-10; both on 60,000 images, P = 8,000. "digits": 64-300-300-10
    on scikit-learn's digits."""
    if name == "digits":
        return train(load_digits_instead(), (300, 300), 1500, 1500, 40, seed=1)
    hidden, seed = {"small": ((300, 300), 0), "deep": ((300, 1000, 300), 2)}[name]
    return train(images(), hidden, 8000, 60_000, 10, seed)


def with_ones(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones(len(x), 1)], dim=1)


def layer_case(
    net: Net,
    layer: int,
    relative: float,
    constraint: str,
    budget: str | int = "neuron",
    rows: int = 64,
    samples: int | None = None,
    rank: int | None = None,
    free_bias: bool = False,
) -> Case:
    """The first `rows` neurons of a layer, tolerance `relative` times the responses' norm (each neuron's, or joint).

    `rank` replaces the inputs by the nearest of that rank, up to rounding, and the responses by what they give. The
    bias costs what a weight does, as for the rivals, or nothing (`free_bias`), as in a trim.
    """
    inputs, weight = net.inputs[layer][:samples], net.weights[layer]
    responses = net.responses[layer][:samples]
    linear = layer == len(net.weights) - 1
    if rank is not None:
        inputs = nearest_of_rank(inputs, rank)
        product = inputs @ weight.T
        responses = product if linear else torch.relu(product)

    def program(neurons: Tensor) -> Program:
        some = responses[:, neurons]
        norms = some.double().norm(dim=0)
        epsilon = relative * (norms if budget == "neuron" else norms.norm())
        build: Callable[..., Program] = Program.linear if linear else Program.relu
        return build(inputs, some, epsilon, constraint=constraint, budget=budget, penalty=penalty)

    costs = torch.ones(1, inputs.shape[1])
    costs[:, -1] = 0
    penalty = L1(costs) if free_bias else None
    rows = min(rows, len(weight))
    others = rows + (responses[:, rows:] != 0).any(dim=0).nonzero()[:1, 0]
    spare = (program(others), weight[others]) if len(others) else None
    first = torch.arange(rows)
    name = f"{net.name}, layer {layer + 1}" + (" (linear)" if linear else "")
    name += f", rank {rank}" if rank else ""
    name += ", free bias" if free_bias else ""
    return Case(name, constraint, f"{relative:g}", budget, program(first), weight[:rows], spare)


def nearest_of_rank(inputs: Tensor, rank: int) -> Tensor:
    left, sizes, right = torch.linalg.svd(inputs.double(), full_matrices=False)
    return ((left[:, :rank] * sizes[:rank]) @ right[:rank]).to(inputs.dtype)


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
    return Case(f"{net.name}, layer {layer + 1}", f"cascade, {what}", f"gamma {GAMMA}", "neuron", program, weight)


def exact_case(net: Net, layer: int, dtype: torch.dtype, rows: int = 16, samples: int = 200) -> Case:
    """Epsilon zero (N eq. 8) on few samples; responses computed in `dtype`, since rounding is all the room there is."""
    inputs, weight = net.inputs[layer][:samples].to(dtype), net.weights[layer][:rows].to(dtype)
    program = Program.relu(inputs, torch.relu(inputs @ weight.T), 0.0, constraint="strict", budget="neuron")
    name = f"{net.name}, layer {layer + 1}, {str(dtype).removeprefix('torch.')}"
    return Case(name, "strict", "0", "neuron", program, weight)


def regularised_case(case: Case) -> Case:
    """The same layer with lambda (N eq. 11) near the multipliers of its balls, so that answers are much alike."""
    assert case.program.epsilon is not None
    live = case.live.nonzero()[:8, 0]
    rough = solve(case.program.rows(live), 1e-2, initial=case.initial[live])
    ratios = rough.dual.double().norm(dim=0) / (2 * case.program.epsilon[case.program.groups[live]])
    strength = float(f"{float(ratios.median()):.1g}")  # rounded, so that it is the same whatever found it
    program = replace(case.program, epsilon=None, regularization=strength)
    return replace(case, program=program, epsilon=f"lambda {strength:.3g}", budget="none", spare=None)


def trimmed_inputs(net: Net, layer: int) -> Tensor:
    """What `layer` hands on without the smaller half of each neuron's weights: what trimmed it does not matter here."""
    weight = net.weights[layer]
    kept = torch.where(weight.abs() >= weight.abs().median(dim=1, keepdim=True).values, weight, 0.0)
    return with_ones(torch.relu(net.inputs[layer] @ kept.T))
