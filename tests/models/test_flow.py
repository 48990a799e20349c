"""Bounds carried along a graph: constants that are attained, and never less than what is measured."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nettrim
from nettrim.certificates.graph import Flow, graph_bound
from nettrim.certificates.network import Link
from nettrim.models.torch_network import TorchNetwork


class Written(nn.Module):
    """A layer, an operation, and a layer that is left alone after it."""

    def __init__(self, forward, layer: nn.Module | None = None, **parts: nn.Module) -> None:
        super().__init__()
        self.first = layer or nn.Conv2d(2, 3, 3, padding=1)
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


class Residual(nn.Module):
    """A stem, a block with a shortcut layer that runs after it, a block with a plain shortcut, a pool and a head."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.one, self.two, self.down = nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(4, 6, 1, 2)
        self.three, self.four = nn.Conv2d(6, 6, 3, padding=1, groups=2), nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.head = nn.Linear(6, 3, bias=False)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.stem(x)), 2, 1)
        x = F.relu(self.two(F.relu(self.one(x))) + self.down(x))
        y = F.leaky_relu(self.four(F.relu(self.three(x))) + x, 0.1)
        return self.head(self.norm(torch.cat([x, y], 0)).mean((2, 3))[: len(x)])


def inception() -> nn.Module:
    """Branches side by side, pooled on the way, through a layer that is left alone."""

    def forward(m, x):
        x = F.relu(m.first(x))
        x = torch.cat([m.left(x), F.avg_pool2d(m.right(x), 3, 1, 1)], 1)
        return m.head(F.adaptive_avg_pool2d(F.gelu(x) * 0.5, 2).flatten(1))

    return Written(
        forward,
        left=nn.Conv2d(3, 4, 1),
        right=nn.Conv2d(3, 2, 3, padding=1, dilation=1),
        head=nn.Linear(24, 3, bias=False),
    )


NETS = {
    "residual": Residual,
    "inception": inception,
    "norm that stays": lambda: Written(lambda m, x: m.head(m.norm(x + m.first(x).sum(1, True)).mean((2, 3))),
                                       norm=nn.BatchNorm2d(2), head=nn.Linear(2, 3)),
    "turned": lambda: Written(lambda m, x: F.pad(m.up(F.relu(m.first(x))), (1, 1, 1, 1), "reflect").flatten(1),
                              up=nn.ConvTranspose2d(3, 2, 3, 2, padding=1)),
    "one weight twice": lambda: Written(lambda m, x: m.first(F.relu(m.first(x))), nn.Conv2d(2, 2, 3, padding=1)),
    "twice after another": lambda: Written(
        lambda m, x: m.twice(F.relu(m.twice(F.relu(m.first(x))))), twice=nn.Conv2d(3, 3, 3, padding=1)
    ),
    "kept layer": lambda: Written(lambda m, x: m.ignored(F.relu(m.first(x))), ignored=nn.Conv2d(3, 4, 3, 2)),
}  # fmt: skip


@pytest.mark.parametrize("scheme", ["parallel", "cascade"])
@pytest.mark.parametrize("name", NETS)
def test_no_network_moves_further_than_its_bound(name: str, scheme: str) -> None:
    torch.manual_seed(0)
    model, data = NETS[name](), torch.randn(60, 2, 6, 6)
    options = {"epsilon": 0.3, "tolerance": 1e-2, "ignore": "ignored" if name == "kept layer" else ()}
    report = nettrim.trim(model.eval(), data, scheme=scheme, **options).report
    if (name, scheme) == ("twice after another", "cascade"):
        assert report.network.bound is None and "several places" in report.network.bound_reason
        return
    assert report.network.bound is not None, report.network.bound_reason
    assert 0 < report.network.discrepancy <= report.network.bound
    assert "along the graph" in report.network.theorem


