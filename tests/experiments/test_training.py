"""Networks that standardise their inputs, and where H2O's start leaves constant ones."""

import torch

from nettrim.experiments.training import Standardised, mlp, start_as_h2o


def test_standardised_inputs_have_mean_zero_and_deviation_one_and_constant_ones_are_zero():
    samples = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 20.0, 0.0]) + 4.0
    module = Standardised(samples)
    inputs = module(samples)
    assert torch.allclose(inputs.mean(0), torch.zeros(3), atol=1e-5)
    assert torch.allclose(inputs[:, :2].std(0), torch.ones(2), atol=1e-5)
    assert not module(samples + 9.0)[:, 2].any()  # also where a later sample differs
    assert set(module.state_dict()) == {"mean", "scale"}  # a checkpoint keeps them


def test_h2os_start_is_finite_where_an_input_is_constant():
    samples = torch.rand(30, 4, generator=torch.Generator().manual_seed(0))
    samples[:, 1] = 0.0
    model = mlp((4, 6, 2))
    start_as_h2o(model, samples, seed=0)
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
