"""Every kind of module: what is captured against what the module really computed, and what the claims mean."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nettrim.models.torch_network import TorchNetwork
from nettrim.models.unfold import responses_at
from nettrim.programs.activations import get_activation


class Residual(nn.Module):
    """A ResNet block: the sum comes before the ReLU, in place."""

    def __init__(self, width=4, out=4, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.down = (
            nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out)) if stride > 1 else None
        )

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.down is None else self.down(x)
        return self.relu(out)


class Inverted(nn.Module):
    """A MobileNet block: expand, depthwise, project, and a sum after which nothing is cut off."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True),
            nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True),
            nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4),
        )  # fmt: skip

    def forward(self, x):
        return x + self.body(x)


class Functional(nn.Module):
    """A forward written by hand, with every spelling of the ReLU."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(6, 6) for _ in range(4))
        self.inner = nn.ModuleDict({"e": nn.Linear(6, 6), "f": nn.Linear(6, 6)})
        self.w = nn.Parameter(torch.randn(5, 6))

    def forward(self, x):
        x = F.relu(self.a(x))
        x = torch.relu(self.b(x))
        x = self.c(x).relu()
        x = self.d(x).relu_()
        x = self.inner["e"](x).clamp(min=0)
        x = torch.clamp_min(self.inner["f"](x), 0.0)
        return F.linear(x, self.w)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.again, self.last = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 2)
        self.again.weight = self.first.weight  # biases differ

    def forward(self, x):
        return self.last(F.relu(self.again(F.relu(self.first(x)))))


class Branches(nn.Module):
    """Two layers meet in a sum before the ReLU."""

    def __init__(self):
        super().__init__()
        self.small, self.large, self.last = nn.Linear(4, 6), nn.Linear(9, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.last(F.relu(self.small(x[:, :4]) + self.large(x)))


def conv_net(**options):
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, **options), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.LazyLinear(3),
    )  # fmt: skip


ZOO = {
    "perceptron": (lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Dropout(), nn.Linear(9, 3)), (6,)),
    "no bias": (lambda: nn.Sequential(nn.Linear(6, 9, bias=False), nn.ReLU(True), nn.Linear(9, 3, bias=False)), (6,)),
    "tokens": (lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)), (4, 6)),
    "functional": (Functional, (6,)),
    "zeros": (lambda: conv_net(padding=1), (2, 8, 8)),
    "same": (lambda: conv_net(padding="same", dilation=2), (2, 8, 8)),
    "reflect": (lambda: conv_net(padding=1, padding_mode="reflect"), (2, 8, 8)),
    "replicate": (lambda: conv_net(padding=1, padding_mode="replicate"), (2, 8, 8)),
    "circular": (lambda: conv_net(padding=1, padding_mode="circular"), (2, 8, 8)),
    "stride": (lambda: conv_net(padding=2, stride=(2, 1), groups=2), (2, 8, 8)),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.LeakyReLU(0.1), nn.Conv1d(4, 2, 2), nn.Tanh()), (3, 9)),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(2, 3, 2), nn.ReLU6(), nn.Conv3d(3, 2, 2), nn.Sigmoid()), (2, 4, 5, 4)),
    "transposed": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2), nn.BatchNorm2d(6), nn.ReLU(),
            nn.ConvTranspose2d(6, 2, 2, 2), nn.Hardtanh(),
        ),
        (4, 3, 3),
    ),
    "activations": (
        lambda: nn.Sequential(
            nn.Linear(6, 6), nn.PReLU(), nn.Linear(6, 6), nn.Hardtanh(-0.5, 0.7), nn.Linear(6, 6), nn.Softplus(),
            nn.Linear(6, 6), nn.Hardsigmoid(), nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6), nn.Hardtanh(0.0, 6.0),
        ),
        (6,),
    ),
    "norm 1d": (lambda: nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 3)), (6,)),
    "residual": (lambda: nn.Sequential(Residual(), Residual(4, 6, 2), nn.Flatten(), nn.LazyLinear(3)), (4, 6, 6)),
    "mobile": (lambda: nn.Sequential(Inverted(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)), (4, 6, 6)),
    "attention": (Attention, (5, 8)),
    "encoder": (lambda: nn.TransformerEncoderLayer(8, 2, 16), (5, 8)),
    "shared": (Shared, (5,)),
    "branches": (Branches, (9,)),
}  # fmt: skip


def built(name, samples=5):
    """A model with weights and statistics that are not their initial ones, and data for it."""
    make, shape = ZOO[name]
    model, x = make(), torch.randn(samples, *shape)
    model(x)  # lazy layers and running statistics
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(part.weight, -1.0, 1.5)
            nn.init.normal_(part.bias)
            nn.init.uniform_(part.running_var, 0.3, 2.0)
            nn.init.normal_(part.running_mean)
    return model, x


def product(layer, samples):
    rows = layer.weight.reshape(layer.groups, -1, layer.weight.shape[1])
    made = torch.einsum("gsi,goi->sgo", samples.inputs, rows).flatten(1)
    for extra in (layer.bias, samples.offset):
        made = made if extra is None else made + extra
    return made


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("positions", [None, 3])
def test_samples_are_what_the_layer_computes(name, positions):
    model, x = built(name)
    network = TorchNetwork(model, x, positions=positions)
    samples = network.capture([x[:3], x[3:]], [layer.name for layer in network.layers])
    assert list(samples) == [layer.name for layer in network.layers]
    for layer in network.layers:
        torch.testing.assert_close(product(layer, samples[layer.name]), samples[layer.name].preactivations)


@pytest.mark.parametrize("name", ZOO)
def test_folding_keeps_the_function(name):
    model, x = built(name)
    network = TorchNetwork(model, x)
    torch.testing.assert_close(network.outputs([x]), model.eval()(x).detach(), atol=1e-5, rtol=1e-4)


# Layers whose output reaches an activation with flat parts, seen as modules.
CLAIMS = [
    ("perceptron", "0", "relu"), ("tokens", "0", "relu"), ("functional", "a", "relu"), ("functional", "d", "relu"),
    ("functional", "inner.e", "relu"), ("functional", "inner.f", "relu"), ("zeros", "0", "relu"),
    ("zeros", "4", "relu"), ("reflect", "0", "relu"), ("stride", "0", "relu"), ("conv3d", "0", "relu6"),
    ("transposed", "0", "relu"), ("transposed", "3", "hardtanh:-1.0:1.0"), ("activations", "2", "hardtanh:-0.5:0.7"),
    ("activations", "10", "relu6"), ("residual", "0.conv1", "relu"),
    ("residual", "0.conv2", "relu"), ("residual", "1.conv2", "relu"), ("mobile", "0.body.0", "relu6"),
    ("mobile", "0.body.3", "relu6"), ("encoder", "linear1", "relu"), ("branches", "large", "relu"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "layer", "activation"), CLAIMS)
def test_moving_within_the_preimage_does_not_change_the_network(name, layer, activation):
    """The meaning of an activation's claim: another point of the preimage gives the same outputs."""
    model, x = built(name)
    network = TorchNetwork(model, x)
    (found,) = [one for one in network.layers if one.name == layer]
    assert found.activation == activation
    z = network.capture([x], [layer])[layer].preactivations
    meaning = get_activation(activation)
    low, high = meaning.preimage(meaning.apply(z))
    move = torch.where(low < high, torch.maximum(torch.minimum(z + 3 * torch.randn_like(z), high), low) - z, 0.0)
    assert move.abs().max() > 0.1
    before = network.outputs([x])

    def shift(module, args, out):
        order = torch.arange(out.numel()).reshape(out.shape)
        places = responses_at(order, network._structure.layers[layer].geometry)
        return out + torch.empty(out.numel()).index_copy(0, places.flatten(), move.flatten()).reshape(out.shape)

    handle = network.module.get_submodule(layer).register_forward_hook(shift)
    torch.testing.assert_close(network.outputs([x]), before, atol=1e-5, rtol=1e-4)
    handle.remove()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("perceptron", {"0": "relu", "3": "linear"}),
        ("conv1d", {"0": "leaky_relu:0.1", "2": "tanh"}),
        ("conv3d", {"0": "relu6", "2": "sigmoid"}),
        ("activations", {"0": "prelu:0.25", "2": "hardtanh:-0.5:0.7", "4": "softplus", "6": "hardsigmoid",
                         "8": "linear", "10": "relu6"}),
        ("mobile", {"0.body.0": "relu6", "0.body.3": "relu6", "0.body.6": "linear", "3": "linear"}),
        ("attention", {"attention.in_proj_weight": "linear", "attention.out_proj": "linear", "up": "linear",
                       "down": "linear"}),
        ("branches", {"small": "linear", "large": "relu", "last": "linear"}),
        ("residual", {"0.conv1": "relu", "0.conv2": "relu", "1.conv1": "relu", "1.conv2": "relu", "1.down.0": "linear",
                      "3": "linear"}),
        ("shared", {"first": "relu", "last": "linear"}),
        ("functional", dict.fromkeys(["a", "b", "c", "d", "inner.e", "inner.f"], "relu") | {"w": "linear"}),
    ],
)  # fmt: skip
def test_activations_found(name, expected):
    model, x = built(name)
    network = TorchNetwork(model, x)
    assert {layer.name: layer.activation for layer in network.layers} == expected
    assert network.skipped == ()


