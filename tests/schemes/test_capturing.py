"""Samples captured in shares are those of one capture, whoever captures them."""

import pickle
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from torch import nn

import nettrim
from nettrim.blocks import split
from nettrim.checkpoint import Checkpoint
from nettrim.executors import LocalExecutor, Shard, Unfinished
from nettrim.executors.base import Held
from nettrim.models.capture import join_samples
from nettrim.models.store import Memory, SampleStore
from nettrim.models.torch_network import TorchNetwork
from nettrim.schemes import capturing
from nettrim.schemes.capturing import Captures, _ranges


class Apart(LocalExecutor):
    """Threads that share nothing: what is held is pickled, as it would travel."""

    captures = True

    def hold(self, value):
        return Held(pickle.loads(pickle.dumps(value)))  # noqa: S301


def networks():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3, bias=False))
    residual = Residual()
    images = nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 3),
    )
    return {
        "plain": (plain, torch.randn(33, 5), None),
        "residual": (residual, torch.randn(33, 5), None),
        "convolutions": (images, torch.randn(21, 4, 6, 6), 7),
    }


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(5, 5), nn.Linear(5, 5, bias=False)

    def forward(self, x):
        return torch.relu(x + self.two(torch.relu(self.one(x))))


def same(one, other):
    return all(
        (a is None and b is None) or torch.equal(a, b)
        for a, b in zip(vars(one).values(), vars(other).values(), strict=True)
    )


@pytest.mark.parametrize("memory", [None, 500])
@pytest.mark.parametrize("kind", ["plain", "residual", "convolutions"])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_shares_joined_are_one_capture(kind, workers, memory):
    model, data, positions = networks()[kind]
    network = TorchNetwork(model, data[:4], positions=positions, memory_budget=memory)
    batches = data.split(4)
    captures = Captures(batches, Apart(workers))
    for layer in network.layers:
        whole = network.capture(batches, [layer.name])[layer.name]
        assert same(captures.of(network, layer.name), whole)
        if positions is not None and layer.kind == "Conv2d":
            assert whole.inputs.shape[1] == len(data) * positions
    network.close()


def test_positions_depend_on_the_batch_alone():
    model, data, positions = networks()["convolutions"]
    network = TorchNetwork(model, data[:4], positions=positions)
    batches = data.split(4)
    whole = network.capture(batches, ["0"])["0"]
    tail = network.capture(batches[2:], ["0"], first=2)["0"]
    wrong = network.capture(batches[2:], ["0"])["0"]
    rows = 8 * positions
    assert torch.equal(whole.inputs[:, rows:], tail.inputs)
    assert not torch.equal(whole.inputs[:, rows:], wrong.inputs)


def test_shares_of_onnx_models():
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    from nettrim.models.onnx_network import OnnxNetwork  # noqa: PLC0415  # an extra

    helper = onnx.helper
    generator = np.random.default_rng(0)
    arrays = {
        "w": generator.standard_normal((6, 4, 3, 3)).astype(np.float32),
        "b": generator.standard_normal(6).astype(np.float32),
    }
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "b"], ["z"], "conv"), helper.make_node("Relu", ["z"], ["y"], "relu")],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 4, 6, 6])],  # batches of two
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 6, 4, 4])],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    data = torch.randn(14, 4, 6, 6)
    network = OnnxNetwork(model, positions=5)
    (name,) = (layer.name for layer in network.layers)
    whole = network.capture(data.split(4), [name])[name]
    assert same(Captures(data.split(4), Apart(2)).of(network, name), whole)


@pytest.mark.parametrize(("count", "most"), [(1, 1), (5, 2), (7, 7), (3, 10), (64, 12)])
def test_ranges_cover_everything_in_order(count, most):
    ranges = _ranges(count, most)
    assert len(ranges) <= most
    assert [item for start, stop in ranges for item in range(start, stop)] == list(range(count))
    assert max(stop - start for start, stop in ranges) - min(stop - start for start, stop in ranges) <= 1


def test_joined_samples_go_to_files_beyond_the_budget(tmp_path):
    model, data, _ = networks()["plain"]
    network = TorchNetwork(model, data[:4])
    parts = [network.capture([batch], ["0"])["0"] for batch in data.split(4)]
    store = SampleStore(Memory(100), tmp_path)
    joined = join_samples("0", iter(parts), store)
    assert list(tmp_path.rglob("*0.inputs.npy"))
    assert same(joined, network.capture(data.split(4), ["0"])["0"])
    store.close()


def trimmed(folder=None, executor=None, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))
    data = list(torch.randn(40, 6).split(5))
    options = {"epsilon": 0.2, "budget": "neuron", "progress": False, "holdout": 0, **options}
    return nettrim.trim(model, data, executor=executor, checkpoint=folder, **options)


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))


@pytest.mark.parametrize("scheme", ["parallel", "cascade"])
def test_the_trim_is_the_same(scheme):
    assert equal(trimmed(scheme=scheme, executor=LocalExecutor(1)), trimmed(scheme=scheme, executor=Apart(2)))


