"""Where the least l1 norm finds few weights, and where the smallest weights might as well be cut.

    python benchmarks/regimes.py

One layer of 32 neurons on 400 samples of 64 inputs, which are white noise, or mixed (64 x 64 Gaussian mixing), or mixed
of 16 sources, with and without a ReLU. Told per epsilon: what share of the weights our default prunes and where its
error ends, the error of magnitude truncation that prunes as many, and what share magnitude truncation prunes within the
same epsilon. Errors are those of the responses, relative.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import nettrim

SAMPLES, INPUTS, NEURONS = 400, 64, 32
EPSILONS = (0.1, 0.2, 0.4)


def inputs_of(kind: str) -> Tensor:
    """White noise, or mixtures of 64 or 16 sources."""
    generator = torch.Generator().manual_seed(0)
    if kind == "white":
        return torch.randn(SAMPLES, INPUTS, generator=generator)
    sources = 16 if kind == "16 sources" else INPUTS
    mixing = torch.randn(sources, INPUTS, generator=generator) / sources**0.5
    return torch.randn(SAMPLES, sources, generator=generator) @ mixing


def truncated(weight: Tensor, share: float) -> Tensor:
    """The weight without its smallest entries, this share of all."""
    count = round(share * weight.numel())
    if count == 0:
        return weight
    return torch.where(weight.abs() > weight.abs().flatten().kthvalue(count).values, weight, 0.0)


def main() -> None:
    torch.set_num_threads(1)
    heads = "inputs", "layer", "epsilon", "pruned", "error", "magnitude: error", "to epsilon: pruned"
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for kind in ("white", "64 sources", "16 sources"):
        inputs = inputs_of(kind)
        for name, activation in (("linear", nn.Identity()), ("ReLU", nn.ReLU())):
            torch.manual_seed(0)
            linear = nn.Linear(INPUTS, NEURONS, bias=False)
            layer, weight = nn.Sequential(linear, activation), linear.weight.detach()
            answers = layer(inputs).detach()

            def error(other: Tensor, inputs=inputs, activation=activation, answers=answers) -> float:
                return float((activation(inputs @ other.T) - answers).norm() / answers.norm())

            for epsilon in EPSILONS:
                made = nettrim.trim(layer, inputs, epsilon=epsilon, holdout=0.0, progress=False)
                pruned = made.model.get_parameter("0.weight").detach()
                share = float((pruned == 0).float().mean())
                within = max(step / 200 for step in range(200) if error(truncated(weight, step / 200)) <= epsilon)
                print(
                    f"| {kind} | {name} | {epsilon:g} | {100 * share:.0f} % | {error(pruned):.3f} "
                    f"| {error(truncated(weight, share)):.3f} | {100 * within:.0f} % |"
                )


if __name__ == "__main__":
    main()
