"""Bad input gets one sentence with the value and the cure; odd but valid input works."""

import math
import threading

import numpy as np
import pytest
import torch
from torch import nn

import nettrim
from nettrim.errors import DataError, InputError, ModelError, NettrimError, RecipeError
from nettrim.executors import Shard


def net(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).to(dtype)


def data(count=20, dtype=torch.float32):
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(1), dtype=dtype)


def with_weight(value):
    model = net()
    with torch.no_grad():
        model[2].weight[1, 2] = value
    return model


class Loss(nn.Module):
    """A module that answers its loss alone."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 2)

    def forward(self, x):
        return self.layer(x).square().mean()


def locked():
    model = net()
    model.lock = threading.Lock()
    return model


BAD = [
    ("a loss", lambda: nettrim.trim(Loss(), data(), epsilon=0.1), ModelError, "a single number"),
    ("no copy", lambda: nettrim.trim(locked(), data(), epsilon=0.1), ModelError, "deepcopy"),
    ("large seed", lambda: nettrim.trim(net(), data(), epsilon=0.1, seed=2**63), RecipeError, "and below"),
    ("no epsilon", lambda: nettrim.trim(net(), data()), RecipeError, "epsilon=0.05"),
    ("negative epsilon", lambda: nettrim.trim(net(), data(), epsilon=-1), RecipeError, "-1"),
    ("NaN epsilon", lambda: nettrim.trim(net(), data(), epsilon=math.nan), RecipeError, "nan"),
    ("epsilon as text", lambda: nettrim.trim(net(), data(), epsilon="0.1"), RecipeError, "'0.1'"),
    ("wrong width", lambda: nettrim.trim(net(), data()[:, :5], epsilon=0.1), DataError, "6"),
    ("wrong rank", lambda: nettrim.trim(net(), torch.tensor(1.0), epsilon=0.1), DataError, "`data` should be"),
    ("no samples", lambda: nettrim.trim(net(), data(0), epsilon=0.1), DataError, "`data` should be"),
    ("no batches", lambda: nettrim.trim(net(), [], epsilon=0.1), DataError, "`data` should be"),
    ("not data", lambda: nettrim.trim(net(), 7, epsilon=0.1), DataError, "`data` should be"),
    ("bytes", lambda: nettrim.trim(net(), data().to(torch.uint8), epsilon=0.1), DataError, r"data\.float\(\)"),
    ("sparse data", lambda: nettrim.trim(net(), data().to_sparse(), epsilon=0.1), DataError, "a sparse tensor"),
    ("meta data", lambda: nettrim.trim(net(), data().to("meta"), epsilon=0.1), DataError, "meta"),
    ("one sample alone", lambda: nettrim.trim(net(), data()[0], epsilon=0.1), DataError, r"torch\.stack"),
    ("single samples", lambda: nettrim.trim(net(), list(data()), epsilon=0.1), DataError, r"torch\.stack"),
    ("a share without checkpoint", lambda: nettrim.trim(net(), data(), epsilon=0.1, executor=Shard(1, 2)), InputError,
     "`checkpoint`"),
    ("no executor", lambda: nettrim.trim(net(), data(), epsilon=0.1, executor="ray"), InputError, "'ray'"),
    ("an executor's class", lambda: nettrim.trim(net(), data(), epsilon=0.1, executor=Shard), InputError, "`executor`"),
    ("no device", lambda: nettrim.trim(net(), data(), epsilon=0.1, device="nonsense"), InputError, "'nonsense'"),
    ("device as number", lambda: nettrim.trim(net(), data(), epsilon=0.1, device=3.5), InputError, "3.5"),
    ("one byte", lambda: nettrim.trim(net(), data(), epsilon=0.1, memory_budget=True), InputError, "True"),
    ("checkpoint as number", lambda: nettrim.trim(net(), data(), epsilon=0.1, checkpoint=5), InputError, "5"),
    ("NaN in data", lambda: nettrim.trim(net(), data() * math.nan, epsilon=0.1), DataError, "NaN"),
    ("infinity in data", lambda: nettrim.trim(net(), data() * math.inf, epsilon=0.1), DataError, "inf"),
    ("NaN in weights", lambda: nettrim.trim(with_weight(math.nan), data(), epsilon=0.1), ModelError, "'?2"),
    ("infinity in weights", lambda: nettrim.trim(with_weight(math.inf), data(), epsilon=0.1), ModelError, "'?2"),
    ("overflow", lambda: nettrim.trim(with_weight(3e38), data() * 1e3, epsilon=0.1), DataError, "finite"),
    ("unknown target", lambda: nettrim.trim(net(), data(), epsilon=0.1, targets=["02"]), InputError, "'02'"),
    ("unknown ignore", lambda: nettrim.trim(net(), data(), epsilon=0.1, ignore="Lineer"), InputError, "Linear"),
    ("table of other layers", lambda: nettrim.trim(net(), data(), epsilon={"20": 0.1, "*": 0.2}), RecipeError, "'20'"),
    ("nothing to trim", lambda: nettrim.trim(nn.ReLU(), data(), epsilon=0.1), ModelError, "`model` should be"),
    ("all ignored", lambda: nettrim.trim(net(), data(), epsilon=0.1, ignore="*"), ModelError, "`model` should be"),
    ("no module", lambda: nettrim.trim("model.pt", data(), epsilon=0.1), ModelError, "'model.pt'"),
    ("no weights", lambda: nettrim.trim(net().to("meta"), data(), epsilon=0.1), ModelError, "meta"),
    ("unknown scheme", lambda: nettrim.trim(net(), data(), epsilon=0.1, scheme="serial"), RecipeError, "'serial'"),
    ("no samples wanted", lambda: nettrim.trim(net(), data(), epsilon=0.1, num_calibration_samples=0), RecipeError,
     "num_calibration_samples"),
    ("unknown batchnorm", lambda: nettrim.trim(net(), data(), epsilon=0.1, batchnorm="refold"), RecipeError, "'fold'"),
    ("bad holdout", lambda: nettrim.trim(net(), data(), epsilon=0.1, holdout=1.5), RecipeError, "1.5"),
    ("holdout of nothing", lambda: nettrim.trim(net(), data(3), epsilon=0.1, holdout=0.1), DataError, "holdout"),
    ("recipe as dict", lambda: nettrim.trim(net(), data(), recipe={"epsilon": 0.1}), RecipeError, "Recipe.read"),
    ("wrong costs", lambda: nettrim.trim(net(), data(), epsilon=0.1, penalty=nettrim.L1(costs=torch.ones(2, 2))),
     InputError, "`costs` should be"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "words"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input(call, kind, words):
    with pytest.raises(kind, match=words) as caught:
        call()
    message = str(caught.value)
    assert isinstance(caught.value, NettrimError)
    assert "should be" in message and "Got" in message and "\n" not in message


def test_unwritable_directory(tmp_path):
    trimmed = nettrim.trim(net(), data(), epsilon=0.1)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="`directory` should be one that can be written"):
        trimmed.save(tmp_path / "file" / "out")


def check(trimmed, model, inputs):
    """What every trim promises."""
    for layer in trimmed.report.layers:
        if layer.skipped is None:
            assert layer.distance <= layer.epsilon * (1 + 1e-5) + 1e-6
    network = trimmed.report.network
    assert math.isfinite(network.discrepancy)
    if network.bound is not None:
        assert network.discrepancy <= network.bound * (1 + 1e-5) + 1e-6
    assert trimmed.model(inputs).shape == model(inputs).shape


@pytest.mark.parametrize(
    ("scheme", "constraint"), [("parallel", "distance"), ("cascade", "distance"), ("cascade", "strict")]
)
class TestOddButValid:
    def trim(self, model, inputs, scheme, constraint, **options):
        trimmed = nettrim.trim(model, inputs, **{"epsilon": 0.1, **options}, scheme=scheme, constraint=constraint)
        check(trimmed, model, inputs)
        return trimmed

    def test_one_sample(self, scheme, constraint):
        trimmed = self.trim(net(), data(1), scheme, constraint)
        assert trimmed.report.nonzeros_after <= 7

    def test_one_neuron(self, scheme, constraint):
        model = nn.Sequential(nn.Linear(6, 1), nn.ReLU(), nn.Linear(1, 1))
        self.trim(model, data(), scheme, constraint)

    def test_all_dead_layer(self, scheme, constraint):
        model = net()
        with torch.no_grad():
            model[0].bias.fill_(-100)
        trimmed = self.trim(model, data(), scheme, constraint)
        assert trimmed.report.layers[0].nonzeros_after == 0
        assert trimmed.report.network.discrepancy == pytest.approx(0, abs=0.1)

    def test_no_bias(self, scheme, constraint):
        self.trim(
            nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 2, bias=False)),
            data(),
            scheme,
            constraint,
        )

    def test_float64(self, scheme, constraint):
        trimmed = self.trim(net(torch.float64), data(dtype=torch.float64), scheme, constraint)
        assert trimmed.model[0].weight.dtype == torch.float64

    def test_half_precision(self, scheme, constraint):
        model = net(torch.bfloat16)
        trimmed = nettrim.trim(model, data(), epsilon=0.2, scheme=scheme, constraint=constraint)
        assert trimmed.model[0].weight.dtype == torch.bfloat16
        assert trimmed.report.network.discrepancy < 0.5

    def test_duplicated_samples(self, scheme, constraint):
        self.trim(net(), data(12).repeat(3, 1), scheme, constraint)

    @pytest.mark.parametrize("scale", [1e-8, 1e8])
    def test_inputs_of_any_scale(self, scheme, constraint, scale):
        self.trim(net(), data() * scale, scheme, constraint)

    def test_constant_and_zero_inputs(self, scheme, constraint):
        inputs = data()
        inputs[:, 1], inputs[:, 4] = 0.0, 3.0
        trimmed = self.trim(net(), inputs, scheme, constraint)
        assert not trimmed.model[0].weight[:, 1].any()
        self.trim(net(), torch.zeros(5, 6), scheme, constraint)

    def test_epsilon_zero_and_huge(self, scheme, constraint):
        trimmed = self.trim(net(), data(), scheme, constraint, epsilon=0)
        assert trimmed.report.network.discrepancy < 1e-4
        everything = self.trim(net(), data(), scheme, constraint, epsilon=1e6, refit=False)
        assert everything.report.layers[0].nonzeros_after == 0

    def test_a_weight_used_twice(self, scheme, constraint):
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.shared, self.last = nn.Linear(6, 6), nn.Linear(6, 2)

            def forward(self, x):
                return self.last(self.shared(self.shared(x).relu()).relu())

        torch.manual_seed(0)
        model = Twice()
        trimmed = self.trim(model, data(), scheme, constraint)
        layer = next(layer for layer in trimmed.report.layers if layer.name == "shared")
        assert layer.skipped is not None or layer.distance <= layer.epsilon * (1 + 1e-5)
        network = trimmed.report.network
        assert network.bound is None or network.discrepancy <= network.bound

    def test_tied_weights_stay_tied(self, scheme, constraint):
        model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
        model[2].weight = model[0].weight
        trimmed = self.trim(model, data(), scheme, constraint)
        assert trimmed.model[2].weight is trimmed.model[0].weight


def test_numpy_and_integers():
    trimmed = nettrim.trim(net(), data().numpy().astype(np.float64), epsilon=0.1)
    assert trimmed.model[0].weight.dtype == torch.float32
    assert trimmed.report.nonzeros_after < trimmed.report.nonzeros_before
