"""Shrinking is exact: the smaller network computes the same function, and a wrong one would be noticed."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from nettrim.errors import DataError, ModelError
from nettrim.models import shrink as shrink_module
from nettrim.models.batches import normalise_batches
from nettrim.models.shrink import IndexSelect, Shrunk, load_shrunk, same_function, shrink
from nettrim.models.state import state_of


def difference(one: nn.Module, other: nn.Module, inputs: Tensor) -> float:
    """Largest difference of the outputs relative to the largest output."""
    with torch.no_grad():
        a, b = one.eval()(inputs), other.eval()(inputs)
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-300))


def check(model: nn.Module, shape: tuple[int, ...], *, smaller: bool = True) -> Shrunk:
    """Shrink a model and compare in both precisions at batches of 5 and 1."""
    model.double().eval()
    found = shrink(model, torch.randn(5, *shape).double())
    assert not found.summary.note
    assert (found.summary.parameters_after < found.summary.parameters_before) == smaller
    assert found.summary.parameters_after == sum(p.numel() for p in found.module.parameters())
    for size in (5, 1):
        assert difference(found.module, model, torch.randn(size, *shape).double()) <= 1e-12
        single = copy.deepcopy(model).float()
        shrunk = shrink(single, torch.randn(5, *shape))
        assert shrunk.summary == found.summary
        assert difference(shrunk.module, single, torch.randn(size, *shape)) <= 1e-5
    again = load_shrunk(model, load(save(state_of(found.module))), json.loads(json.dumps(found.plan)))
    inputs = torch.randn(5, *shape).double()
    assert torch.equal(again.eval()(inputs), found.module.eval()(inputs))
    return found


def mlp(*sizes: int, bias: bool = True) -> nn.Sequential:
    parts: list[nn.Module] = []
    for one, other in itertools.pairwise(sizes):
        parts += [nn.Linear(one, other, bias=bias), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def kill(layer: Any, rows: Any, bias: float | None = None) -> None:
    """Take all incoming weights of some outputs away, and set their bias."""
    with torch.no_grad():
        layer.weight[rows] = 0
        if bias is not None:
            layer.bias[rows] = bias


def silence(norm: Any, channels: Any, shift: float) -> None:
    with torch.no_grad():
        norm.weight[channels] = 0
        norm.bias[channels] = shift


def ignore(layer: Any, columns: Any) -> None:
    """Take all outgoing weights of some inputs away."""
    with torch.no_grad():
        layer.weight[:, columns] = 0


def test_dead_constant_unused_and_unread_inputs_of_an_mlp() -> None:
    model = mlp(20, 16, 12, 4)
    kill(model[0], slice(0, 2), -1.0)
    kill(model[0], slice(2, 4), 1.0)
    ignore(model[0], slice(10, 20))
    ignore(model[2], slice(5, 7))
    ignore(model[4], 0)
    first, second, _ = check(model, (20,)).summary.layers
    assert (first.after, first.dead, first.constant, first.unused) == ((10, 10), 2, 2, 2)
    assert first.inputs_picked == (10, 20)
    assert (second.after, second.unused) == ((11, 10), 1)


def test_removals_go_on_until_nothing_changes() -> None:
    """A unit that only feeds an unused unit is unused itself, and a constant of constants is a constant."""
    model = mlp(6, 5, 4, 3, 2)
    ignore(model[6], 0)  # unit 0 of the third layer
    kill(model[4], [1, 2])
    with torch.no_grad():
        model[4].weight[1:, :1] = 1.0  # the third layer's other units read unit 0 of the second only
        model[2].weight[0] = 0  # which is a constant
        model[2].bias[0] = 2.0
        model[4].bias[:] = 1.0
    found = check(model, (6,))
    assert all(layer.after[0] == 1 for layer in found.summary.layers[:3])  # placeholders: the output is constant
    assert torch.allclose(found.module(torch.randn(3, 6).double()), model(torch.zeros(1, 6).double()).expand(3, 2))


def test_a_unit_that_its_relu_never_lets_through_is_dead() -> None:
    model = mlp(8, 6, 5, 3)
    with torch.no_grad():
        model[2].weight[1] = -model[2].weight[1].abs()  # its inputs are >= 0
        model[2].bias[1] = -0.1
        model[2].weight[2] = -model[2].weight[2].abs()
        model[2].bias[2] = 0.1  # lets something through near 0
    assert check(model, (8,)).summary.layers[1].dead == 1


def test_constants_reach_a_layer_without_bias() -> None:
    model = nn.Sequential(nn.Linear(7, 6), nn.Sigmoid(), nn.Linear(6, 3, bias=False))
    kill(model[0], slice(0, 3), 0.3)
    found = check(model, (7,))
    assert found.summary.layers[0].constant == 3
    assert found.module.get_submodule("2").bias is not None


def test_nothing_to_shrink() -> None:
    model = mlp(9, 7, 3)
    found = check(model, (9,), smaller=False)
    assert not found.summary.changed
    assert found.plan == {"format": 1, "layers": {}, "norms": {}}


def test_everything_dead_leaves_a_constant() -> None:
    model = mlp(9, 7, 5, 3)
    kill(model[0], slice(None), -1.0)
    found = check(model, (9,))
    assert [layer.after for layer in found.summary.layers] == [(1, 1), (1, 1), (3, 1)]


def test_outputs_stay_even_if_constant() -> None:
    model = mlp(5, 4, 3)
    kill(model[2], 1, 0.5)
    ignore(model[2], 0)
    assert check(model, (5,)).summary.layers[1].after == (3, 3)


def test_a_single_layer_picks_its_inputs() -> None:
    model = nn.Linear(6, 2)
    ignore(model, [1, 4])
    found = check(model, (6,))
    assert isinstance(found.module, nn.Sequential) and isinstance(found.module[0], IndexSelect)
    assert found.module[0].columns.tolist() == [0, 2, 3, 5]
    model.double()
    assert not shrink(model, torch.randn(2, 6).double(), pick_inputs=False).summary.changed


def conv_net(groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, padding=1, groups=groups),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 6, 3),
        nn.ReLU6(),
        nn.AvgPool2d(2, padding=0),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(6, 4),
    )


def randomise_norms(model: nn.Module) -> nn.Module:
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            assert part.running_mean is not None and part.running_var is not None
            with torch.no_grad():
                part.weight.uniform_(0.5, 1.5)
                part.bias.normal_()
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_convolutions_with_norms_and_groups(groups: int) -> None:
    model = randomise_norms(conv_net(groups))
    silence(model[1], slice(0, 5), -1.0)
    silence(model[4], [1, 6], -1.0)
    silence(model[4], [2, 7], 0.6)  # constant, and the next convolution has no padding: exact
    kill(model[7], 2)
    ignore(model[12], slice(4, 5))
    layers = check(model, (3, 8, 8)).summary.layers
    assert layers[0].after[0] == {1: 3, 2: 6, 4: 4, 8: 1}[groups]  # groups stay of equal size
    assert layers[2].after[0] == 4


def test_a_constant_behind_zero_padding_is_not_folded() -> None:
    """At the border the next layer sees zeros instead of the constant."""
    for padding, mode, units in ((1, "zeros", 3), (0, "zeros", 2), (1, "reflect", 2), (1, "circular", 2)):
        following = nn.Conv2d(3, 2, 3, padding=padding, padding_mode=mode)
        model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), following)
        kill(model[0], 0, 0.7)
        kill(model[0], 1, 0.0)  # zero is zero at the border too
        found = check(model, (2, 5, 5))
        assert found.summary.layers[0].after[0] == units - 1


@pytest.mark.parametrize("count_pad", [True, False])
def test_average_pools_with_padding(count_pad: bool) -> None:
    pool = nn.AvgPool2d(3, 1, padding=1, count_include_pad=count_pad)
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), pool, nn.Conv2d(4, 2, 1))
    kill(model[0], 0, 0.7)
    kill(model[0], 1, -0.7)
    assert check(model, (2, 5, 5)).summary.layers[0].after[0] == 3


class Block(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.norm2 = nn.Conv2d(inner, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        y += x
        return F.relu(y, inplace=True)


class ResNet(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(Block(width, 5), Block(width, 5))
        self.fc = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.blocks(F.relu(self.norm(self.stem(x))))
        return self.fc(y.mean((2, 3)))


def test_a_residual_channel_goes_only_if_dead_in_all_branches() -> None:
    model: Any = randomise_norms(ResNet())
    silence(model.norm, [0, 1], 0.0)
    silence(model.blocks[0].norm2, [0, 2], 0.0)  # 0: dead in all branches; 1 and 2: alive in another
    silence(model.blocks[1].norm2, [0], 0.0)
    silence(model.blocks[0].norm1, [3], -1.0)
    found = check(model, (3, 6, 6))
    shapes = {layer.name: layer.after for layer in found.summary.layers}
    assert shapes["stem"] == (5, 3, 3, 3)
    assert shapes["blocks.0.conv1"] == (4, 5, 3, 3)
    assert shapes["blocks.1.conv2"] == (5, 5, 3, 3)
    assert shapes["fc"] == (4, 5)


def test_a_residual_channel_nobody_reads_goes_though_it_feeds_itself() -> None:
    model: Any = randomise_norms(ResNet())
    ignore(model.fc, 3)
    for block in model.blocks:
        ignore(block.conv1, 3)
        with torch.no_grad():
            block.conv1.weight[2] = 0
            block.conv1.weight[2, 3] = 1.0  # inner unit 2 reads channel 3 ...
            block.conv2.weight[:, 2] = 0
            block.conv2.weight[3, 2] = 1.0  # ... and writes to channel 3 only
    found = check(model, (3, 6, 6))
    shapes = {layer.name: layer.after for layer in found.summary.layers}
    assert shapes["blocks.0.conv1"] == (4, 5, 3, 3)


class Mobile(nn.Module):
    """Inverted residuals: expand, depthwise, squeeze and excite, project."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.norm1 = nn.Conv2d(4, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.depth, self.norm2 = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False), nn.BatchNorm2d(12)
        self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.project, self.norm3 = nn.Conv2d(12, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.norm1(self.expand(x)))
        y = F.hardswish(self.norm2(self.depth(y)))
        scale = F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        y = self.norm3(self.project(y * scale))
        y = torch.cat([x + y, y], dim=1)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(y, 1), 1))


