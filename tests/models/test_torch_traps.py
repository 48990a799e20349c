"""Networks built to mislead: every use of a weight is found, or the layer is skipped with its reason."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from nettrim.errors import DataError, InputError, ModelError
from nettrim.models.torch_network import TorchNetwork


class Net(nn.Module):
    """Two layers and a forward given from outside."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


RAW = {
    "product from the left": lambda m, x: (m.a.weight @ m.b(F.relu(m.a(x))).T).T,
    "scaled product": lambda m, x: m.b(F.relu(torch.addmm(m.a.bias, x, m.a.weight.T, alpha=2.0))),
    "part of the transpose": lambda m, x: m.b(F.relu(x[:, :2] @ m.a.weight.T[:2])),
    "product with itself": lambda m, x: m.b(F.relu(x @ (m.a.weight @ m.a.weight.T))),
    "penalty": lambda m, x: m.b(F.relu(m.a(x))) + m.a.weight.square().sum(),
    "masked": lambda m, x: m.b(F.relu(F.linear(x, m.a.weight * (m.a.weight > 0), m.a.bias))),
    "clone": lambda m, x: m.b(F.relu(F.linear(x, m.a.weight.clone(), m.a.bias))),
    "view": lambda m, x: m.b(F.relu(F.linear(x, m.a.weight.view(4, 4), m.a.bias))),
    "slice": lambda m, x: m.b(F.relu(F.linear(x[:, :2], m.a.weight[:, :2], m.a.bias))),
    "einsum": lambda m, x: m.b(F.relu(torch.einsum("si,oi->so", x, m.a.weight))),
    "data": lambda m, x: m.b(F.relu(F.linear(x, m.a.weight.data))),
    "item": lambda m, x: m.b(F.relu(m.a(x))) * float(m.a.weight[0, 0]),
    "numpy": lambda m, x: m.b(F.relu(m.a(x))) * float(m.a.weight.detach().numpy()[0, 0]),
    "list": lambda m, x: m.b(F.relu(m.a(x))) * sum(m.a.weight.flatten().tolist()),
    "as an input": lambda m, x: m.b(F.relu(m.a(x))) + m.b(m.a.weight).sum(),
    "vmap of a layer": lambda m, x: m.b(torch.func.vmap(lambda row: F.relu(m.a(row)))(x)),
    "gradient": lambda m, x: m.b(gradient(m, x)),
    "vmap": lambda m, x: m.b(F.relu(torch.func.vmap(lambda row: m.a.weight @ row)(x))),
}


def gradient(m, x):
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        return torch.autograd.grad(F.relu(m.a(x)).sum(), x)[0]


@pytest.mark.parametrize("name", RAW)
def test_raw_uses_of_a_weight_are_found(name):
    network = TorchNetwork(Net(RAW[name]), torch.randn(5, 4))
    assert "a" not in [layer.name for layer in network.layers]
    (skipped,) = [skipped for skipped in network.skipped if skipped.name == "a"]
    assert "read" in skipped.reason and skipped.shape == (4, 4) and skipped.nonzeros == 16
    assert network.chain is None


HIDDEN = {
    "second reader": lambda m, x: m.b(F.relu(z := m.a(x)) + z),
    "also returned": lambda m, x: (m.b(F.relu(z := m.a(x))), z),
    "returned in an object": lambda m, x: Answer(m.b(F.relu(z := m.a(x))), z),
    "detached reader": lambda m, x: m.b(F.relu(z := m.a(x)) + z.detach()),
    "data reader": lambda m, x: m.b(F.relu(z := m.a(x)) + z.data),
    "view kept": lambda m, x: view_kept(m, x),
    "half a relu": lambda m, x: half_relu(m, x),
    "numpy": lambda m, x: m.b(F.relu(z := m.a(x)) + torch.from_numpy(z.numpy().copy())),
    "custom function": lambda m, x: m.b(F.relu(z := m.a(x)) + Twice.apply(z)),
    "custom alias": lambda m, x: alias_kept(m, x),
    "bits": lambda m, x: m.b(F.relu(m.a(x).view(torch.int32)).float() * 1e-9),
    "scaled": lambda m, x: m.b(F.relu(m.a(x) * 2)),
    "scaled sum": lambda m, x: m.b(F.relu(torch.add(x, m.a(x), alpha=2))),
    "difference": lambda m, x: m.b(F.relu(x - m.a(x))),
    "doubled": lambda m, x: m.b(F.relu((z := m.a(x)) + z)),
    "threshold": lambda m, x: m.b(F.threshold(m.a(x), 0.1, 0.0)),
    "steep slope": lambda m, x: m.b(F.leaky_relu(m.a(x), 2.0)),
    "negative slope": lambda m, x: m.b(F.leaky_relu(m.a(x), -0.5)),
    "many slopes": lambda m, x: m.b(F.prelu(m.a(x), torch.tensor([0.1, 0.2, 0.3, 0.4]))),
    "only from above": lambda m, x: m.b(m.a(x).clamp(max=1.0)),
    "live dropout": lambda m, x: m.b(F.relu(F.dropout(m.a(x), 0.5, True))),
    "mean": lambda m, x: m.b(F.relu(m.a(x).mean(0, keepdim=True))),
    "slope of the layer": lambda m, x: m.b(F.prelu(x, m.a(x).abs().mean().reshape(1).clamp(0.1, 0.2))),
    "inference": lambda m, x: inference(m, x),
    "sum with branches of shape": lambda m, x: m.b(F.relu(m.a(x[:1]) + x)),
}  # fmt: skip


