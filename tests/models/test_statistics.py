"""BatchNorm statistics re-estimated: known values, no dependence on batches, and through a whole trim."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import nettrim
from nettrim.errors import RecipeError
from nettrim.models.torch_network import TorchNetwork


class Net(nn.Module):
    """A trunk with two norms, and a branch beside it with a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm1 = nn.Conv2d(2, 5, 3, bias=False), nn.BatchNorm2d(5)
        self.two, self.norm2 = nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4)
        self.side, self.norm3 = nn.Conv2d(2, 4, 5, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        trunk = self.norm2(self.two(self.norm1(self.one(x)).relu()))
        return self.head((trunk + self.norm3(self.side(x))).relu().mean((2, 3)))


class Twice(nn.Module):
    """One norm applied at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm = nn.Linear(4, 6), nn.Linear(6, 6), nn.BatchNorm1d(6)

    def forward(self, x):
        return self.norm(self.two(self.norm(self.one(x)).relu()))


def trained(model: nn.Module) -> nn.Module:
    """Statistics and affine parameters as after some training."""
    generator = torch.Generator().manual_seed(2)
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            for tensor, low in ((part.running_mean, -0.5), (part.running_var, 0.5), (part.weight.data, 0.5)):
                tensor.copy_(low + torch.rand(tensor.shape, generator=generator))
            part.bias.data.copy_(torch.rand(part.bias.shape, generator=generator) - 0.5)
    return model.eval()


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return trained(Net())


@pytest.fixture
def data() -> torch.Tensor:
    return torch.randn(60, 2, 7, 7, generator=torch.Generator().manual_seed(1))


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers() if "running" in name}


def inputs_of(model: nn.Module, name: str, data: torch.Tensor) -> torch.Tensor:
    """What a module reads, all its calls joined, (channels, samples * positions)."""
    seen = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(data)
    handle.remove()
    return torch.cat([inputs.double().transpose(0, 1).flatten(1) for inputs in seen], 1)


def check_statistics(model: nn.Module, names: list[str], data: torch.Tensor) -> None:
    for name in names:
        norm, rows = model.get_submodule(name), inputs_of(model, name, data)
        torch.testing.assert_close(norm.running_mean, rows.mean(1).float(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, rows.var(1).float(), rtol=1e-4, atol=1e-6)


def changed(network: TorchNetwork, name: str) -> None:
    (layer,) = [layer for layer in network.layers if layer.name == name]
    network.update(name, layer.weight * (layer.weight.abs() > 0.1), layer.bias)


@pytest.mark.parametrize("sizes", [[60], [7, 30, 23], [1] * 60], ids=["whole", "uneven", "ones"])
def test_statistics_are_those_of_all_samples_however_they_are_cut(model, data, sizes) -> None:
    network = TorchNetwork(model, data[:2], statistics=list(data.split(sizes)))
    changed(network, "one")
    found = network.written()
    check_statistics(found, ["norm1", "norm2"], data)
    assert torch.equal(found.norm3.running_mean, model.norm3.running_mean), "nothing before it has changed"


def test_one_batch_gives_what_pytorch_estimates(model, data) -> None:
    network = TorchNetwork(model, data[:2], statistics=[data])
    changed(network, "side")
    wanted = nn.BatchNorm2d(4, momentum=None)
    wanted.train()(network.module.side(data))
    found = network.written().norm3
    torch.testing.assert_close(found.running_mean, wanted.running_mean)
    torch.testing.assert_close(found.running_var, wanted.running_var)


def test_a_norm_applied_twice_has_the_statistics_of_both(data) -> None:
    torch.manual_seed(0)
    rows = torch.randn(50, 4)
    network = TorchNetwork(trained(Twice()), rows[:2], statistics=[rows])
    before = network.module.norm.running_mean.clone()
    changed(network, "one")
    seen = network.copy()  # what both places read while the old statistics hold
    wanted = inputs_of(seen.module, "norm", rows)
    found = network.written().norm
    torch.testing.assert_close(found.running_mean, wanted.mean(1).float())
    torch.testing.assert_close(found.running_var, wanted.var(1).float())
    assert not torch.equal(found.running_mean, before)


def test_nothing_is_touched_before_a_weight_is(model, data) -> None:
    network = TorchNetwork(model, data[:2], statistics=[data])
    assert {layer.name for layer in network.layers} == {"one", "two", "side", "head"}
    assert all(
        torch.equal(one, other)
        for one, other in zip(statistics(network.written()).values(), statistics(model).values(), strict=True)
    )
    assert network.plan() == {"folded": [], "biases": []} and network.notes == ()


@pytest.mark.parametrize("scheme", ["parallel", "cascade"])
def test_a_trim_ends_with_the_statistics_of_the_trimmed_network(model, data, scheme, tmp_path) -> None:
    before = statistics(model)
    options = {"epsilon": 0.3, "scheme": scheme, "batchnorm": "reestimate", "holdout": 0.0}
    trimmed = nettrim.trim(model, data, **options)
    assert trimmed.report.certified and trimmed.report.sparsity > 0.2
    assert all(torch.equal(before[name], found) for name, found in statistics(model).items())
    assert type(trimmed.model.norm1) is nn.BatchNorm2d
    check_statistics(trimmed.model, ["norm1", "norm2", "norm3"], data)
    assert any("3 BatchNorms" in note for note in trimmed.report.result.notes)
    directory = trimmed.save(tmp_path / "out")
    loaded = nettrim.load(directory, model)
    assert torch.equal(loaded(data), trimmed.model(data))
    assert nettrim.verify(directory, model, data).holds
    again = nettrim.trim(model, data, recipe=nettrim.Recipe.read(directory / "recipe.toml"))
    assert all(torch.equal(one, again.model.state_dict()[name]) for name, one in trimmed.model.state_dict().items())


def test_verify_finds_other_statistics(model, data, tmp_path) -> None:
    directory = nettrim.trim(model, data, epsilon=0.3, batchnorm="reestimate").save(tmp_path / "out")
    tensors = load_file(directory / "model.safetensors")
    tensors["norm2.running_mean"] += 0.2
    save_file(tensors, directory / "model.safetensors")
    index = json.loads((directory / "nettrim.json").read_text())
    index["files"]["model.safetensors"] = hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()
    (directory / "nettrim.json").write_text(json.dumps(index))
    found = nettrim.verify(directory, model, data)
    assert [text for text in found.failures if "answers differ" in text] == list(found.failures) != []


def test_onnx_files_are_refused(data) -> None:
    onnx = pytest.importorskip("onnx")
    weight = onnx.numpy_helper.from_array(torch.randn(3, 4).numpy(), "w")
    ends = [onnx.helper.make_tensor_value_info(name, 1, ["n", size]) for name, size in (("x", 4), ("y", 3))]
    nodes = [onnx.helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)]
    file = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight]), ir_version=9)
    with pytest.raises(RecipeError, match="`batchnorm` should be 'fold' for an ONNX file"):
        nettrim.trim(file, torch.randn(9, 4), epsilon=0.1, batchnorm="reestimate")


class Named(nn.BatchNorm2d):
    """A class of a library's own that computes nothing else."""


class Doubled(nn.BatchNorm2d):
    def forward(self, input):
        return 2 * super().forward(input)


@pytest.mark.parametrize(("norm", "folds"), [(nn.SyncBatchNorm, True), (Named, True), (Doubled, False)])
def test_subclasses_of_batch_norm(norm, folds, data, tmp_path) -> None:
    torch.manual_seed(0)
    model = trained(nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), norm(4), nn.ReLU(), nn.Flatten(), nn.Linear(100, 2)))
    network = TorchNetwork(model, data[:2])
    assert network.plan()["folded"] == ([["0", "1"]] if folds else [])
    assert [layer.activation for layer in network.layers] == ["relu" if folds else "linear", "linear"]
    with torch.no_grad():
        torch.testing.assert_close(network.outputs([data]), model(data), rtol=1e-4, atol=1e-5)
    trimmed = nettrim.trim(model, data, epsilon=0.2)
    assert nettrim.verify(trimmed.save(tmp_path / "out"), model, data).holds
