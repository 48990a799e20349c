"""Both schemes end to end on small chains: the theorems' bounds hold, also after a refit, and for mixtures."""

import itertools
import math
from functools import partial

import pytest
import torch
from torch import nn

from nettrim.certificates.network import link_normalize, theorem_1, theorem_2
from nettrim.executors.local import LocalExecutor
from nettrim.layerwise import Means, trim_layer
from nettrim.models.torch_network import TorchNetwork
from nettrim.recipe import Recipe
from nettrim.schemes import run_schemes
from nettrim.schemes.whole import relative_discrepancy, trim_network

CONSTRAINTS = [("distance", "published"), ("strict", "published"), ("strict", "positive")]


def chain(seed, widths=(4, 6, 5, 3), bias=True, normal=False):
    torch.manual_seed(seed)
    linears = [nn.Linear(a, b, bias=bias, dtype=torch.float64) for a, b in itertools.pairwise(widths)]
    if normal:
        scaled = link_normalize([linear.weight for linear in linears], [linear.bias for linear in linears])
        with torch.no_grad():
            for linear, weight, vector in zip(linears, scaled.weights, scaled.biases, strict=True):
                linear.weight.copy_(weight)
                if vector is not None:
                    linear.bias.copy_(vector)
    layers = [layer for linear in linears for layer in (linear, nn.ReLU())][:-1]
    return nn.Sequential(*layers), torch.randn(25, widths[0], dtype=torch.float64)


def quiet(event):
    pass


def run(model, data, workers=1, **options):
    network = TorchNetwork(model, data)
    recipe = Recipe(**{"epsilon": 0.1, **options})
    return network, trim_network(network, [data], [], recipe, trim_layer, LocalExecutor(workers), quiet)


def responses(model, data):
    """After every ReLU, and the output."""
    found = []
    for layer in model:
        data = layer(data)
        if isinstance(layer, nn.ReLU):
            found.append(data.detach())
    return [*found, data.detach()]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("constraint", "slack"), CONSTRAINTS)
@pytest.mark.parametrize("scheme", ["parallel", "cascade", "mixed"])
@pytest.mark.parametrize("refit", [False, True])
def test_measured_discrepancy_never_exceeds_the_bound(bias, constraint, slack, scheme, refit):
    model, data = chain(int(bias), bias=bias)
    scheme = {"0": "cascade", "2": "parallel", "4": "cascade"} if scheme == "mixed" else scheme
    network, outcome = run(model, data, constraint=constraint, slack=slack, scheme=scheme, refit=refit, gamma=1.2)
    result = outcome.result.network
    assert result.discrepancy <= result.bound * (1 + 1e-9) + 1e-12
    assert result.discrepancy == pytest.approx(relative_discrepancy(model(data), network.module(data)), rel=1e-9)
    with torch.no_grad():
        network.module[-1].weight.mul_(5.0)  # a doctored net
    assert relative_discrepancy(model(data), network.module(data)) > result.bound


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("seed", [0])
@pytest.mark.parametrize(("constraint", "slack"), CONSTRAINTS)
@pytest.mark.parametrize("budget", ["layer", "neuron"])
def test_theorem_2_for_link_normalised_nets(seed, constraint, slack, budget, refit):
    model, data = chain(seed, normal=True)
    gamma = 1.3
    network, outcome = run(
        model, data, constraint=constraint, slack=slack, scheme="cascade", refit=refit, gamma=gamma, budget=budget
    )
    original, trimmed = responses(model, data), responses(network.module, data)
    first = 0.1 * float(original[0].norm())
    for place, (before, after) in enumerate(zip(original, trimmed, strict=True)):
        measured = float((after - before).norm())
        assert measured <= theorem_2(first, [gamma] * place) * (1 + 1e-6)
        assert measured <= outcome.layers[place].distance * (1 + 1e-9) + 1e-12
        allowed = outcome.layers[place].result.epsilon * float(before.norm())
        assert allowed <= theorem_2(first, [gamma] * place) * (1 + 1e-6)
    assert float(original[-1].norm()) * outcome.result.network.bound <= theorem_2(first, [gamma, gamma]) * (1 + 1e-6)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("constraint", ["distance", "strict"])
def test_theorem_1_for_link_normalised_nets(seed, constraint):
    model, data = chain(seed, normal=True)
    network, outcome = run(model, data, constraint=constraint, scheme="parallel", refit=False)
    original, trimmed = responses(model, data), responses(network.module, data)
    epsilons = [0.1 * float(before.norm()) for before in original]
    for place, (before, after) in enumerate(zip(original, trimmed, strict=True)):
        assert float((after - before).norm()) <= theorem_1(epsilons[: place + 1]) * (1 + 1e-6)
    bound = float(original[-1].norm()) * outcome.result.network.bound
    assert bound <= theorem_1(epsilons) * (1 + 1e-6)


def test_trimming_commutes_with_link_normalisation():
    plain, data = chain(4)
    normal, _ = chain(4, normal=True)
    _, one = run(plain, data, refit=False, epsilon=0.2)
    _, other = run(normal, data, refit=False, epsilon=0.2)
    scales = link_normalize([layer.weight for layer in plain if isinstance(layer, nn.Linear)]).scales
    for first, second, scale in zip(one.layers, other.layers, scales, strict=True):
        assert first.result.objective == pytest.approx(second.result.objective * scale, rel=1e-3)


