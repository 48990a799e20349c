"""Calibration data in every form, and what is said of data that cannot be used."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nettrim.errors import DataError
from nettrim.models.batches import Batch, normalise_batches
from nettrim.models.torch_network import TorchNetwork


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, x, y):
        return self.a(x) + self.b(y)


class Optional(nn.Module):
    def forward(self, x, mask=None):
        return x


X, LABELS = torch.randn(600, 4), torch.randint(0, 3, (600,))


@pytest.mark.parametrize("data", [X, X.numpy(), [X[:256], X[256:512], X[512:]], iter([X[:256], X[256:512], X[512:]])])
def test_plain_inputs(data):
    batches = normalise_batches(data)
    assert [batch.size for batch in batches] == [256, 256, 88]
    assert torch.equal(torch.cat([batch.args[0] for batch in batches]), X)
    assert all(batch.labels is None and batch.kwargs == {} for batch in batches)


@pytest.mark.parametrize(
    "data",
    [
        (X, LABELS),
        (X.numpy(), LABELS.numpy()),
        TensorDataset(X, LABELS),
        DataLoader(TensorDataset(X, LABELS), batch_size=256),
        [(X[:256], LABELS[:256]), [X[256:512], LABELS[256:512]], (X[512:], LABELS[512:])],
        {"input": X, "labels": LABELS},
        [{"input": X, "label": LABELS}],
    ],
)
@pytest.mark.parametrize("model", [None, nn.Sequential(nn.Linear(4, 2)), Optional()])
def test_labels_are_set_aside(data, model):
    batches = normalise_batches(data, model=model)
    inputs = [*batches[0].args, *batches[0].kwargs.values()]
    assert len(inputs) == 1 and inputs[0].shape[1:] == (4,)
    assert torch.equal(torch.cat([batch.labels for batch in batches]), LABELS)


def test_two_inputs_are_told_by_the_forward():
    y = torch.randn(600, 2)
    (one, *_) = normalise_batches([(X, y)], model=Two())
    assert len(one.args) == 2 and one.labels is None
    (one, *_) = normalise_batches([(X, y, LABELS)], model=Two())
    assert len(one.args) == 2 and torch.equal(one.labels, LABELS)
    (one, *_) = normalise_batches([(X, y)])
    assert len(one.args) == 1 and one.labels is y
    with pytest.raises(DataError, match="at most 2 inputs"):
        normalise_batches([(X, y, y, LABELS)], model=Two())


def test_a_network_takes_dicts_and_pairs():
    y = torch.randn(600, 2)
    model = Two()
    network = TorchNetwork(model, {"x": X[:3], "y": y[:3], "labels": LABELS[:3]})
    samples = network.capture(normalise_batches({"x": X, "y": y}), ["a", "b"])
    assert torch.equal(samples["a"].inputs[0], X) and torch.equal(samples["b"].inputs[0], y)
    pairs = TorchNetwork(model, (X[:3], y[:3]))
    assert torch.equal(pairs.outputs([(X, y)]), network.outputs([{"x": X, "y": y}]))


def test_limits_and_seeds():
    (one,) = normalise_batches((X, LABELS), limit=50, seed=1)
    assert one.size == 50 and len(one.labels) == 50
    (two,) = normalise_batches((X, LABELS), limit=50, seed=1)
    (other,) = normalise_batches((X, LABELS), limit=50, seed=2)
    assert torch.equal(one.args[0], two.args[0]) and not torch.equal(one.args[0], other.args[0])
    rows = [int((row == X).all(1).nonzero()) for row in one.args[0]]
    assert torch.equal(LABELS[rows], one.labels)
    stream = normalise_batches(DataLoader(TensorDataset(X), batch_size=40), limit=50)
    assert [batch.size for batch in stream] == [40, 10]


def test_a_shuffling_loader_gives_the_same_order_and_leaves_the_random_state():
    loader = DataLoader(TensorDataset(X), batch_size=300, shuffle=True)
    before = torch.get_rng_state()
    one, two = (normalise_batches(loader, seed=5)[0].args[0] for _ in range(2))
    assert torch.equal(one, two) and torch.equal(before, torch.get_rng_state())


def test_floats_take_the_models_precision_and_integers_stay():
    model = nn.Linear(4, 2).double()
    assert normalise_batches(X.numpy(), model=model)[0].args[0].dtype == torch.float64
    assert normalise_batches(LABELS, model=model)[0].args[0].dtype == torch.int64


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ([], "at least one batch"),
        (torch.zeros(0, 4), "at least one sample"),
        ([X, torch.zeros(0, 4)], "none in batch 1"),
        ([X, X.log()], "NaN or infinity in batch 1"),
        ((X, LABELS[:5]), r"first dimensions \[5, 600\]"),
        (3, "Got a int"),
        ("data.npz", "Got a str"),
        (["data.npz"], "batch of type str"),
        ([()], "at least one input tensor"),
        (torch.tensor(1.0), "no tensor with rows"),
        (np.array(["a", "b"]), "arrays of numbers"),
    ],
)
def test_what_cannot_be_used(data, sentence):
    with pytest.raises(DataError, match=sentence):
        normalise_batches(data)
    with pytest.raises(DataError, match="limit"):
        normalise_batches(X, limit=0)


def test_rows_of_a_batch():
    batch = Batch((X, "mode"), {"scale": torch.tensor(2.0)}, LABELS, 600)
    assert batch.rows(10, 15).size == 5 and torch.equal(batch.rows(10, 15).args[0], X[10:15])
    assert batch.pick(torch.tensor([3, 1])).labels.tolist() == LABELS[[3, 1]].tolist()
    assert batch.rows(0, 2).args[1] == "mode" and batch.rows(0, 2).kwargs["scale"] == 2.0