class Answer:
    def __init__(self, logits, hidden):
        self.logits, self.hidden = logits, hidden


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        return 2 * z


class Alias(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        return z.view_as(z)


def alias_kept(m, x):
    z = m.a(x)
    other = Alias.apply(z)
    return m.b(F.relu(z) + other)


def view_kept(m, x):
    z = m.a(x)
    view = z.view(-1)
    return m.b(F.relu(z)) + view.reshape(z.shape)


def half_relu(m, x):
    z = m.a(x)
    z[:, :2].relu_()
    return m.b(F.relu(z) + z)


def inference(m, x):
    with torch.inference_mode():
        z = m.a(x)
        y = F.relu(z)
        z.mul_(2)
    return m.b(y + z)


@pytest.mark.parametrize("name", HIDDEN)
def test_an_output_with_other_readers_takes_the_linear_form(name):
    network = TorchNetwork(Net(HIDDEN[name]), torch.randn(5, 4))
    found = {layer.name: layer for layer in network.layers}
    assert found["a"].activation == "linear"
    assert network.chain is None
    samples = network.capture([torch.randn(6, 4)], ["a"])["a"]
    made = samples.inputs[0] @ found["a"].weight.T + found["a"].bias
    torch.testing.assert_close(made, samples.preactivations)
    assert samples.offset is None


PASSED = {
    "pool": lambda m, x: m.b(F.relu(F.max_pool1d(m.a(x), 1))),
    "view in place": lambda m, x: m.b(m.a(x).view(-1, 2, 2).relu_().flatten(1)),
    "sum": lambda m, x: m.b(F.relu(x + m.a(x))),
    "sum in place": lambda m, x: m.b((m.a(x).add_(x)).relu_()),
    "two sums": lambda m, x: m.b(F.relu(x + (m.a(x) + 1.0) + x.abs())),
    "sum over the branch": lambda m, x: m.b(F.relu(x.clone().add_(m.a(x)))),
    "broadcast sum": lambda m, x: m.b(F.relu(m.a(x) + torch.arange(4.0))),
    "metadata": lambda m, x: m.b(F.relu(z.reshape(z.shape[0], -1)) if (z := m.a(x)).is_floating_point() else x),
    "autocast": lambda m, x: autocast(m, x),
    "checkpoint": lambda m, x: m.b(checkpoint(lambda v: F.relu(m.a(v)), x, use_reentrant=False)),
    "cast": lambda m, x: m.b(F.relu(m.a(x).double()).float()),
    "dropout": lambda m, x: m.b(F.relu(F.dropout(m.a(x), 0.5, m.training))),
    "threshold": lambda m, x: m.b(F.threshold(m.a(x), 0.0, 0.0)),
    "written over later": lambda m, x: m.b(F.relu(m.a(x)).mul_(2)),
    "input written over": lambda m, x: input_written(m, x),
}


def autocast(m, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = F.relu(m.a(x))
    return m.b(y.float())


def input_written(m, x):
    x = x.clone()
    y = F.relu(m.a(x))
    x.zero_()
    return m.b(y + x)


@pytest.mark.parametrize("name", PASSED)
def test_what_stands_between_a_layer_and_its_relu(name):
    network = TorchNetwork(Net(PASSED[name]), torch.randn(5, 4))
    (layer,) = [layer for layer in network.layers if layer.name == "a"]
    assert layer.activation == "relu"
    x = torch.randn(6, 4)
    samples = network.capture([x], ["a"])["a"]
    torch.testing.assert_close(samples.inputs[0], x)
    made = x @ layer.weight.T + layer.bias
    offsets = {"sum": x, "sum in place": x, "two sums": x + 1 + x.abs(), "sum over the branch": x}
    offsets |= {"broadcast sum": torch.arange(4.0).expand(6, 4)}
    if name in offsets:
        torch.testing.assert_close(samples.offset, offsets[name])
        made = made + offsets[name]
    tolerance = {"atol": 3e-2, "rtol": 3e-2} if name == "autocast" else {}
    torch.testing.assert_close(samples.preactivations, made, **tolerance)


def test_weight_norm_is_skipped_in_both_spellings():
    new = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU(), nn.Linear(4, 2))
    network = TorchNetwork(new, torch.randn(3, 4))
    assert [layer.name for layer in network.layers] == ["2"]
    assert [(skipped.name, skipped.shape) for skipped in network.skipped] == [("0", (4, 4))]
    assert "parametrization" in network.skipped[0].reason
    masked = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    prune.random_unstructured(masked[0], "weight", 0.5)
    network = TorchNetwork(masked, torch.randn(3, 4))
    assert [(skipped.name, skipped.kind) for skipped in network.skipped] == [("0", "Linear")]


def test_recurrent_layers_and_embeddings_are_skipped():
    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.body = nn.Embedding(10, 6), nn.GRU(6, 5, batch_first=True)
            self.last, self.unused = nn.Linear(5, 2), nn.Linear(3, 3)

        def forward(self, x):
            return self.last(self.body(self.words(x))[0])

    network = TorchNetwork(Sequence(), torch.randint(0, 10, (3, 4)))
    assert [layer.name for layer in network.layers] == ["last"]
    reasons = {skipped.name: skipped.reason for skipped in network.skipped}
    assert set(reasons) == {"words", "body.weight_ih_l0", "body.weight_hh_l0", "unused"}
    assert "recurrent" in reasons["body.weight_ih_l0"] and "embedding" in reasons["words"]
    assert reasons["unused"] == "not used on the example batch"


def test_a_weight_tied_to_an_embedding_is_skipped():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.body, self.head = nn.Embedding(10, 6), nn.Linear(6, 6), nn.Linear(6, 10, bias=False)
            self.head.weight = self.words.weight

        def forward(self, x):
            return self.head(F.relu(self.body(self.words(x))))

    network = TorchNetwork(Tied(), torch.randint(0, 10, (3, 4)))
    assert [layer.name for layer in network.layers] == ["body"]
    assert network.skipped[0].reason == "its weight is also read by `embedding`"
    assert set(network.state()) == {"words.weight", "body.weight", "body.bias"}


def test_cross_attention_takes_its_projection_apart():
    class Cross(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2)

        def forward(self, x):
            return self.attention(x, x.flip(0), x.flip(0))[0]

    network = TorchNetwork(Cross(), torch.randn(5, 2, 8))
    assert [layer.name for layer in network.layers] == ["attention.out_proj"]
    assert network.skipped[0].name == "attention.in_proj_weight" and "read by" in network.skipped[0].reason


def test_views_of_one_memory_are_apart_in_the_copy():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False))
    memory = torch.randn(2, 4, 4)
    model[0].weight, model[2].weight = nn.Parameter(memory[0]), nn.Parameter(memory[1])
    network = TorchNetwork(model, torch.randn(3, 4))
    network.update("0", torch.zeros(4, 4), None)
    assert torch.equal(network.layers[1].weight, memory[1]) and model[0].weight.abs().sum() > 0


