"""`nettrim.trim` as a user calls it."""

import inspect
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import nettrim
from nettrim.errors import InputError
from nettrim.models.batches import normalise_batches
from nettrim.samples import digest_batches, split_samples
from nettrim.schemes.whole import relative_discrepancy


class Odd(nn.Module):
    """Nested, called in its own order, functional ReLU, one layer without a bias."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 3)
        self.body = nn.ModuleDict({"a": nn.Linear(6, 9), "b": nn.Linear(9, 8, bias=False)})

    def forward(self, x):
        x = torch.relu(self.body["a"](x))
        return self.head(nn.functional.relu(self.body["b"](x)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Odd()


@pytest.fixture
def data():
    return torch.randn(80, 6, generator=torch.Generator().manual_seed(1))


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_main_job(model, data):
    before, training = state(model), model.training
    trimmed = nettrim.trim(model, data, epsilon=0.05)
    assert same(state(model), before) and model.training == training
    assert isinstance(trimmed.model, Odd) and trimmed.model is not model
    report = trimmed.report.to_dict()
    assert [layer["name"] for layer in report["layers"]] == ["body.a", "body.b", "head"]
    for layer in report["layers"]:
        assert layer["certified"] and layer["skipped"] is None
        assert layer["epsilon"] == pytest.approx(0.05)
        assert layer["discrepancy"] <= 0.05 * (1 + 1e-6)
        weight = trimmed.model.get_submodule(layer["name"]).weight
        assert layer["nonzeros_after"] == int(weight.count_nonzero())
        assert tuple(layer["shape"]) == tuple(weight.shape)
    assert report["nonzeros_after"] < report["nonzeros_before"]
    network = report["network"]
    assert network["discrepancy"] <= network["bound"]
    assert (network["samples"], network["samples_holdout"]) == (72, 8)
    kept = trimmed.samples.calibration[0].args[0]
    difference = relative_discrepancy(model(kept), trimmed.model(kept))
    assert network["discrepancy"] == pytest.approx(difference, rel=1e-4)
    assert network["discrepancy_holdout"] is not None
    assert "certified" in str(trimmed.report) and trimmed.recipe.epsilon == 0.05


@pytest.mark.parametrize(
    "options",
    [
        {"scheme": "cascade", "gamma": 1.2, "kappa": 0.9},
        {"scheme": {"body.b": "cascade"}},
        {"constraint": "strict", "scheme": "cascade", "slack": "positive", "refit": False},
        {"budget": "neuron"},
        {"budget": 3, "penalize_bias": True},
        {"epsilon": {"head": 0.01, "*": 0.1}},
        {"epsilon": 2.0, "relative": False},
        {"targets": "body"},
        {"ignore": ["head"]},
        {"penalty": nettrim.ElasticNet(ridge=0.1)},
        {"penalty": {"head": nettrim.L1(costs=torch.rand(3, 8) + 0.5)}},
    ],
)
def test_options(model, data, options):
    trimmed = nettrim.trim(model, data[:40], **{"epsilon": 0.1, **options})
    assert trimmed.report.nonzeros_after < trimmed.report.nonzeros_before
    done = [layer for layer in trimmed.report.layers if layer.skipped is None]
    for layer in done:
        assert layer.distance <= layer.epsilon * (1 + 1e-5)
    bound = trimmed.report.network.bound
    assert bound is None or trimmed.report.network.discrepancy <= bound * (1 + 1e-6)
    if "targets" in options or "ignore" in options:
        (skipped,) = [layer for layer in trimmed.report.layers if layer.skipped is not None]
        assert skipped.name == "head" and torch.equal(trimmed.model.head.weight, model.head.weight)


def test_a_trim_is_shown_in_a_line_and_printed_as_its_report(model, data):
    trimmed = nettrim.trim(model, data, epsilon=0.05)
    assert repr(trimmed) == f"<Trimmed: {trimmed.report.headline}>"
    assert str(trimmed) == str(trimmed.report)


def test_same_seed_same_answer(model, data):
    one, other = (nettrim.trim(model, data, epsilon=0.1, seed=3) for _ in range(2))
    assert same(state(one.model), state(other.model))
    assert one.report.network == other.report.network


def test_batches_and_tensors_are_the_same_data(model, data):
    whole = split_samples(model, data, 0.25, 0)
    loader = DataLoader(TensorDataset(data, torch.zeros(80)), batch_size=32)
    cut = split_samples(model, loader, 0.25, 0)
    assert whole.digest == cut.digest and whole.count == cut.count == 60
    one = torch.cat([batch.args[0] for batch in whole.calibration])
    other = torch.cat([batch.args[0] for batch in cut.calibration])
    assert torch.equal(one, other)
    assert digest_batches(normalise_batches(data + 1e-7)) != whole.digest


@pytest.mark.parametrize(
    ("count", "holdout", "sizes"),
    [(80, None, (72, 8)), (30, None, (30, 0)), (30, 0.5, (15, 15)), (80, 0.0, (80, 0)), (80, 0, (80, 0))],
)
def test_holdout(model, data, count, holdout, sizes):
    network = nettrim.trim(model, data[:count], epsilon=0.1, holdout=holdout).report.network
    assert (network.samples, network.samples_holdout) == sizes
    assert (network.discrepancy_holdout is None) == (sizes[1] == 0)


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"num_calibration_samples": 20}, (20, 0)),
        ({"num_calibration_samples": 60}, (60, 6)),
        ({"num_calibration_samples": 60, "holdout": 0.25}, (60, 19)),
        ({"num_calibration_samples": 20, "holdout": 0.5}, (20, 19)),
        ({"num_calibration_samples": 500, "holdout": 0.0}, (80, 0)),
        ({"num_calibration_samples": 20, "holdout": torch.ones(7, 6)}, (20, 7)),
    ],
    ids=lambda value: "-".join(str(v) for v in value) if isinstance(value, tuple) else None,
)
def test_as_many_samples_are_calibrated_on_as_were_asked_for(model, data, options, sizes):
    network = nettrim.trim(model, data, epsilon=0.1, **options).report.network
    assert (network.samples, network.samples_holdout) == sizes


@pytest.mark.parametrize("form", ["tensor", "Dataset"])
def test_the_seed_draws_the_samples(model, data, form):
    def drawn(seed):
        given = data if form == "tensor" else TensorDataset(data, torch.zeros(80))
        samples = nettrim.trim(model, given, epsilon=0.1, num_calibration_samples=30, holdout=0.0, seed=seed).samples
        return torch.cat([batch.args[0] for batch in samples.calibration])

    one, two = drawn(0), drawn(1)
    assert torch.equal(one, drawn(0)) and not torch.equal(one, two)
    places = [int((data == row).all(1).nonzero()) for row in one]
    assert places == sorted(set(places))


def test_the_samples_chosen_are_found_again(model, data, tmp_path):
    options = {"num_calibration_samples": 30, "seed": 4, "epsilon": 0.1}
    trimmed = nettrim.trim(model, data, **options)
    again = nettrim.trim(model, data, recipe=nettrim.Recipe.from_toml(trimmed.recipe.to_toml()))
    assert same(state(trimmed.model), state(again.model))
    assert nettrim.verify(trimmed.save(tmp_path / "out"), model, data).holds


def test_positions_of_a_convolution_are_drawn_with_the_seed(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3))
    images = torch.randn(60, 2, 6, 6)
    one, again, other = (
        nettrim.trim(model, images, epsilon=0.2, positions=5, holdout=0.0, seed=seed) for seed in (0, 0, 1)
    )
    assert same(state(one.model), state(again.model)) and not same(state(one.model), state(other.model))
    assert one.layers[0].samples == 60 * 5
    assert nettrim.verify(one.save(tmp_path / "out"), model, images).holds


def test_holdout_of_its_own(model, data):
    trimmed = nettrim.trim(model, data[:40], epsilon=0.1, holdout=data[40:])
    assert (trimmed.report.network.samples, trimmed.report.network.samples_holdout) == (40, 40)
    difference = relative_discrepancy(model(data[40:]), trimmed.model(data[40:]))
    assert trimmed.report.network.discrepancy_holdout == pytest.approx(difference, rel=1e-4)


def test_a_recipe_with_overrides(model, data):
    recipe = nettrim.Recipe(epsilon=0.2, refit=False, holdout=0.5)
    trimmed = nettrim.trim(model, data, recipe=recipe)
    assert trimmed.recipe == recipe and trimmed.report.network.samples == 40
    assert nettrim.trim(model, data, recipe=recipe, epsilon=0.1).recipe.epsilon == 0.1
    # what is given counts, if it is a default too
    assert nettrim.trim(model, data, recipe=recipe, refit=True, budget="layer").recipe == recipe.replace(refit=True)
    named = inspect.signature(nettrim.trim).parameters
    assert "_given" not in named and named["refit"].default is True


def test_training_mode_and_random_state_are_left_alone(data):
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2)).train()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    trimmed = nettrim.trim(net, data, epsilon=0.1)
    assert torch.equal(torch.rand(3), expected)
    assert net.training and trimmed.model.training
    assert trimmed.report.network.bound is not None


def test_progress_and_streams(model, data, capsys):
    events = []
    nettrim.trim(model, data, epsilon=0.1, progress=events.append)
    assert events[0].kind == "start" and events[-1].finished == events[-1].total == 3
    nettrim.trim(model, data, epsilon=0.1, progress=True)  # no terminal: silent
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.parametrize("rich", [True, False])
def test_progress_on_a_terminal(model, data, capsys, monkeypatch, rich):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    if not rich:
        monkeypatch.setattr("nettrim.progress.find_spec", lambda name: None)
    nettrim.trim(model, data, epsilon=0.1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert rich or "[3/3]" in captured.err


def test_batch_norm_is_folded(data):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    net(data)  # statistics
    net.eval()
    trimmed = nettrim.trim(net, data, epsilon=0.05)
    assert trimmed.plan["folded"] and trimmed.report.network.discrepancy <= trimmed.report.network.bound


def test_public_names():
    for name in ("trim", "load", "verify", "Program", "solve", "certify", "refit", "link_normalize", "L1", "Recipe"):
        assert hasattr(nettrim, name)
    assert nettrim.__version__
    assert issubclass(nettrim.errors.RecipeError, InputError)


def test_a_trimmed_model_shrinks_to_the_same_function(model, data):
    trimmed = nettrim.trim(model, data, epsilon=0.3, progress=False)
    torch.testing.assert_close(trimmed.shrink().module(data), trimmed.model(data), rtol=1e-5, atol=1e-6)


def test_a_memory_budget_changes_no_answer_and_is_checked():
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)), torch.randn(60, 6)
    options = {"epsilon": 0.2, "budget": "neuron", "progress": False}
    for scheme in ("parallel", "cascade"):
        free = nettrim.trim(model, data, scheme=scheme, **options)
        bounded = nettrim.trim(model, data, scheme=scheme, memory_budget=4000, **options)
        for one, other in zip(free.layers, bounded.layers, strict=True):
            assert one.totals.objective == pytest.approx(other.totals.objective, rel=1e-3)
            assert other.result.certified
    for budget in (0, -1, "1 GB", 1.5):
        with pytest.raises(nettrim.errors.InputError, match="`memory_budget` should be None or a number of bytes"):
            nettrim.trim(model, data, memory_budget=budget, **options)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid, nn.Softplus])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("constraint", ["distance", "strict"])
def test_saturated_layers_are_certified(activation, dtype, constraint):
    """Responses that rounding pushed to a limit: the dense weights are feasible, so nothing may be called otherwise."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 8), activation(), nn.Linear(8, 3)).to(dtype)
    with torch.no_grad():
        for parameter in model[0].parameters():
            parameter.mul_(12)
    data = torch.randn(300, 10, dtype=dtype)
    options = {"epsilon": 1e-3, "constraint": constraint, "holdout": 0.0, "progress": False}
    for layer in nettrim.trim(model, data, **options).report.layers:
        assert layer.certified
        assert layer.discrepancy <= layer.distance + 1e-6


