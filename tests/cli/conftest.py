"""Models and data on disk, as a user has them, and a way to run the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

typer_testing = pytest.importorskip("typer.testing")
pytest.importorskip("rich")
onnx = pytest.importorskip("onnx")

from nettrim.cli import app  # noqa: E402  # needs the extra

NETS = '''
import torch
from safetensors.torch import save_file
from torch import nn

def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 4))

def chatty():
    print("built")
    model = small()
    model[1].register_forward_hook(lambda *_: print("ran"))
    return model

def untrained():
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 4))

def broken():
    raise ValueError("no weights here")

def number():
    return 3
'''

Run = Callable[..., "typer_testing.Result"]


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 4))


def onnx_of(model: nn.Sequential) -> onnx.ModelProto:
    """Linear and ReLU layers as Gemm and Relu nodes."""
    nodes, stored, value = [], [], "input"
    for place, layer in enumerate(model):
        if isinstance(layer, nn.Linear):
            for name, tensor in (("weight", layer.weight), ("bias", layer.bias)):
                stored.append(onnx.numpy_helper.from_array(tensor.detach().numpy(), f"{place}.{name}"))
            inputs = [value, f"{place}.weight", f"{place}.bias"]
            nodes.append(onnx.helper.make_node("Gemm", inputs, [f"v{place}"], f"layer{place}", transB=1))
        else:
            nodes.append(onnx.helper.make_node("Relu", [value], [f"v{place}"]))
        value = f"v{place}"
    first, last = model[0].in_features, model[-1].out_features
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["samples", size])
        for name, size in (("input", first), (value, last))
    ]
    graph = onnx.helper.make_graph(nodes, "small", ends[:1], ends[1:], stored)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present directory: small.onnx, nets.py, small.safetensors, data.npz (60 samples with labels), plain.npy."""
    model = small()
    inputs = torch.randn(60, 12, generator=torch.Generator().manual_seed(1))
    labels = model(inputs).argmax(1)
    onnx.save(onnx_of(model), tmp_path / "small.onnx")
    (tmp_path / "nets.py").write_text(NETS)
    save_file(dict(model.state_dict()), tmp_path / "small.safetensors")
    np.savez(tmp_path / "data.npz", inputs=inputs.numpy(), labels=labels.numpy())
    np.save(tmp_path / "plain.npy", inputs.numpy())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "nets", raising=False)
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Run:
    """Run the command in `folder`: `run("trim", "small.onnx", ...)`."""

    def call(*words: object) -> typer_testing.Result:
        return typer_testing.CliRunner().invoke(app, [str(word) for word in words])

    return call


@pytest.fixture
def trimmed(run: Run) -> str:
    """A directory with a trimmed ONNX file."""
    result = run("trim", "small.onnx", "--data", "data.npz", "--epsilon", "0.1", "-o", "out", "--quiet")
    assert result.exit_code == 0, result.output
    return "out"