def test_a_mobile_net() -> None:
    model: Any = randomise_norms(Mobile())
    silence(model.norm1, [0, 1, 2], -1.0)
    silence(model.norm2, [0, 1, 3], 0.0)  # hardswish(0) = 0
    silence(model.norm2, [4], 2.0)
    ignore(model.project, [5])
    ignore(model.squeeze, [5, 6])
    found = check(model, (4, 6, 6))
    shapes = {layer.name: layer.after for layer in found.summary.layers}
    assert shapes["expand"][0] == shapes["depth"][0] == shapes["project"][1] == 12 - 4
    assert found.summary.layers[1].name == "depth"


class LeNet(nn.Module):
    """Spells out the number of its features, which shrinking would change."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(1, 6, 3), nn.Linear(54, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(F.relu(self.conv(x)), 2).view(-1, 54)
        return self.fc2(torch.tanh(self.fc1(y)))


def test_spelled_out_sizes_stay() -> None:
    model: Any = LeNet()
    kill(model.conv, [0, 2], -1.0)
    kill(model.fc1, [1, 2], 0.3)
    shapes = {layer.name: layer.after for layer in check(model, (1, 8, 8)).summary.layers}
    assert shapes == {"conv": (6, 1, 3, 3), "fc1": (8, 54), "fc2": (3, 8)}


class Free(LeNet):
    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(F.relu(self.conv(x)), 2)
        return self.fc2(torch.tanh(self.fc1(y.view(y.size(0), -1))))


def test_sizes_that_follow_do_not_stand_in_the_way() -> None:
    model: Any = Free()
    kill(model.conv, [0, 2], -1.0)
    shapes = {layer.name: layer.after for layer in check(model, (1, 8, 8)).summary.layers}
    assert shapes == {"conv": (4, 1, 3, 3), "fc1": (10, 36), "fc2": (3, 10)}


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.copy = nn.Linear(6, 6)
        self.copy.weight = self.two.weight

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.one(F.relu(self.one(x))))
        return self.out(F.relu(self.two(y) + self.copy(y)))


def test_shared_weights_are_left_alone() -> None:
    model: Any = Shared()
    kill(model.one, 0, -1.0)
    kill(model.two, 1, -1.0)
    found = check(model, (6,), smaller=False)
    assert {name for name, _ in found.summary.left} == {"one", "two"}


class Unknown(nn.Module):
    """Operations that mix or pick channels."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 8)
        self.three = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(F.relu(self.one(x)))
        y = F.relu(self.two(y)).chunk(2, -1)
        return self.three(F.softmax(y[0], -1) * y[1])


