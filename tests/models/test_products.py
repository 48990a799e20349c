"""Weights applied by plain products: the same layers, samples and trims as with nn.Linear."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nettrim
from nettrim.models.torch_network import TorchNetwork

WIDTH, HEADS, WORDS = 8, 2, 12


class Conv1D(nn.Module):
    """GPT-2's layer: a weight (in, out) and addmm on flattened tokens."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(inputs, outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], -1)


class AddedBias(Conv1D):
    """The same by `@` and `+`."""

    def forward(self, x):
        return x @ self.weight + self.bias


class Turned(nn.Module):
    """A weight (out, in), transposed where it is used."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(outputs, inputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return torch.matmul(x, self.weight.t()).add_(self.bias)


class Backwards(Conv1D):
    """A weight (in, out) handed to F.linear."""

    def forward(self, x):
        return F.linear(x, self.weight.T, self.bias)


KINDS = (Conv1D, AddedBias, Turned, Backwards)


class Block(nn.Module):
    """A small GPT-2: causal attention and an MLP (here with a ReLU) around residual sums, and a head."""

    def __init__(self, layer: type[nn.Module]) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attend, self.project = layer(WIDTH, 3 * WIDTH), layer(WIDTH, WIDTH)
        self.widen, self.narrow = layer(WIDTH, 4 * WIDTH), layer(4 * WIDTH, WIDTH)
        self.head = layer(WIDTH, WORDS)

    def forward(self, tokens):
        x = self.words(tokens)
        query, key, value = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.attend(self.norm1(x)).chunk(3, -1)
        )
        scores = (query @ key.transpose(-1, -2)) / query.shape[-1] ** 0.5
        future = torch.ones_like(scores, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(future, float("-inf")).softmax(-1) @ value
        x = x + self.project(mixed.transpose(1, 2).flatten(2))
        x = x + self.narrow(torch.relu(self.widen(self.norm2(x))))
        return self.head(x)


def turned(layer: nn.Module) -> bool:
    """Whether a layer's weight is stored the other way round than nn.Linear's."""
    return isinstance(layer, Conv1D)


def pair(layer: type[nn.Module]) -> tuple[nn.Module, nn.Module]:
    """The same network with nn.Linear and with another layer."""
    torch.manual_seed(0)
    one, other = Block(nn.Linear), Block(layer)
    with torch.no_grad():
        for name, tensor in one.named_parameters():
            owner = other.get_submodule(name.rpartition(".")[0])
            other.get_parameter(name).copy_(tensor.T if turned(owner) and tensor.dim() == 2 else tensor)
    return one.eval(), other.eval()


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, WORDS, (30, 6), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("layer", KINDS)
def test_the_same_layers_and_samples_as_with_linear(layer, tokens) -> None:
    one, other = pair(layer)
    torch.testing.assert_close(one(tokens), other(tokens))
    left, right = TorchNetwork(one, tokens), TorchNetwork(other, tokens)
    assert [kept.name for kept in right.layers] == ["attend", "project", "widen", "narrow", "head"]
    names = [kept.name for kept in left.layers]
    seen, wanted = right.capture([tokens], names), left.capture([tokens], names)
    for mine, linear in zip(right.layers, left.layers, strict=True):
        assert (mine.name, mine.kind, mine.activation) == (linear.name, "Linear", linear.activation)
        assert mine.shape == tuple(other.get_parameter(f"{mine.name}.weight").shape)
        torch.testing.assert_close(mine.weight, linear.weight)
        torch.testing.assert_close(mine.bias, linear.bias)
        assert seen[mine.name].offset is None
        torch.testing.assert_close(seen[mine.name].inputs, wanted[mine.name].inputs)
        torch.testing.assert_close(seen[mine.name].preactivations, wanted[mine.name].preactivations)


@pytest.mark.parametrize("layer", KINDS)
@pytest.mark.parametrize("scheme", ["parallel", "cascade"])
def test_the_same_trim_as_with_linear(layer, scheme, tokens, tmp_path) -> None:
    tokens = tokens[:10]
    one, other = pair(layer)
    options = {
        "epsilon": 0.2,
        "scheme": scheme,
        "holdout": 0.0,
        "targets": ["attend", "widen"],
        "tolerance": 1e-3,
        "progress": False,
    }
    wanted, found = (nettrim.trim(model, tokens, **options) for model in (one, other))
    assert found.report.certified and found.report.sparsity > 0
    for linear, mine in zip(wanted.report.layers, found.report.layers, strict=True):
        assert mine.name == linear.name and (mine.skipped is None) == (linear.skipped is None)
        if mine.skipped is None:
            assert mine.objective == pytest.approx(linear.objective, rel=2e-2)
    assert found.report.network.discrepancy == pytest.approx(wanted.report.network.discrepancy, rel=0.2)
    directory = found.save(tmp_path / "out")
    assert torch.equal(nettrim.load(directory, other)(tokens), found.model(tokens))
    assert nettrim.verify(directory, other, tokens).holds


@pytest.mark.parametrize("layer", KINDS)
def test_new_weights_reach_the_product(layer, tokens) -> None:
    _, model = pair(layer)
    network = TorchNetwork(model, tokens)
    (widen,) = [found for found in network.layers if found.name == "widen"]
    weight, bias = torch.randn(widen.weight.shape), torch.randn(widen.bias.shape)
    network.update("widen", weight, bias)
    x = torch.randn(3, 2, WIDTH)
    torch.testing.assert_close(network.module.widen(x), F.linear(x, weight, bias))


class Chain(nn.Module):
    """Two layers, a ReLU between."""

    def __init__(self, layer: type[nn.Module]) -> None:
        super().__init__()
        self.one, self.two = layer(6, 5), layer(5, 3)

    def forward(self, x):
        return self.two(self.one(x).relu())


@pytest.mark.parametrize("layer", KINDS)
def test_a_chain_has_a_bound(layer) -> None:
    torch.manual_seed(0)
    model, data = Chain(layer), torch.randn(60, 6)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    for ignore in ((), ("two",)):  # a layer that is left alone counts with its norm
        report = nettrim.trim(model, data, epsilon=0.1, ignore=ignore).report
        assert report.network.discrepancy <= report.network.bound < 2
        assert next(found.activation for found in report.layers if found.skipped is None) == "relu"


class Written(nn.Module):
    """Two weights (4, 4) and a bias, and a forward given from outside."""

    def __init__(self, forward) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.randn(size)) for size in ((4, 4), (4, 4), (4,)))
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


FORMS = {
    "bias of a computed value": lambda m, x: torch.relu(torch.addmm(m.c * 2, x, m.a)) @ m.b,
    "bias read elsewhere": lambda m, x: torch.relu(x @ m.a + m.c) @ m.b + m.c.square(),
    "bias of both": lambda m, x: torch.relu(x @ m.a + m.c) @ m.b + m.c,
    "bias after a sum": lambda m, x: torch.relu(x @ m.a + x + m.c) @ m.b,
    "bias on one use": lambda m, x: torch.relu(torch.relu(x @ m.a + m.c) @ m.a) @ m.b,
    "both ways round": lambda m, x: torch.relu(x @ m.a + m.c) @ m.b @ m.b,
    "rows as vectors": lambda m, x: torch.stack([torch.relu(row @ m.a) @ m.b for row in (x[0], x[1])]),
    "mm": lambda m, x: torch.mm(torch.relu(x.mm(m.a)), m.b),
}


@pytest.mark.parametrize("name", FORMS)
def test_samples_explain_what_was_answered(name) -> None:
    torch.manual_seed(0)
    model, x = Written(FORMS[name]), torch.randn(7, 4)
    network = TorchNetwork(model, x[:2])
    names = [layer.name for layer in network.layers]
    assert names == ["a", "b"]
    for layer in network.layers:
        samples = network.capture([x], names)[layer.name]
        made = samples.inputs[0] @ layer.weight.T
        for extra in (layer.bias, samples.offset):
            made = made if extra is None else made + extra
        torch.testing.assert_close(made, samples.preactivations, rtol=1e-4, atol=1e-5)
    assert all(layer.bias is None for layer in network.layers if name != "both ways round" or layer.name == "b")
    torch.testing.assert_close(network.outputs([x]), model(x).detach())


def test_one_weight_applied_both_ways_round_is_skipped() -> None:
    model = Written(lambda m, x: torch.relu(x @ m.a) @ m.a.T @ m.b)
    network = TorchNetwork(model, torch.randn(5, 4))
    assert [layer.name for layer in network.layers] == ["b"]
    assert "different settings" in network.skipped[0].reason