def test_a_bias_used_elsewhere_stays_where_it_is():
    network = TorchNetwork(Net(lambda m, x: m.b(F.relu(m.a(x))) + m.a.bias), torch.randn(5, 4))
    (layer,) = [layer for layer in network.layers if layer.name == "a"]
    assert layer.bias is None
    samples = network.capture([torch.randn(3, 4)], ["a"])["a"]
    torch.testing.assert_close(samples.offset, network.module.a.bias.detach().expand(3, 4))
    with pytest.raises(InputError, match="bias"):
        network.update("a", layer.weight, torch.zeros(4))


def test_a_path_that_depends_on_the_data_is_an_error():
    def forward(m, x):
        return m.b(F.relu(m.a(x))) if x.sum() > 0 else m.b(torch.tanh(m.a(x)))

    network = TorchNetwork(Net(forward), torch.ones(5, 4))
    network.capture([torch.ones(3, 4)], ["a", "b"])
    with pytest.raises(ModelError, match="`tanh` as operation .* where the example batch ran `relu`, in batch 1"):
        network.capture([torch.ones(3, 4), -torch.ones(3, 4)], ["a", "b"])


def test_another_expert_on_another_batch_is_an_error():
    network = TorchNetwork(Net(lambda m, x: F.relu((m.a if x.sum() > 0 else m.b)(x))), torch.ones(5, 4))
    with pytest.raises(ModelError, match="same operations"):
        network.capture([-torch.ones(3, 4)], ["a"])


def test_an_earlier_end_is_an_error():
    def forward(m, x):
        x = m.a(x)
        return m.b(F.relu(x)) if len(x) > 1 else x

    network = TorchNetwork(Net(forward), torch.ones(5, 4))
    with pytest.raises(ModelError, match="same operations"):
        network.capture([torch.ones(1, 4)], ["a", "b"])