def test_unknown_operations_keep_their_channels() -> None:
    model: Any = Unknown()
    kill(model.one, 0, -1.0)
    kill(model.two, [0, 6], -1.0)
    check(model, (6,), smaller=False)


def test_sequences_and_conv1d() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.up, self.down = nn.Conv1d(3, 6, 3, padding=1), nn.Linear(6, 10), nn.Linear(10, 6)
            self.out = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = F.gelu(self.conv(x)).transpose(1, 2)
            y = y + self.down(F.gelu(self.up(y)))
            return self.out(y)

    model: Any = Tokens()
    kill(model.up, [1, 2, 5], 0.4)
    kill(model.conv, [0], 0.0)
    kill(model.down, [0], 0.0)
    shapes = {layer.name: layer.after for layer in check(model, (3, 7)).summary.layers}
    assert shapes == {"conv": (5, 3, 3), "up": (7, 5), "down": (5, 7), "out": (2, 5)}


def test_the_callers_model_stays_as_it_is() -> None:
    model = mlp(6, 5, 2)
    kill(model[0], 0, -1.0)
    before = copy.deepcopy(model.state_dict())
    model.train()
    found = shrink(model, torch.randn(3, 6))
    assert model.training and found.module.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in found.module.parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_single_and_half_precision(dtype: torch.dtype) -> None:
    """Folded constants are rounded to the weights' precision, which must not look like a mistake."""
    for seed in range(5):
        torch.manual_seed(seed)
        model = mlp(6, 5, 2).to(dtype)
        kill(model[0], 0, -1.0)
        kill(model[0], [1, 2], 0.3)
        found = shrink(model, torch.randn(3, 6))
        assert found.summary.layers[0].after == (2, 6) and not found.summary.note
        assert {p.dtype for p in found.module.parameters()} == {dtype}
        inputs = torch.randn(7, 6, dtype=dtype)
        tolerance = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}[dtype]
        assert (found.module(inputs) - model(inputs)).abs().max() <= tolerance * model(inputs).abs().max()


