"""Exported programs: the same layers as in the module they were made from, and a whole trim at the command line."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nettrim.cli.exported import read_exported
from nettrim.models.torch_network import TorchNetwork


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding="same")
        self.norm, self.down, self.head = nn.BatchNorm2d(4), nn.Conv2d(2, 4, 1), nn.Linear(4, 3)

    def forward(self, x):
        y = F.relu(self.norm(self.two(F.relu(self.one(x)))) + self.down(x))
        return self.head(F.adaptive_avg_pool2d(y, 1).flatten(1))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x)).mean(1))


class ByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.bias = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(5))
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.relu(torch.addmm(self.bias, x, self.matrix)))


def mobile() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(4, 8, 1), nn.ReLU6(inplace=True), nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.LeakyReLU(0.1, inplace=True),
        nn.Dropout(), nn.Conv2d(8, 4, 1, bias=False), nn.MaxPool2d(2), nn.Hardtanh(),
    )  # fmt: skip


def turned() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(3, 4, 3, padding=1, dilation=1), nn.Sigmoid(), nn.ConvTranspose1d(4, 2, 3, stride=2), nn.ReLU()
    )


NETS = {
    "residual": (Residual, (2, 6, 6)),
    "attention": (Attention, (5, 6)),
    "by hand": (ByHand, (6,)),
    "mobile": (mobile, (4, 6, 6)),
    "turned": (turned, (3, 8)),
}


def exported(name: str, path: Path) -> tuple[nn.Module, torch.Tensor]:
    """The module, written as a program, and samples for it."""
    torch.manual_seed(0)
    build, shape = NETS[name]
    model, data = build().eval(), torch.randn(60, *shape)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's own making
        program = torch.export.export(model, (data[:4],), dynamic_shapes=({0: torch.export.Dim("samples")},))
        torch.export.save(program, path)
    return model, data


@pytest.mark.parametrize("name", NETS)
def test_the_layers_are_the_modules(name: str, tmp_path: Path) -> None:
    model, data = exported(name, tmp_path / "net.pt2")
    program = read_exported(tmp_path / "net.pt2")
    network, wanted = TorchNetwork(program, data), TorchNetwork(model, data)
    assert network.skipped == wanted.skipped == ()
    torch.testing.assert_close(network.outputs([data]), model(data).detach())
    before_norm = {"two", "down"} if name == "residual" else set()  # a program's norm stays: its sum goes to `down`
    for mine, theirs in zip(network.layers, wanted.layers, strict=True):
        assert mine.name == f"program.{theirs.name}" and (mine.kind, mine.shape) == (theirs.kind, theirs.shape)
        if theirs.name not in before_norm:
            assert mine.activation == theirs.activation


@pytest.mark.parametrize("name", NETS)
def test_trimmed_and_verified(run, name: str, folder: Path) -> None:
    _, data = exported(name, folder / "net.pt2")
    np.save("net.npy", data.numpy())
    result = run(
        "trim", "net.pt2", "--trust-model", "--data", "net.npy", "--epsilon", "0.3", "--tolerance", "0.01",
        "--positions", "8", "-o", "out", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["certified"] and report["sparsity"] > 0
    found = run("verify", "out", "--data", "net.npy", "--model", "net.pt2", "--trust-model")
    assert found.exit_code == 0, found.output
    told = run("eval", "net.pt2", "--weights", "out", "--trust-model", "--data", "net.npy", "--json")
    assert json.loads(told.stdout)["nonzeros"] == report["nonzeros_after"]