def bound(model: nn.Module, shape: tuple[int, ...], distance: float = 1.0, norm: float = 0.0) -> float:
    """The bound at the output when the first layer's responses are `distance` away."""
    flow = TorchNetwork(model.eval(), torch.randn(4, *shape), ignore=[] if norm == 0 else ["first"]).flow
    assert isinstance(flow, Flow), flow
    return graph_bound(flow, {"first": Link("first", "parallel", distance, norm, norm)})


CONSTANTS = {
    "relu": (lambda m, x: F.relu(m.first(x)), 1.0),
    "twice": (lambda m, x: (z := m.first(x)) + z, 2.0),
    "less a third": (lambda m, x: m.first(x) / -3, 1 / 3),
    "side by side": (lambda m, x: torch.cat([z := m.first(x), z], 1), math.sqrt(2)),
    "sigmoid": (lambda m, x: torch.sigmoid(2 * m.first(x)), 0.5),
    "softmax": (lambda m, x: m.first(x).softmax(1), 0.5),
    "elu": (lambda m, x: F.elu(m.first(x), -2.0), 2.0),
    "celu": (lambda m, x: F.celu(m.first(x), alpha=3.0), 1.0),
    "selu": (lambda m, x: F.selu(m.first(x)), 1.0508 * 1.6733),
    "erf": (lambda m, x: torch.erf(m.first(x)), 1.13),
    "steep": (lambda m, x: F.leaky_relu(m.first(x), 2.0), 2.0),
    "soft": (lambda m, x: F.softplus(m.first(x), 2.0), 1.0),
    "mean of all": (lambda m, x: m.first(x).mean((1, 2, 3)), 1 / math.sqrt(3 * 36)),
    "sum over channels": (lambda m, x: m.first(x).sum(1), math.sqrt(3)),
    "windows apart": (lambda m, x: F.max_pool2d(m.first(x).abs(), 2), 1.0),
    "windows that overlap": (lambda m, x: F.max_pool2d(m.first(x).abs(), 3, 2), 2.0),
    "windows with gaps": (lambda m, x: F.max_pool2d(m.first(x).abs(), 2, 1, 0, 2), 2.0),
    "average": (lambda m, x: F.avg_pool2d(m.first(x), 2), 0.5),
    "global average": (lambda m, x: F.adaptive_avg_pool2d(m.first(x), 1), 1 / 6),
    "uneven windows": (lambda m, x: F.adaptive_max_pool2d(m.first(x).abs(), 4), 2.0),
    "one channel spread": (lambda m, x: x + m.first(x)[:, :1], math.sqrt(2)),
    "reflected": (lambda m, x: F.pad(m.first(x), (1, 1, 1, 1), "reflect"), 3.0),
    "parts": (lambda m, x: m.first(x).chunk(3, 1)[1].unsqueeze(2).squeeze(2), 1.0),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants(name: str) -> None:
    forward, constant = CONSTANTS[name]
    torch.manual_seed(0)
    model = Written(forward)
    assert bound(model, (2, 6, 6)) == pytest.approx(constant)
    check_constant(model, constant)


def test_a_slope_that_is_a_parameter() -> None:
    """A learned slope above 1, so that it is no part of the layer."""
    model = Written(lambda m, x: m.leaky(m.first(x)), leaky=nn.PReLU(3))
    with torch.no_grad():
        model.leaky.weight.copy_(torch.tensor([0.5, -3.0, 2.0]))
    assert bound(model, (2, 6, 6)) == pytest.approx(3.0)
    check_constant(model, 3.0)


def check_constant(model: nn.Module, constant: float) -> None:
    """No change of the layer's responses changes the output by more."""
    x = torch.randn(5, 2, 6, 6)
    with torch.no_grad():
        for scale in (1e-2, 1.0, 10.0):
            move = scale * torch.randn(5, 3, 6, 6)
            handle = model.first.register_forward_hook(lambda _, args, out, move=move: out + move)
            moved = model(x)
            handle.remove()
            assert float((moved - model(x)).norm()) <= constant * float(move.norm()) * (1 + 1e-5)


UNKNOWN = {
    "norm over features": (lambda m, x: F.layer_norm(m.first(x), (6, 6)), "layer_norm"),
    "product of two": (lambda m, x: (z := m.first(x)) * torch.sigmoid(z), "mul"),
    "product with the data": (lambda m, x: m.first(x)[:, :2] * x, "mul"),
    "samples mixed": (lambda m, x: m.first(x) - m.first(x).mean(0), "mean"),
    "sample repeated": (lambda m, x: m.first(x)[:1] + x.sum(1, True), "samples"),
    "attention": (lambda m, x: (z := m.first(x)) @ z.transpose(-1, -2), "matmul"),
    "a jump": (lambda m, x: F.softplus(m.first(x), 1.0, 0.5), "softplus"),
    "a slope of the data": (lambda m, x: F.prelu(m.first(x), x.mean((0, 2, 3))[:1]), "prelu"),
    "picked by index": (lambda m, x: m.first(x)[:, torch.tensor([0, 0])], "__getitem__"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_has_no_constant_has_no_bound(name: str) -> None:
    forward, said = UNKNOWN[name]
    flow = TorchNetwork(Written(forward), torch.randn(4, 2, 6, 6)).flow
    assert isinstance(flow, str) and said in flow


def test_what_does_not_reach_the_output_asks_for_no_constant() -> None:
    def forward(m, x):
        z = m.first(x)
        return F.relu(z), F.layer_norm(z, (6, 6))

    assert isinstance(TorchNetwork(Written(forward), torch.randn(4, 2, 6, 6)).flow, Flow)


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "repeats"),
    [(3, 1, 1, 9), (3, 2, 1, 4), (2, 2, 1, 1), (3, 1, 2, 9), (3, 2, 2, 9), (4, 3, 2, 4), (1, 3, 1, 1)],
)
def test_norms_of_convolutions_are_upper_bounds(kernel: int, stride: int, dilation: int, repeats: int) -> None:
    """Against the largest singular value of the whole map, written as a matrix."""
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, kernel, stride, kernel - 1, dilation, bias=False).double()
    flow = TorchNetwork(Written(lambda m, x: m.first(x).relu().relu(), layer), torch.randn(4, 2, 9, 9).double()).flow
    assert isinstance(flow, Flow) and flow.repeats["first"] == repeats
    basis = torch.eye(2 * 81, dtype=torch.float64).reshape(-1, 2, 9, 9)
    with torch.no_grad():
        whole = torch.linalg.matrix_norm(layer(basis).flatten(1), 2)
        patch = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
    assert patch * 0.99 <= whole <= math.sqrt(repeats) * patch * (1 + 1e-12)