@pytest.mark.parametrize("name", ["perceptron", "zeros", "residual", "transposed", "encoder", "shared"])
def test_update_changes_exactly_what_it_says(name):
    model, x = built(name)
    network = TorchNetwork(model, x)
    before = network.outputs([x])
    for layer in network.layers:
        network.update(layer.name, layer.weight, layer.bias)
    assert torch.equal(network.outputs([x]), before)
    for layer in network.layers:
        network.update(layer.name, 0.5 * layer.weight, None if layer.bias is None else layer.bias + 1)
    for old, new in zip(TorchNetwork(model, x).layers, network.layers, strict=True):
        torch.testing.assert_close(new.weight, 0.5 * old.weight)
        assert old.bias is None or torch.allclose(new.bias, old.bias + 1)
    samples = network.capture([x], [layer.name for layer in network.layers])
    for layer in network.layers:
        torch.testing.assert_close(product(layer, samples[layer.name]), samples[layer.name].preactivations)


@pytest.mark.parametrize("name", ZOO)
def test_the_callers_model_is_untouched(name):
    model, x = built(name)
    model.train()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    flags = [part.training for part in model.modules()]
    network = TorchNetwork(model, x)
    twin = network.copy()
    for layer in network.layers:
        network.update(layer.name, torch.zeros_like(layer.weight), layer.bias)
    assert torch.equal(random, torch.get_rng_state())
    assert flags == [part.training for part in model.modules()]
    assert all(part.training for part in network.module.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(layer.weight.abs().sum() > 0 for layer in twin.layers)


def test_shared_weights_give_the_samples_of_all_uses():
    model, x = built("shared")
    network = TorchNetwork(model, x)
    samples = network.capture([x[:2], x[2:]], ["first"])["first"]
    hidden = F.relu(model.first(x))
    expected = torch.cat([x[:2], hidden[:2], x[2:], hidden[2:]]).detach()
    torch.testing.assert_close(samples.inputs[0], expected)
    assert network.layers[0].bias is None  # two biases, neither of them the layer's own
    biases = torch.stack(
        [model.first.bias] * 2 + [model.again.bias] * 2 + [model.first.bias] * 3 + [model.again.bias] * 3
    )
    torch.testing.assert_close(samples.offset, biases.detach())


def test_a_module_called_twice_keeps_its_bias():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.last = nn.Linear(5, 5), nn.Linear(5, 2)

        def forward(self, x):
            return self.last(F.relu(self.body(F.relu(self.body(x)))))

    model, x = Twice(), torch.randn(4, 5)
    network = TorchNetwork(model, x)
    assert network.layers[0].bias is not None and network.chain is None
    assert network.capture([x], ["body"])["body"].inputs.shape == (1, 8, 5)


def test_uses_with_different_activations_take_the_linear_form():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(5, 5)

        def forward(self, x):
            return torch.tanh(self.body(F.relu(self.body(x))))

    network = TorchNetwork(Mixed(), torch.randn(4, 5))
    assert network.layers[0].activation == "linear"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions(dtype):
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)).to(dtype)
    x = torch.randn(7, 6)
    network = TorchNetwork(model, x)
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    samples = network.capture([x], ["0", "2"])["2"]
    assert samples.inputs.dtype == samples.preactivations.dtype == network.layers[0].weight.dtype == kept
    tolerance = {torch.float64: 1e-12, torch.bfloat16: 3e-2, torch.float16: 3e-3}[dtype]
    torch.testing.assert_close(
        product(network.layers[1], samples), samples.preactivations, atol=tolerance, rtol=tolerance
    )
    network.update("0", torch.zeros(9, 6), None)
    assert next(network.module.parameters()).dtype == dtype