@pytest.mark.parametrize("scheme", ["parallel", "cascade"])
def test_a_single_layer_is_the_same_in_both(scheme):
    model, data = chain(1, widths=(6, 5))
    _, outcome = run(model, data, scheme=scheme)
    assert not outcome.layers[0].moved
    assert outcome.result.layers[0].epsilon == pytest.approx(0.1)
    assert outcome.result.network.bound == pytest.approx(outcome.result.layers[0].distance)


def test_cascade_reads_the_trimmed_network_and_aims_at_the_original():
    model, data = chain(0)
    network, original = TorchNetwork(model, data), TorchNetwork(model, data)
    recipe = Recipe(epsilon=0.2, scheme="cascade", refit=False)
    tasks = []

    def work(task):
        tasks.append(task)
        return trim_layer(task)

    run_schemes(network, original, [data], recipe, work, LocalExecutor(1), quiet)
    now, before = responses(network.module, data), responses(model, data)
    assert [task.moved for task in tasks] == [False, True, True]
    for task, read, target in zip(tasks[1:], now, before[1:], strict=False):
        assert torch.allclose(task.inputs[0], read)
        assert torch.allclose(task.responses, target)


def test_nothing_changed_upstream_means_a_first_layer():
    model, data = chain(0)
    _, outcome = run(model, data, scheme="cascade", epsilon={"0": 0.0, "*": 0.1})
    # epsilon 0 leaves the first layer's responses as they were, so the second has the recipe's tolerance
    assert outcome.result.layers[1].epsilon == pytest.approx(0.1, rel=1e-3)
    assert not outcome.layers[1].moved


def test_tolerances_of_a_cascade_follow_the_error_before_refits():
    model, data = chain(3)
    _, refitted = run(model, data, scheme="cascade", refit=True)
    _, plain = run(model, data, scheme="cascade", refit=False)
    for one, other in zip(refitted.layers[1:], plain.layers[1:], strict=True):
        assert one.result.epsilon > 0.3 * other.result.epsilon
        assert one.distance <= other.distance
    assert refitted.result.network.discrepancy < plain.result.network.discrepancy


@pytest.mark.parametrize("scheme", ["parallel", {"2": "cascade"}])
def test_any_number_of_workers_gives_the_same_answer(scheme):
    model, data = chain(5)
    one, _ = run(model, data, 1, scheme=scheme)
    three, _ = run(model, data, 3, scheme=scheme)
    for first, second in zip(one.module.parameters(), three.module.parameters(), strict=True):
        assert torch.equal(first, second)


def test_events_tell_of_every_layer():
    model, data = chain(0)
    events = []
    network = TorchNetwork(model, data)
    trim_network(network, [data], [], Recipe(epsilon=0.1), trim_layer, LocalExecutor(2), events.append)
    assert [event.kind for event in events] == ["start", "layer", "layer", "layer", "done"]
    assert [event.finished for event in events] == [0, 1, 2, 3, 3]
    assert {event.layer.name for event in events if event.layer} == {"0", "2", "4"}


def test_a_failing_layer_is_named():
    model, data = chain(0)

    def work(task):
        if task.name == "2":
            raise RuntimeError("broken")
        return trim_layer(task)

    with pytest.raises(RuntimeError, match="broken") as caught:
        trim_network(TorchNetwork(model, data), [data], [], Recipe(epsilon=0.1), work, LocalExecutor(2), quiet)
    assert "'2'" in caught.value.__notes__[0]


@pytest.mark.parametrize("times", [False, True])
def test_a_network_that_is_no_chain_has_the_bound_of_its_graph_or_says_why_not(times):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x):
            one, two = self.one(x).relu(), self.two(x).relu()
            return one * two if times else one + two

    torch.manual_seed(0)
    model, data = Branches(), torch.randn(30, 4)
    _, outcome = run(model, data, epsilon=0.1)
    result = outcome.result.network
    assert math.isfinite(result.discrepancy)
    if times:
        assert result.bound is None and "`mul`" in result.bound_reason
        return
    errors = sum(layer.distance for layer in outcome.layers)  # those of the two sides of a sum add up
    assert result.bound == pytest.approx(errors / float(model(data).detach().norm()), rel=1e-3)
    assert result.discrepancy <= result.bound


@pytest.mark.parametrize("ignore", ["0", "2", "4"])
@pytest.mark.parametrize("scheme", ["parallel", "cascade"])
def test_layers_left_alone_are_part_of_the_bound(ignore, scheme):
    model, data = chain(1)
    network = TorchNetwork(model, data, ignore=ignore)
    recipe = Recipe(epsilon=0.1, scheme=scheme)
    result = trim_network(network, [data], [], recipe, trim_layer, LocalExecutor(1), quiet).result
    assert 0 < result.network.discrepancy <= result.network.bound * (1 + 1e-9)
    assert [layer.name for layer in result.layers] == ["0", "2", "4"]
    assert [layer.skipped is not None for layer in result.layers] == [name == ignore for name in ("0", "2", "4")]


def test_kappa_without_a_cascade_is_noted():
    model, data = chain(0)
    _, outcome = run(model, data, kappa=0.5)
    assert "kappa has no effect" in outcome.result.notes[0]
    work = partial(trim_layer, means=Means("cpu"))
    network = TorchNetwork(model, data)
    outcome = trim_network(
        network, [data], [], Recipe(epsilon=0.2, kappa=0.9, scheme="cascade"), work, LocalExecutor(1), quiet
    )
    assert [layer.kappa for layer in outcome.layers][:2] == [1.0, 1.0]