def test_a_cascade_counts_a_branch_that_is_trimmed_later() -> None:
    """relu(two(one) + down): `two` was measured beside the untrimmed `down`."""
    torch.manual_seed(0)
    flow = TorchNetwork(Residual().eval(), torch.randn(4, 2, 6, 6)).flow
    assert isinstance(flow, Flow)
    steps = {step.layer: step for step in flow.steps if step.layer is not None}
    assert steps["down"].place > steps["two"].place and len(steps["two"].inputs) == 2
    still = {name: Link(name, "cascade", 0.0, 1.0, 1.0) for name in steps}
    assert graph_bound(flow, still) == 0

    def at_the_sum(layer: str) -> float:
        return graph_bound(
            Flow(flow.steps, steps["two"].output, flow.repeats), {**still, layer: Link(layer, "cascade", 1.0, 1.0, 1.0)}
        )

    assert at_the_sum("two") == 1
    assert at_the_sum("down") == 1, "its error came to the sum after `two` was measured"
    assert at_the_sum("one") == 0, "`two` made up for it"
    # the stem's error, enlarged by its pool: beside it `down` stood untrimmed, and makes up for it since
    assert at_the_sum("stem") == pytest.approx(2.0)
    assert graph_bound(flow, {**still, "down": Link("down", "cascade", 1.0, 1.0, 1.0)}) == 0, "the head made up for it"