def test_a_wrong_shrink_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Constants that are not folded, one unit too many: the comparison refuses both, and nothing is shrunk."""
    model = mlp(6, 5, 2).double()
    kill(model[0], 0, 1.0)
    right = shrink(model, torch.randn(3, 6).double())
    assert right.summary.changed
    batch = normalise_batches([torch.randn(3, 6).double()])[0]
    assert same_function(model, right.module, batch)
    wrong = copy.deepcopy(right.module)
    with torch.no_grad():
        wrong.get_parameter("2.bias")[0] += 1e-6
    assert not same_function(model, wrong, batch)
    monkeypatch.setattr(shrink_module, "settle", lambda layer, kept: None)
    refused = shrink(model, torch.randn(3, 6).double())
    assert not refused.summary.changed
    assert "differed" in refused.summary.note
    assert difference(refused.module, model, torch.randn(3, 6).double()) == 0


class Limited(nn.Module):
    """What comes out of `read` is a number or a tensor that depends on the data."""

    def __init__(self, read: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.out, self.read = nn.Linear(6, 8), nn.Linear(8, 3), read

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.read(self.one(x), x))


READ = {
    "a limit that is computed": lambda h, x: torch.clamp(h, max=100 * x.std()),
    "a slope that is computed": lambda h, x: F.prelu(h, x.mean().reshape(1)),
    "item": lambda h, x: F.relu(h + (x.abs().max().item() - 100)),
    "float": lambda h, x: F.relu(h + float(x.abs().max()) - 100),
    "tolist": lambda h, x: h * x.abs().max().reshape(1).tolist()[0],
    "numpy": lambda h, x: h * torch.from_numpy(np.asarray(x.abs().max().numpy())),
    "a branch": lambda h, x: -h if x.abs().max() > 100 else h,
    "a whole number": lambda h, x: h.pow(int(x.abs().max() > 100) + 1),
}


@pytest.mark.parametrize("read", READ.values(), ids=READ)
def test_what_depends_on_the_data_is_no_constant(read: Callable[[Tensor, Tensor], Tensor]) -> None:
    """A unit without weights is constant before such an operation and not behind it, whatever the examples show."""
    model: Any = Limited(read).eval()
    kill(model.one, 0, 5.0)
    with torch.no_grad():
        small = shrink(model, torch.randn(64, 6)).module
        for scale in (1e-3, 1e-2, 1.0, 30.0, 1e3, 1e5):
            inputs = torch.randn(64, 6) * scale
            wanted = model(inputs)
            assert (small(inputs) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_numbers_that_do_not_depend_on_the_data_stand_in_nobodys_way() -> None:
    model: Any = Limited(lambda h, x: F.relu(h * model.out.bias.abs().max().item()))
    kill(model.one, 0, 5.0)
    found = check(model, (6,))
    assert not found.summary.note
    model = Limited(lambda h, x: F.relu(h) if x.max() < 100 else h)
    kill(model.one, 0, 5.0)
    assert "`__bool__`" in shrink(model, torch.randn(4, 6)).summary.note


def test_padding_with_another_number_than_zero() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
            self.three, self.out = nn.Linear(4 * 36, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = F.pad(F.relu(self.one(x)), (2, 2, 2, 2), value=1.0)
            return self.out(F.relu(self.three(self.two(y).flatten(1))))

    model: Any = Padded()
    kill(model.one, 0, -1.0)  # zero inside, one at the border
    ignore(model.two, 3)
    ignore(model.out, list(range(8)))
    shapes = {layer.name: layer.after for layer in check(model, (3, 6, 6)).summary.layers}
    assert shapes == {"one": (7, 3, 3, 3), "two": (4, 7, 3, 3), "three": (8, 144), "out": (3, 8)}


def test_errors() -> None:
    model = mlp(6, 5, 2)
    with pytest.raises(DataError, match="should be"):
        shrink(model, torch.randn(3, 7))
    for vector in (torch.randn(6), torch.randn(12)):
        with pytest.raises(DataError, match="should be"):
            shrink(model, vector)
    with pytest.raises(DataError, match="should be"):
        shrink(mlp(2, 5, 2), torch.randn(6))  # two entries would pass for two samples
    kill(model[0], 0, -1.0)
    found = shrink(model, torch.randn(3, 6))
    with pytest.raises(ModelError, match="should be"):
        load_shrunk(mlp(6, 4, 2), state_of(found.module), found.plan)
    with pytest.raises(ModelError, match="should be"):
        load_shrunk(nn.Sequential(nn.ReLU()), state_of(found.module), found.plan)
    with pytest.raises(ModelError, match="format"):
        load_shrunk(model, state_of(found.module), {"format": 9})
    tensors, plan = state_of(found.module), found.plan
    bad: list[Any] = [
        3,
        None,
        "plan",
        [],
        {},
        {**plan, "layers": 3},
        {**plan, "layers": {"0": 3}},
        {**plan, "norms": [1]},
    ]
    for entry in ("rows", "columns", "groups", "gather"):
        for value in (None, "many", {"a": 1}):
            bad.append({**plan, "layers": {"0": {**plan["layers"]["0"], entry: value}}})
    for damaged in bad:
        with pytest.raises(ModelError, match="should be"):
            load_shrunk(mlp(6, 5, 2), tensors, damaged)
    for structure in (3, [1], {"folded": 3}, {"folded": [3]}, {"folded": [[1, 2]]}, {"biases": 3}, {"biases": [3]}):
        with pytest.raises(ModelError, match="should be"):
            load_shrunk(model, tensors, plan, structure)  # type: ignore[arg-type]


def test_the_summary_can_be_read() -> None:
    model = mlp(6, 5, 2)
    kill(model[0], 0, -1.0)
    found = shrink(model, torch.randn(3, 6))
    assert "0: 5x6 -> 4x6 (1 dead)" in str(found.summary)
    assert json.loads(json.dumps(found.summary.to_dict()))["layers"][0]["dead"] == 1


@settings(max_examples=60)
@given(st.data())
def test_random_masks_on_random_nets(data: st.DataObject) -> None:
    """Any pattern of zeros in small chains, with any activation and bias, in one and in two dimensions."""
    seed = data.draw(st.integers(0, 2**20))
    generator = torch.Generator().manual_seed(seed)
    convolutional = data.draw(st.booleans())
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=3, max_size=5))
    density = data.draw(st.sampled_from([0.0, 0.1, 0.3, 0.6]))
    parts: list[nn.Module] = []
    for one, other in itertools.pairwise(sizes):
        bias = data.draw(st.booleans())
        if convolutional:
            kernel = data.draw(st.sampled_from([1, 3]))
            parts.append(nn.Conv2d(one, other, kernel, padding=kernel // 2 * data.draw(st.integers(0, 1)), bias=bias))
            parts += [nn.BatchNorm2d(other)] if data.draw(st.booleans()) else []
        else:
            parts.append(nn.Linear(one, other, bias=bias))
        parts.append(data.draw(st.sampled_from([nn.ReLU, nn.Sigmoid, nn.Tanh, nn.GELU, nn.ELU, nn.ReLU6]))())
    if convolutional:
        parts += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * sizes[-1], 2)]
    model = randomise_norms(nn.Sequential(*parts)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= torch.rand(parameter.shape, generator=generator) < (density if parameter.dim() > 1 else 0.7)
    shape = (sizes[0], 12, 12) if convolutional else (sizes[0],)
    inputs = torch.randn(4, *shape, generator=generator).double()
    found = shrink(model, inputs)
    assert not found.summary.note
    for batch in (inputs, 10 * inputs[:1]):
        with torch.no_grad():
            assert (found.module(batch) - model(batch)).abs().max() <= 1e-12 * (1 + model(batch).abs().max())