def test_positions_are_the_same_in_every_capture():
    model, x = built("zeros")
    network = TorchNetwork(model, x, positions=4, seed=3)
    before = network.capture([x], ["0", "4"])
    changed = network.copy()
    changed.update("4", torch.zeros_like(network.layers[1].weight), None)
    after = changed.capture([x], ["4"])
    assert before["4"].inputs.shape[1] == 4 * len(x)
    assert torch.equal(before["4"].inputs, after["4"].inputs)
    other = TorchNetwork(model, x, positions=4, seed=4).capture([x], ["4"])
    assert not torch.equal(before["4"].inputs, other["4"].inputs)


def test_samples_beyond_the_budget_are_the_same_from_files():
    model, x = built("residual")
    names = ["0.conv2", "3"]
    plain = TorchNetwork(model, x).capture([x[:3], x[3:]], names)
    network = TorchNetwork(model, x, memory_budget=1000)
    mapped = network.capture([x[:3], x[3:]], names)
    for name in names:
        assert torch.equal(plain[name].inputs, mapped[name].inputs)
        assert torch.equal(plain[name].preactivations, mapped[name].preactivations)
    (store,) = network._stores
    folder = store._directory
    assert folder is not None and folder.is_dir()
    network.close()
    assert not folder.exists()


def test_a_network_that_draws_random_numbers_answers_the_same_twice():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.b(F.relu(self.a(x)) + torch.randn(4))

    network = TorchNetwork(Noisy(), torch.randn(3, 4))
    x = torch.randn(6, 4)
    one, two = (network.capture([x], ["b"])["b"].inputs for _ in range(2))
    assert torch.equal(one, two)