SHARE = """
import sys
import torch
from torch import nn
import nettrim
from nettrim.blocks import split
from nettrim.executors import LocalExecutor, Shard
from nettrim.models.torch_network import TorchNetwork
split._ROWS, split._JOINT_ROWS = 4, 2
index, scheme, budget, folder = int(sys.argv[1]), *sys.argv[2:]
inner = TorchNetwork.capture
def capture(self, batches, names, first=0):
    assert len(batches) == 4, batches  # of eight
    return inner(self, batches, names, first)
TorchNetwork.capture = capture
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))
data = list(torch.randn(40, 6).split(5))
executor = Shard(index, 2, wait=100, executor=LocalExecutor(1), captures=True)
trimmed = nettrim.trim(model, data, epsilon=0.2, budget=budget, progress=False, holdout=0, scheme=scheme,
                       executor=executor, checkpoint=folder)
for parameter in trimmed.model.parameters():
    print(parameter.flatten().tolist())
"""


@pytest.mark.parametrize("budget", ["neuron", "layer"])
@pytest.mark.parametrize("scheme", ["parallel", "cascade"])
def test_shares_that_run_together_exchange_their_samples(tmp_path, scheme, budget, monkeypatch):
    """Two processes, each of which runs the network on its half of the batches, for layers that are not its own too.

    With a budget for a whole layer they solve its parts together, from these samples.
    """
    monkeypatch.setattr(split, "_ROWS", 4)
    monkeypatch.setattr(split, "_JOINT_ROWS", 2)
    whole = trimmed(scheme=scheme, budget=budget, executor=LocalExecutor(1))
    expected = "".join(f"{parameter.flatten().tolist()}\n" for parameter in whole.model.parameters())
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", SHARE, str(index), scheme, budget, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        for index in (1, 2)
    ]
    outputs = [job.communicate(timeout=200)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0]
    assert outputs == [expected, expected]
    assert not list(tmp_path.glob("*samples*"))  # taken away when the layer was finished


@pytest.mark.parametrize("kind", ["plain", "residual", "convolutions"])
def test_files_are_joined_a_few_samples_at_a_time(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(capturing, "_ROWS", 7)
    inner, read = capturing._samples, []

    def one_at_a_time(stored):
        assert all(tensor() is None for tensor in read)
        samples = inner(stored)
        read[:] = [weakref.ref(samples.inputs), weakref.ref(samples.preactivations)]
        return samples

    monkeypatch.setattr(capturing, "_samples", one_at_a_time)
    model, data, positions = networks()[kind]
    network = TorchNetwork(model, data[:4], positions=positions)
    store = Checkpoint.open(tmp_path, {"model": {}, "data": {}, "recipe": {}})
    one, two = (Captures(data.split(4), Shard(index, 2, captures=True), store) for index in (1, 2))
    for layer in network.layers:
        one.give(network, layer.name)
        assert same(two.of(network, layer.name), network.capture(data.split(4), [layer.name])[layer.name])


def test_a_share_that_is_alone_says_what_is_missing(tmp_path):
    for _ in range(2):
        with pytest.raises(Unfinished, match="samples of layer '0' are done; others are missing") as caught:
            trimmed(tmp_path, Shard(1, 3, captures=True))
        assert [unit[-6:] for unit in caught.value.missing] == ["2 of 3", "3 of 3"]
        assert f"the first {caught.value.missing[0]!r}" in str(caught.value)
    assert len(list(tmp_path.glob("*samples*"))) == 1


def test_whoever_finishes_takes_the_samples_away(tmp_path):
    """A run that never captured, as one without a share; what is called alike stays."""
    with pytest.raises(Unfinished):
        trimmed(tmp_path, Shard(1, 2, captures=True))
    assert len(list(tmp_path.glob("*samples*"))) == 1
    store = Checkpoint(tmp_path)
    others = ["0 samples of another kind", "0.0 samples 0123456789abcdef 1 of 2"]
    for other in others:
        store.save(other, "p", {}, {})
    trimmed(tmp_path)
    assert sorted(unit for unit in store.units("") if "samples" in unit) == others


def test_samples_of_another_version_are_captured_again(tmp_path):
    model, data, _ = networks()["plain"]
    network = TorchNetwork(model, data[:4])
    store = Checkpoint.open(tmp_path, {"model": {}, "data": {}, "recipe": {}})
    one, two = (Captures(data.split(4), Shard(index, 2, captures=True), store) for index in (1, 2))
    one.give(network, "0")
    (unit,) = store.units("0 samples")
    program = store.load(unit).program
    store.save(unit, program, {"inputs": torch.zeros(1, 3, 3), "old": torch.zeros(2)}, {})
    with pytest.raises(Unfinished, match="the first '0 samples [0-9a-f]{16} 1 of 2'"):  # another's are missing
        two.of(network, "0")
    assert any("another version" in note for note in store.notes)
    assert same(one.of(network, "0"), network.capture(data.split(4), ["0"])["0"])  # its own are written anew


def test_samples_of_another_network_are_not_taken(tmp_path):
    """The weights are part of what the files are called: a cascade captures a layer with weights that change."""
    model, data, _ = networks()["plain"]
    network = TorchNetwork(model, data[:4])
    store = Checkpoint.open(tmp_path, {"model": {}, "data": {}, "recipe": {}})
    for index in (1, 2):
        captures = Captures(data.split(20), Shard(index, 2, captures=True), store)
        try:
            found = captures.of(network, "2")
        except Unfinished:
            continue
    assert same(found, network.capture(data.split(20), ["2"])["2"])
    network.update("0", torch.zeros(8, 5), None)
    with pytest.raises(Unfinished):
        captures.of(network, "2")
    captures.release("2")
    assert not list(tmp_path.glob("*samples*"))