def test_a_layer_gains_a_bias_and_is_still_followed():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    network = TorchNetwork(model, torch.randn(3, 4))
    untouched = network.copy()
    network.update("0", network.layers[0].weight, torch.ones(4))
    assert torch.equal(network.layers[0].bias, torch.ones(4)) and network.plan()["biases"] == ["0"]
    x = torch.randn(6, 4)
    samples = network.capture([x], ["0", "2"])
    torch.testing.assert_close(samples["0"].preactivations, x @ model[0].weight.T.detach() + 1)
    assert untouched.layers[0].bias is None and untouched.plan()["biases"] == []
    untouched.capture([x], ["0"])


def test_what_cannot_be_used_is_refused_in_one_sentence():
    good, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.randn(5, 4)
    broken = copy.deepcopy(good)
    with torch.no_grad():
        broken[2].weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="'2.weight'"):
        TorchNetwork(broken, x)
    with pytest.raises(ModelError, match="Linear or convolution"):
        TorchNetwork(nn.Sequential(nn.ReLU()), x)
    with pytest.raises(ModelError, match="not in targets"):
        TorchNetwork(good, x, ignore=["0", "2"])
    with pytest.raises(ModelError, match="lazy"):
        TorchNetwork(nn.LazyLinear(3), x)
    with pytest.raises(DataError, match=r"'0' reads 4 features .* Got \(5, 7\) float32"):
        TorchNetwork(good, torch.randn(5, 7))
    with pytest.raises(DataError, match="Got"):
        TorchNetwork(good, torch.randint(0, 3, (5, 4)))
    network = TorchNetwork(good, x)
    for use in (network.outputs, lambda batches: network.capture(batches, ["0"])):
        with pytest.raises(DataError, match=r"Got \(5, 7\) float32 in batch 1"):
            use([x, torch.randn(5, 7)])
    with pytest.raises(InputError, match=r"of shape \(3, 4\)"):
        network.update("0", torch.zeros(4, 3), None)
    with pytest.raises(InputError, match="trimmable layer"):
        network.capture([x], ["1"])


def test_a_norm_that_the_code_reads_is_not_folded():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, x):
            return self.norm(self.a(x)) * self.norm.weight

    network = TorchNetwork(Reads(), torch.randn(3, 4))
    assert network.plan() == {"folded": [], "biases": []} and isinstance(network.module.norm, nn.BatchNorm1d)
    assert network.layers[0].activation == "linear"


def test_layers_outside_the_targets_are_not_folded():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2))
    network = TorchNetwork(model, torch.randn(3, 1, 6, 6), targets="3")
    assert network.plan()["folded"] == [["3", "4"]]
    assert network.skipped[0].reason == "not in targets"


@pytest.mark.parametrize(
    ("forward", "chain"),
    [
        (lambda m, x: m.b(F.relu(m.a(x))), ("a", "b")),
        (lambda m, x: F.relu(m.b(F.relu(m.a(x.flatten(1))).view(-1, 4))), ("a", "b")),
        (lambda m, x: m.a(F.dropout(torch.tanh(m.b(x)), 0.5, m.training)), ("b", "a")),
        (lambda m, x: m.b(m.a(x)), ("a", "b")),
        (lambda m, x: m.b(F.gelu(m.a(x))), None),
        (lambda m, x: m.b(F.relu(m.a(x)) + x), None),
        (lambda m, x: m.b(F.relu(m.a(2 * x))), None),
        (lambda m, x: F.softmax(m.b(F.relu(m.a(x))), -1), None),
        (lambda m, x: m.a(x) + m.b(x), None),
        (lambda m, x: m.b(F.relu(m.a(x) + x)), None),
        (lambda m, x: m.b(F.relu(F.max_pool1d(m.a(x), 2)).repeat(1, 2)), None),
    ],
)
def test_plain_chains(forward, chain):
    assert TorchNetwork(Net(forward), torch.randn(3, 4)).chain == chain


def test_a_compiled_piece_is_not_trusted():
    with pytest.warns(DeprecationWarning):
        piece = torch.jit.trace(lambda z: torch.relu(z) + z, torch.randn(2, 4))
    network = TorchNetwork(Net(lambda m, x: m.b(F.relu(z := m.a(x)) + piece(z))), torch.randn(5, 4))
    assert network.layers[0].activation == "linear"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_models_and_parts_are_seen_through():
    model = nn.Sequential(torch.compile(nn.Linear(4, 4), backend="eager"), nn.ReLU(), nn.Linear(4, 2))
    assert TorchNetwork(model, torch.randn(3, 4)).chain == ("0", "2")
    assert TorchNetwork(torch.compile(model, backend="eager"), torch.randn(3, 4)).chain == ("0", "2")
