"""A trimmed network's tensors and plan put into a fresh copy of the user's model."""

import copy
import json

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from nettrim.errors import ModelError
from nettrim.models.state import restore
from nettrim.models.torch_network import TorchNetwork, load_into


def model():
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.ConvTranspose2d(4, 4, 2, groups=2, bias=False),
        nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.Flatten(), nn.Linear(196, 5, bias=False), nn.ReLU(),
        nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5), nn.LayerNorm(5),
    )  # fmt: skip
    net[11].weight = net[9].weight
    for part in (net[1], net[4]):
        nn.init.normal_(part.running_mean)
        nn.init.uniform_(part.running_var, 0.5, 2.0)
    return net


def trimmed():
    net, x = model(), torch.randn(4, 2, 8, 8)
    network = TorchNetwork(net, x)
    for layer in network.layers:
        bias = torch.randn(len(layer.weight)) if layer.name == "7" else None
        network.update(layer.name, layer.weight * (torch.rand_like(layer.weight) > 0.5), bias)
    return net, x, network


def test_saved_and_loaded_it_computes_the_same():
    net, x, network = trimmed()
    tensors = load(save(network.state()))  # safetensors refuses tied memory
    assert "11.weight" not in tensors and "9.weight" in tensors
    plan = json.loads(json.dumps(network.plan()))
    assert plan == {"folded": [["0", "1"], ["3", "4"]], "biases": ["0", "3", "7"]}
    before = copy.deepcopy(net.state_dict())
    loaded = load_into(net, tensors, plan)
    assert torch.equal(loaded.eval()(x).detach(), network.outputs([x]))
    assert loaded[11].weight is loaded[9].weight
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    twin = TorchNetwork(net, x)
    twin.update("7", twin.layers[2].weight, torch.zeros(5))
    restore(twin.module, tensors)
    assert torch.equal(twin.outputs([x]), network.outputs([x]))


def test_another_model_is_refused():
    net, _, network = trimmed()
    tensors, plan = network.state(), network.plan()
    for wrong in (nn.Sequential(nn.Linear(3, 3)), net[:5], nn.Sequential(*net, nn.Linear(5, 1))):
        with pytest.raises(ModelError, match="the one that was trimmed"):
            load_into(wrong, tensors, plan)
    with pytest.raises(ModelError, match="where .* was saved"):
        load_into(net, {**tensors, "9.bias": torch.zeros(4)}, plan)
    with pytest.raises(ModelError, match="besides"):
        load_into(net, {name: value for name, value in tensors.items() if name != "9.bias"}, plan)


def test_half_precision_goes_through():
    net, x = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).bfloat16(), torch.randn(3, 4)
    network = TorchNetwork(net, x)
    loaded = load_into(net, load(save(network.state())), network.plan())
    assert torch.equal(loaded.eval()(x.bfloat16()).detach(), network.outputs([x]))
