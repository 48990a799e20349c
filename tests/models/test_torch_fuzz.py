"""Forwards composed at random: whatever is claimed of a layer must be true of the network."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nettrim.models.torch_network import TorchNetwork

WIDTH = 4
STEPS = {
    "layer": lambda m, x, y, k: m.layers[k](x),
    "block": lambda m, x, y, k: F.relu(m.norms[k](m.layers[k](x))),
    "block in place": lambda m, x, y, k: F.hardtanh(m.layers[k](x), inplace=True),
    "residual": lambda m, x, y, k: F.relu(m.layers[k](x).add_(y)),
    "residual in place": lambda m, x, y, k: y.add_(m.layers[k](x)).relu_(),
    "branches": lambda m, x, y, k: F.relu(m.layers[k](x) + m.layers[(k + 1) % 4](y)),
    "relu": lambda m, x, y, k: F.relu(x),
    "relu in place": lambda m, x, y, k: F.relu(x, inplace=True),
    "relu of a view": lambda m, x, y, k: x.view(-1, 2, 2).relu_(),
    "relu of a part": lambda m, x, y, k: [x[:, :2].relu_()][1:] or None,
    "hardtanh": lambda m, x, y, k: F.hardtanh(x),
    "add": lambda m, x, y, k: x + y,
    "add in place": lambda m, x, y, k: x.add_(y),
    "write": lambda m, x, y, k: x.__setitem__((slice(None), 0), y[:, 0]),
    "times": lambda m, x, y, k: x * y.clamp(-1, 1),
    "view": lambda m, x, y, k: x.view(WIDTH, -1).view(-1, WIDTH),
    "flip": lambda m, x, y, k: x.flip(1),
    "dropout": lambda m, x, y, k: F.dropout(x, 0.5, m.training),
    "detach": lambda m, x, y, k: x.detach(),
    "pool": lambda m, x, y, k: F.max_pool1d(x, 3, 1, 1),
    "weight": lambda m, x, y, k: (m.layers[k].weight @ x.T).T,
    "product": lambda m, x, y, k: x @ m.layers[k].weight.T,
    "norm": lambda m, x, y, k: m.norms[k](x),
}


class Random(nn.Module):
    """Keeps every value it has made; each step reads two of them and appends what it gives."""

    def __init__(self, steps, kept):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm1d(WIDTH) for _ in range(4))
        for norm in self.norms:
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.normal_(norm.running_mean)
        self.steps, self.kept = steps, kept

    def forward(self, x):
        values = [x.clone()]
        for name, one, two, layer in self.steps:
            x, y = values[-1 - one % len(values)], values[-1 - two % len(values)]
            made = STEPS[name](self, x.reshape(-1, WIDTH), y.reshape(-1, WIDTH), layer)
            values.append(x if made is None else made)
        return sum(values[-1 - k % len(values)].reshape(-1, WIDTH) for k in self.kept)


# Layers, activations and sums are drawn more often than the rest, and near values more often than far ones.
NAMES = [*STEPS, *["layer", "relu", "relu in place"] * 3, *["block", "block in place", "residual", "branches"] * 3]
NEAR = [0] * 6 + [1, 1, 2, 3]
FLAT = {"relu": (0.0, float("inf")), "hardtanh:-1.0:1.0": (-1.0, 1.0)}


@pytest.mark.parametrize("seed", range(2))
def test_claims_of_random_networks_hold(seed):
    draw = random.Random(seed)
    claims = sum(_check(draw) for _ in range(40))
    assert claims > 10


def _check(draw):
    """Check one random network; how many claims it made."""
    count = draw.randint(1, 5)
    steps = [(draw.choice(NAMES), draw.choice(NEAR), draw.choice(NEAR), k % 4) for k in range(count)]
    kept = [0] if draw.random() < 0.8 else [0, draw.randint(0, 3)]
    steps = [("layer", 0, 0, 0), *steps]
    model, x = Random(steps, kept), torch.randn(8, WIDTH)
    model.eval()
    expected = model(x).detach()
    try:
        network = TorchNetwork(model, x)
    except ValueError as error:  # nothing to trim: every weight is read raw
        assert "to trim" in str(error)
        return 0
    claims = 0
    torch.testing.assert_close(network.outputs([x]), expected, atol=1e-4, rtol=1e-4)
    samples = network.capture([x], [layer.name for layer in network.layers])
    for layer in network.layers:
        found = samples[layer.name]
        made = found.inputs[0] @ layer.weight.T
        for extra in (layer.bias, found.offset):
            made = made if extra is None else made + extra
        torch.testing.assert_close(made, found.preactivations, atol=1e-4, rtol=1e-4)
        by_hand = any(name == "product" and f"layers.{k}" == layer.name for name, _, _, k in steps)
        if (
            layer.activation in FLAT and not by_hand
        ):  # the claim is checked by hooks, which products by hand have none of
            claims += 1
            _check_claim(network, layer, found.preactivations, x, expected)
    return claims


def _check_claim(network, layer, z, x, expected):
    low, high = FLAT[layer.activation]
    move = torch.where(z < low, z - 1 - low, torch.where(z > high, 1 + z - high, 0.0)).flatten()
    start = 0

    def shift(module, args, out):
        nonlocal start
        start += out.numel()
        return out + move[start - out.numel() : start].reshape(out.shape)

    handle = network.module.get_submodule(layer.name).register_forward_hook(shift)
    torch.testing.assert_close(network.outputs([x]), expected, atol=1e-4, rtol=1e-4)
    handle.remove()
