"""One layer: the programs are the ones asked for, and what is reported is true of the weights returned."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nettrim.errors import DataError
from nettrim.layerwise import LayerTask, conclude, make_pieces, measure, trim_layer
from nettrim.models.base import Layer
from nettrim.programs.penalties import L1, MaxNorm
from nettrim.recipe import Recipe


def task(seed=0, samples=40, width=7, out=5, *, dtype=torch.float32, activation="relu", bias=True, groups=1, **options):
    generator = torch.Generator().manual_seed(seed)
    scheme = {key: options.pop(key) for key in ("scheme", "moved", "kappa") if key in options}
    weight = torch.randn(out, width, generator=generator, dtype=dtype)
    vector = torch.randn(out, generator=generator, dtype=dtype) if bias else None
    inputs = torch.randn(groups, samples, width, generator=generator, dtype=dtype)
    layer = Layer("fc", "Linear", (out, width), activation, weight, vector, groups)
    return LayerTask(layer, inputs, None, None, Recipe(**{"epsilon": 0.2, **options}), **scheme)


def moved(given, size=0.05, seed=9):
    """The same layer in a cascade: perturbed inputs, the original responses."""
    noise = torch.randn(given.inputs.shape, generator=torch.Generator().manual_seed(seed), dtype=given.inputs.dtype)
    z = given.inputs[0].double() @ given.layer.weight.double().T
    z = z if given.layer.bias is None else z + given.layer.bias.double()
    responses = z.relu() if given.layer.activation == "relu" else z
    return replace(given, inputs=given.inputs + size * noise, responses=responses, scheme="cascade", moved=True)


def by_hand(given, weight, bias, responses=None):
    """(discrepancy, distance, norm) of a ReLU layer without groups, written out."""
    x = given.inputs[0].double()
    z = x @ weight.double().T + (0 if bias is None else bias.double())
    y = responses
    if y is None:
        original = given.layer
        y = (x @ original.weight.double().T + (0 if original.bias is None else original.bias.double())).relu()
    away = torch.where(y > 0, z - y, z.clamp(min=0))
    return float((z.relu() - y).norm()), float(away.norm()), float(y.norm())


@pytest.mark.parametrize("constraint", ["distance", "strict"])
@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_reported_numbers_are_those_of_the_weights_returned(constraint, refit, bias):
    given = task(constraint=constraint, refit=refit, bias=bias)
    outcome = trim_layer(given)
    discrepancy, distance, norm = by_hand(given, outcome.weight, outcome.bias)
    result = outcome.result
    assert result.discrepancy == pytest.approx(discrepancy / norm, rel=1e-6)
    assert result.distance == pytest.approx(distance / norm, rel=1e-6)
    assert outcome.distance == pytest.approx(distance, rel=1e-6)
    assert result.discrepancy <= result.distance * (1 + 1e-9) <= 0.2 * (1 + 1e-6)
    assert result.epsilon == pytest.approx(0.2)
    assert result.certified and result.gap <= 1e-4
    assert result.nonzeros_after == int(outcome.weight.count_nonzero()) < result.nonzeros_before
    assert outcome.weight.dtype == given.layer.weight.dtype and (outcome.bias is None) == (not bias)
    assert sum(result.neurons.values()) == 5


def test_a_refit_only_lowers_the_distance_and_keeps_the_support():
    plain, refitted = trim_layer(task(refit=False)), trim_layer(task(refit=True))
    assert refitted.distance < 0.9 * plain.distance
    assert torch.equal(plain.weight != 0, refitted.weight != 0)
    assert refitted.result.discrepancy_select == pytest.approx(plain.result.discrepancy)
    assert refitted.result.gap == pytest.approx(plain.result.gap, abs=1e-9)


def test_a_penalty_that_chooses_no_support_is_not_refitted():
    """The max norm keeps weights small; least squares on all of them would undo just that."""
    plain, refitted = (trim_layer(task(samples=6, refit=on, penalty=MaxNorm())) for on in (False, True))
    assert torch.equal(plain.weight, refitted.weight)
    assert float(refitted.weight.abs().max()) <= float(task(samples=6).layer.weight.abs().max()) * (1 + 1e-6)


def test_a_doctored_weight_is_not_certified():
    given = task(refit=False)
    outcome = trim_layer(given)
    pieces = make_pieces(given)
    assert conclude(given, pieces, outcome.backing, outcome.weight, outcome.bias).result.certified
    worse = outcome.weight + 0.1
    assert not conclude(given, pieces, outcome.backing, worse, outcome.bias).result.certified
    backing = (replace(outcome.backing[0], weight=outcome.backing[0].weight * 0.9),)
    assert not conclude(given, pieces, backing, outcome.weight, outcome.bias).result.certified
    backing = (replace(outcome.backing[0], dual=torch.zeros_like(outcome.backing[0].dual)),)
    assert not conclude(given, pieces, backing, outcome.weight, outcome.bias).result.certified


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, lambda y: [0.2 * y.norm()]),
        ({"budget": "neuron"}, lambda y: 0.2 * y.norm(dim=0)),  # A section 5.2
        ({"budget": 2}, lambda y: 0.2 * y.norm() * (torch.tensor([3.0, 2.0]) / 5).sqrt()),  # A section 4.1
        ({"relative": False}, lambda y: [0.2]),
        ({"relative": False, "budget": "neuron"}, lambda y: [0.2 / math.sqrt(5)] * 5),
        ({"epsilon": {"fc": 0.3}}, lambda y: [0.3 * y.norm()]),
    ],
)
def test_epsilon_in_absolute_terms(options, expected):
    given = task(dtype=torch.float64, **options)
    (piece,) = make_pieces(given)
    x, layer = given.inputs[0], given.layer
    y = (x @ layer.weight.T + layer.bias).relu()
    assert piece.program.epsilon.tolist() == pytest.approx([float(value) for value in expected(y)])


@pytest.mark.parametrize("budget", ["layer", "neuron", 2])
@pytest.mark.parametrize("gamma", [1.0, 1.3])
@pytest.mark.parametrize("constraint", ["distance", "strict"])
def test_cascade_epsilon_is_equation_7(budget, gamma, constraint):
    given = moved(task(dtype=torch.float64, budget=budget, gamma=gamma, constraint=constraint))
    (piece,) = make_pieces(given)
    layer, y = given.layer, given.responses
    z = given.inputs[0] @ layer.weight.T + layer.bias
    off = torch.zeros_like(z) if constraint == "strict" else z.clamp(min=0)
    squares = torch.where(y > 0, z - y, off).square().sum(dim=0)
    groups = {"layer": [[0, 1, 2, 3, 4]], "neuron": [[0], [1], [2], [3], [4]], 2: [[0, 1, 2], [3, 4]]}[budget]
    expected = [math.sqrt(gamma * float(squares[rows].sum())) for rows in groups]
    assert piece.program.epsilon.tolist() == pytest.approx(expected)
    if constraint == "strict":
        assert torch.allclose(piece.program.upper[y == 0], z[y == 0])  # V = W xhat


def test_positive_slack():
    given = moved(task(dtype=torch.float64, constraint="strict", slack="positive"))
    (piece,) = make_pieces(given)
    z = given.inputs[0] @ given.layer.weight.T + given.layer.bias
    off = given.responses == 0
    assert torch.allclose(piece.program.upper[off], z[off].clamp(min=0))


@pytest.mark.parametrize("constraint", ["distance", "strict"])
@pytest.mark.parametrize("slack", ["published", "positive"])
def test_cascade_layer(constraint, slack):
    given = moved(task(constraint=constraint, slack=slack, refit=False, gamma=1.2))
    outcome = trim_layer(given)
    discrepancy, distance, norm = by_hand(given, outcome.weight, outcome.bias, given.responses)
    assert outcome.result.distance == pytest.approx(distance / norm, rel=1e-6)
    assert discrepancy <= distance * (1 + 1e-9)
    assert outcome.result.distance <= outcome.result.epsilon * (1 + 1e-5)
    dense = measure(given, given.layer.weight, given.layer.bias).distance
    assert outcome.distance <= math.sqrt(1.2) * dense * (1 + 1e-5)


def test_kappa_out_of_reach_falls_back_and_says_so():
    given = moved(task(samples=60, gamma=1.1, kappa=1e-3))
    outcome = trim_layer(given)
    assert "kappa = 0.001" in outcome.notes[0] and outcome.kappa == 1.0
    assert outcome.result.certified
    within = trim_layer(moved(task(samples=60, gamma=1.5, kappa=0.95)))
    assert within.notes == () and within.kappa == 0.95 and within.result.certified


def test_bias_is_free_unless_penalised():
    free, penalised = task(), task(penalize_bias=True)
    (one,), (other,) = make_pieces(free), make_pieces(penalised)
    assert one.program.penalty.free(one.program.shape)[:, -1].all()
    assert not one.program.penalty.free(one.program.shape)[:, :-1].any()
    assert other.program.penalty.free(other.program.shape) is None
    assert torch.equal(one.program.inputs[:, -1], torch.ones(40))
    assert float(trim_layer(penalised).bias.abs().sum()) < float(trim_layer(free).bias.abs().sum())


def test_costs_per_entry_reach_the_program():
    costs = torch.ones(5, 7)
    costs[:, 0] = math.inf
    given = task(penalty=L1(costs=costs), epsilon=0.9)
    outcome = trim_layer(given)
    assert not outcome.weight[:, 0].any()
    (piece,) = make_pieces(given)
    assert piece.program.penalty.costs.shape == (5, 8)


def test_groups_make_one_program_each():
    given = task(out=6, groups=2, epsilon=0.1)
    pieces = make_pieces(given)
    assert [piece.rows for piece in pieces] == [slice(0, 3), slice(3, 6)]
    assert torch.equal(pieces[1].program.inputs[:, :-1], given.inputs[1])
    outcome = trim_layer(given)
    assert outcome.result.certified
    y = torch.cat(
        [
            (
                given.inputs[g].double() @ given.layer.weight[3 * g : 3 * g + 3].double().T
                + given.layer.bias[3 * g : 3 * g + 3].double()
            ).relu()
            for g in range(2)
        ],
        dim=1,
    )
    assert measure(given, outcome.weight, outcome.bias).norm == pytest.approx(float(y.norm()))
    assert outcome.result.epsilon == pytest.approx(0.1)


def test_half_precision_weights_are_measured_as_they_will_be_kept():
    given = task(refit=False)
    layer = replace(
        given.layer, weight=given.layer.weight.half().float(), bias=given.layer.bias.half().float(), dtype=torch.float16
    )
    given = replace(given, layer=layer)
    outcome = trim_layer(given)
    assert torch.equal(outcome.weight, outcome.weight.half().float())
    discrepancy, _, norm = by_hand(given, outcome.weight, outcome.bias)
    assert outcome.result.discrepancy == pytest.approx(discrepancy / norm, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_inputs_of_any_scale(scale):
    reference = trim_layer(task(bias=False))
    given = task(bias=False)
    outcome = trim_layer(replace(given, inputs=given.inputs * scale))
    assert outcome.result.certified
    assert outcome.result.nonzeros_after == pytest.approx(reference.result.nonzeros_after, abs=1)
    assert outcome.result.objective == pytest.approx(reference.result.objective, rel=1e-3)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    samples=st.integers(1, 6),
    width=st.integers(1, 4),
    out=st.integers(1, 3),
    epsilon=st.sampled_from([0.0, 1e-3, 0.3, 2.0]),
    bias=st.booleans(),
    activation=st.sampled_from(["relu", "linear"]),
)
def test_small_layers_of_every_shape_keep_the_constraint(seed, samples, width, out, epsilon, bias, activation):
    given = task(seed, samples, width, out, epsilon=epsilon, bias=bias, activation=activation)
    outcome = trim_layer(given)
    assert outcome.result.distance <= epsilon * (1 + 1e-5) + 1e-5
    assert outcome.result.nonzeros_after <= outcome.result.nonzeros_before


def test_dead_layer_and_duplicates():
    given = task()
    dead = replace(given, layer=replace(given.layer, bias=given.layer.bias - 100))
    outcome = trim_layer(dead)
    assert outcome.result.nonzeros_after == 0
    assert outcome.result.discrepancy == outcome.result.epsilon == 0.0
    twice = replace(given, inputs=torch.cat([given.inputs, given.inputs], dim=1))
    assert trim_layer(twice).result.objective == pytest.approx(trim_layer(given).result.objective, rel=1e-3)


def test_infinite_samples_name_the_layer():
    given = task()
    inputs = given.inputs.clone()
    inputs[0, 3, 2] = math.inf
    with pytest.raises(DataError, match="inputs of layer 'fc'"):
        trim_layer(replace(given, inputs=inputs))
