"""Networks that exporters wrote: layer by layer and output by output equal to the PyTorch modules they came from."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from nettrim.models.onnx_network import OnnxNetwork


class Residual(nn.Module):
    """BatchNorm, a residual sum before a ReLU, depthwise and strided convolutions, pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.one = nn.Conv2d(4, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.two = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.bn2 = nn.BatchNorm2d(4)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        y = F.relu6(self.bn1(self.one(x)))
        x = F.relu(self.bn2(self.two(y)) + x)
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))


class Block(nn.Module):
    """A ReLU transformer block on token sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, dropout=0.0)
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.block(x))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 8), nn.LeakyReLU(0.1), nn.Linear(8, 3)
    )


def twins() -> nn.Module:
    """Two layers that happen to be equal, which exporters merge."""
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    net[2].load_state_dict(net[0].state_dict())
    return net


SHAPES = {"mlp": (6,), "twins": (6,), "residual": (1, 12, 12), "block": (7, 8)}
BUILD = {"mlp": mlp, "twins": twins, "residual": Residual, "block": Block}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def built(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    module, x = BUILD[name](), torch.randn(9, *SHAPES[name])
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias)
            assert part.running_mean is not None and part.running_var is not None
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    return module.eval(), x


def export(module: nn.Module, x: Tensor, path: Path, *, dynamo: bool) -> Path:
    with quiet():
        if dynamo:
            shapes = ({0: torch.export.Dim("batch")},)
            torch.onnx.export(
                module, (x,), path, dynamo=True, dynamic_shapes=shapes, external_data=False, verbose=False
            )
        else:
            names = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": {"x": {0: "n"}, "y": {0: "n"}}}
            torch.onnx.export(module, (x,), path, dynamo=False, **names)
    return path


def linears(module: nn.Module) -> list[nn.Module]:
    return [part for part in module.modules() if isinstance(part, nn.Linear | nn.Conv2d)]


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "legacy"])
@pytest.mark.parametrize("name", ["mlp", "residual", "block"])
def test_exported_networks(name: str, dynamo: bool, tmp_path: Path) -> None:
    module, x = built(name)
    network = OnnxNetwork(export(module, x, tmp_path / "m.onnx", dynamo=dynamo), targets=None)
    with torch.no_grad():
        expected = module(x)
    torch.testing.assert_close(network.outputs([x]), expected, atol=1e-4, rtol=1e-4)
    assert len(network.layers) >= len(linears(module))
    captured = network.capture([x[:4], x[4:]], [layer.name for layer in network.layers])
    for layer in network.layers:
        samples = captured[layer.name]
        rows = layer.weight.reshape(layer.groups, -1, layer.weight.shape[1])
        made = torch.einsum("gsi,goi->sgo", samples.inputs, rows).flatten(1)
        made = made if layer.bias is None else made + layer.bias
        made = made if samples.offset is None else made + samples.offset
        torch.testing.assert_close(made, samples.preactivations, atol=1e-4, rtol=1e-4)
    activations = [layer.activation for layer in network.layers]
    if name == "mlp":
        assert activations == ["relu", "leaky_relu:0.1", "linear"]
        assert network.chain == tuple(layer.name for layer in network.layers)
    if name == "residual":
        assert activations == ["relu", "relu6", "relu", "linear"]
        assert captured[network.layers[2].name].offset is not None
    if name == "block":
        assert activations.count("relu") == 1
    twin = network.copy()
    for layer in twin.layers:
        twin.update(layer.name, layer.weight * (torch.rand_like(layer.weight) < 0.5), layer.bias)
    twin.save(tmp_path / "saved.onnx", [x])
    assert str(tmp_path).encode() not in (tmp_path / "saved.onnx").read_bytes()
    assert b"test_onnx_exported" not in (tmp_path / "saved.onnx").read_bytes()
    torch.testing.assert_close(OnnxNetwork(tmp_path / "saved.onnx").outputs([x]), twin.outputs([x]))


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "legacy"])
def test_changed_weights_do_what_they_do_in_pytorch(dynamo: bool, tmp_path: Path) -> None:
    """Merged tensors must not drag each other along."""
    module, x = built("twins")
    network = OnnxNetwork(export(module, x, tmp_path / "m.onnx", dynamo=dynamo))
    with torch.no_grad():
        for part, layer in zip(linears(module), network.layers, strict=True):
            assert isinstance(part, nn.Linear)
            part.weight.mul_(torch.rand_like(part.weight) < 0.5)
            part.bias.add_(0.1)
            network.update(layer.name, part.weight, part.bias)
        expected = module(x)
    torch.testing.assert_close(network.outputs([x]), expected, atol=1e-5, rtol=1e-5)


def test_a_recurrent_network_keeps_its_recurrent_part(tmp_path: Path) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(x)[0][:, -1])

    torch.manual_seed(0)
    x = torch.randn(3, 4, 6)
    module = Recurrent().eval()
    network = OnnxNetwork(export(module, x, tmp_path / "m.onnx", dynamo=False))
    assert len(network.layers) == 1 and "recurrent" in network.skipped[0].reason
    with torch.no_grad():
        torch.testing.assert_close(network.outputs([x]), module(x), atol=1e-5, rtol=1e-5)


def test_export_with_a_fixed_batch_of_one(tmp_path: Path) -> None:
    module, x = built("residual")
    with quiet():
        torch.onnx.export(module, (x[:1],), tmp_path / "m.onnx", dynamo=False)
    network = OnnxNetwork(tmp_path / "m.onnx", positions=10)
    with torch.no_grad():
        torch.testing.assert_close(network.outputs([x]), module(x), atol=1e-4, rtol=1e-4)
    name = network.layers[1].name
    assert network.capture([x], [name])[name].inputs.shape == (1, 90, 36)
