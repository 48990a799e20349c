"""Strict programs are posed in float64: what is returned in float32 keeps every neuron's budget."""

import pytest
import torch
from torch import nn

import nettrim
from nettrim import Program
from nettrim.certificates import certify
from nettrim.layerwise.keeping import feasibility, solve_kept
from nettrim.layerwise.matrices import cast_weight
from nettrim.layerwise.means import HERE
from nettrim.models.base import Layer


def layer_of(out=40):
    """A layer whose weights are large against its budgets: inputs in a narrow cone."""
    generator = torch.Generator().manual_seed(5)
    inputs = 1 + 0.05 * torch.randn(200, 3, generator=generator)
    inputs[:, -1] = 1.0
    weight = 10 * torch.randn(out, 3, generator=generator)
    return Layer("fc", "Linear", tuple(weight.shape), "relu", weight, None), inputs


@pytest.mark.parametrize("budget", ["neuron", "layer"])
@pytest.mark.parametrize("epsilon", [0.003, 0.01])
def test_cast_weights_keep_every_budget(budget, epsilon):
    layer, inputs = layer_of()
    inputs = inputs.to(torch.float64)
    responses = (inputs @ layer.weight.to(torch.float64).T).relu()
    sizes = responses.norm(dim=0) if budget == "neuron" else responses.norm()
    program = Program.relu(inputs, responses, epsilon * sizes, "strict", budget=budget)
    plain = HERE.solve(program, 1e-4, None)
    broken = certify(program, cast_weight(layer, plain.weight)).violation > feasibility(layer)
    assert broken or budget == "layer"  # over a whole layer rounding is lost in the sum
    solution = solve_kept(HERE, program, layer, 1e-4, None)
    kept = cast_weight(layer, solution.weight)
    certificate = certify(program, kept, solution.dual)
    assert kept.dtype == torch.float32
    assert certificate.holds(1e-4, feasibility(layer))
    assert all(state.feasible for state in solution.status)
    assert certificate.objective <= plain.certificate.objective * (1 + 1e-4)


def test_a_strict_trim_of_a_float32_network_is_certified():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 60), nn.ReLU(), nn.Linear(60, 30), nn.ReLU(), nn.Linear(30, 2))
    data = 5 + 0.1 * torch.randn(150, 2)
    options = {"constraint": "strict", "refit": False, "budget": "neuron", "holdout": 0.0, "progress": False}
    trimmed = nettrim.trim(model, data, epsilon=0.01, **options)
    assert all(layer.certified for layer in trimmed.report.result.layers)


def test_a_budget_far_below_what_rounding_moves_is_kept_too():
    """Shrinking the budget by as much as it is broken gives the very same float32 weights again: it has to grow."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.cat([torch.randn(200, 2, generator=generator), torch.ones(200, 1)], dim=1).to(torch.float64)
    weight = torch.randn(80, 3, generator=generator)
    layer = Layer("fc", "Linear", (80, 3), "relu", weight, None)
    responses = (inputs @ weight.to(torch.float64).T).relu()
    program = Program.relu(inputs, responses, 1e-3 * responses.norm(dim=0), "strict", budget="neuron")
    plain = HERE.solve(program, 1e-3, None)
    assert certify(program, cast_weight(layer, plain.weight)).violation > feasibility(layer)
    solution = solve_kept(HERE, program, layer, 1e-3, None)
    assert certify(program, cast_weight(layer, solution.weight), solution.dual).holds(1e-3, feasibility(layer))