@pytest.mark.parametrize("budget", ["layer", "neuron"])
@pytest.mark.parametrize("epsilon", [0.01, 0.1])
def test_a_network_that_is_sparse_already_gets_no_denser(tmp_path, budget, epsilon):
    """The least l1 norm may need more weights than a pruned row has, which is feasible itself."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.mul_(layer.weight.abs() > layer.weight.abs().quantile(0.85))
    data = torch.randn(300, 20)
    trimmed = nettrim.trim(model, data, epsilon=epsilon, budget=budget, progress=False)
    for layer in trimmed.report.layers:
        assert layer.nonzeros_after <= layer.nonzeros_before
        assert layer.certified and layer.distance <= layer.epsilon * (1 + 1e-6)
    assert nettrim.verify(trimmed.save(tmp_path / "out"), model, data).holds


def test_groups_whose_inputs_did_not_move_have_the_epsilon_of_a_parallel_layer():
    """Eq. (7) gives nothing to channels that read what no earlier layer has changed."""

    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv1d(4, 6, 3, padding=1), nn.Conv1d(10, 10, 3, padding=1, groups=10)

        def forward(self, x):
            return torch.relu(self.second(torch.cat([x, torch.relu(self.first(x))], 1)))

    for seed in range(3):
        torch.manual_seed(seed)
        model, data = Joined(), torch.randn(60, 4, 10)
        for layer in nettrim.trim(model, data, epsilon=0.1, scheme="cascade", progress=False).report.layers:
            assert layer.certified
